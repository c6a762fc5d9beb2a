"""SAIGA_* settings and their VISTRAL_* counterparts, in names, values and lines of text."""

import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

Style = Literal["env", "yaml", "shell"]
COUNTERPARTS: dict[str, dict[str, Any]] = tomllib.loads(
    files(__package__).joinpath("settings_map.toml").read_text(encoding="utf-8")
)
SETTING = re.compile(r"SAIGA_[A-Z0-9_]+")
# A pydantic class may have its fields in lower case: only the known ones are settings.
LOWER = re.compile(rf"saiga_({'|'.join(COUNTERPARTS).lower()})")

# $SAIGA_X, ${SAIGA_X:-default}, SAIGA_X=value, SAIGA_X: value, "SAIGA_X=value", "SAIGA_X": value
_USE = re.compile(
    r"(?P<brace>\$\{)?(?P<open>(?<![\w])[\"'])?(?<!\w)(?P<name>SAIGA_[A-Z0-9_]+)(?!\w)"
    r"(?P<close>[\"'])?(?P<sign>:?[-=](?![\s\"']*=)|\s*=\s*|\s*:[ \t]+)?"
)
# What stands before the name of a whole line's assignment.
_LEAD = re.compile(r"\s*(?:-\s+)?(?:(?:export|set)\s+)?[\"']?")
_MODEL = re.compile(r"saiga|\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class Renamed:
    text: str
    names: tuple[str, ...]  # the old ones, in order
    # Those whose value a person must look at: it is kept and still names the old model.
    doubtful: tuple[str, ...] = ()


def counterpart(name: str) -> str:
    """VISTRAL_N_CTX for SAIGA_N_CTX, in the same case."""
    return ("VISTRAL_" if name.isupper() else "vistral_") + name[len("saiga_") :]


def is_setting(name: str) -> bool:
    return bool(SETTING.fullmatch(name) or LOWER.fullmatch(name))


def is_model_path(name: str) -> bool:
    return bool(_entry(name).get("path"))


def new_value(name: str, old: Any) -> Any:
    """The counterpart's value for Python code, in the old one's type; the old one if it is kept."""
    entry = _entry(name)
    if "value" not in entry or old in (None, "", [], ()):
        return old
    value = entry["value"]
    if entry.get("list") and isinstance(old, (list, tuple)):
        return type(old)([value])
    if isinstance(old, str):
        return new_text(name, old)
    return value


def new_text(name: str, old: str) -> str:
    """The same for a value written as text, in the old one's notation (a plain or a JSON list)."""
    entry = _entry(name)
    if "value" not in entry or not old.strip():
        return old
    if entry.get("list") and old.lstrip().startswith("["):
        text = json.dumps([entry["value"]])
        return text.replace('"', '\\"') if '\\"' in old else text
    return str(entry["value"])


def rename(text: str, style: Style) -> Renamed:
    """Every setting in a line, comments excluded.

    In an env file and after YAML's colon a bare value goes on to the line's end, in a shell's line
    to the next space.
    """
    pieces: list[str] = []
    names: list[str] = []
    doubtful: list[str] = []
    position = 0
    for match in _USE.finditer(text):
        if match.start() < position:
            continue  # in a value that was replaced
        name, sign = match["name"], match["sign"] or ""
        names.append(name)
        pieces.append(text[position : match.start("name")] + counterpart(name))
        position = match.end("name")
        value = _value_after(text, match, style) if sign else None
        if value is None:
            if sign.strip() in ("=", ":") and _MODEL.search(text[match.end() :]):
                doubtful.append(name)
            continue
        start, end = value
        old = text[start:end]
        # What refers to other variables is kept, unless it leads to the old model.
        if "SAIGA_" in old or ("$" in old and not _MODEL.search(old)):
            if _MODEL.search(text[start:].replace("SAIGA_", "")):
                doubtful.append(name)
            continue
        fresh = new_text(name, old)
        quoted = text[start - 1 : start] in ("'", '"') or match["open"] or match["brace"]
        if style == "shell" and not quoted and fresh != old and shlex.quote(fresh) != fresh:
            fresh = shlex.quote(fresh)  # a bare </s> would be a redirection
        if fresh == old and _MODEL.search(old):
            doubtful.append(name)
        pieces.append(text[position:start] + fresh)
        position = end
    return Renamed("".join(pieces) + text[position:], tuple(names), tuple(doubtful))


def _value_after(text: str, match: re.Match[str], style: Style) -> tuple[int, int] | None:
    """Where the value of an assignment or a default lies, without its quotes.

    None: there is none, or where it ends is not certain. Then only the name changes.
    """
    start, before, sign = match.end(), text[: match.start()], match["sign"].strip()
    if match["brace"]:
        end = text.find("}", start)
        return (start, end) if end >= 0 and sign in (":-", "-", ":=", "=") else None
    if sign not in ("=", ":") or before.endswith("$"):
        return None
    whole = bool(match["open"] and not match["close"])  # "SAIGA_X=all of it is quoted"
    quote = match["open"] if whole else text[start : start + 1]
    if quote in ("'", '"'):
        return _quoted(text, start if whole else start + 1, quote, whole)
    return _bare(text, start, before, sign, style)


def _quoted(text: str, start: int, quote: str, whole: bool) -> tuple[int, int] | None:
    closing = re.compile(rf"(?:\\.|[^\\{quote}])*").match(text, start)
    end = closing.end() if closing else len(text)
    # sh -c 'SAIGA_X=1 command': the quotes are not the value's.
    command = whole and re.search(r"\s", text[start:end]) and not text.startswith("[", start)
    return None if command or text[end : end + 1] != quote else (start, end)


def _bare(text: str, start: int, before: str, sign: str, style: Style) -> tuple[int, int] | None:
    if style == "yaml" and text[start : start + 1] in tuple("&*!|>"):  # anchors, tags, blocks
        return None
    at_start = bool(_LEAD.fullmatch(before))
    if (style == "env" or (style == "yaml" and sign == ":")) and at_start:
        return start, len(text.rstrip())
    if style == "yaml" and sign == ":":  # { A: 1, B: 2 }
        flow = re.compile(r"[^,{}\[\]'\"]*(?=[,}])").match(text, start)
        return (start, start + len(flow[0].rstrip())) if flow and "{" in before else None
    bare = re.compile(r"[^\s;&|)\"'`]*(?=[\s;&|)]|$)").match(text, start)
    # - SAIGA_X=1 command, or a value with spaces in it?
    if bare is None or (style == "yaml" and text[bare.end() :].strip()):
        return None
    return start, bare.end()


def _entry(name: str) -> dict[str, Any]:
    return COUNTERPARTS.get(name[len("saiga_") :].upper(), {})
