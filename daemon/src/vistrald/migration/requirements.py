"""llama-cpp-python in requirements of every form: found, and taken out of the text."""

import json
import re
import tomllib
from typing import Any

from vistrald.migration.source import lines_of

NAME = r"llama[-_.]cpp[-_.]python"
_PACKAGE = re.compile(rf"{NAME}(?![-\w])", re.IGNORECASE)
# A line of a requirements file that is about the package: by name, by URL, or where its wheels lie.
_LINE = re.compile(
    rf"\s*(?:(?:-e|--editable)[\s=]+)?(?:{NAME}(?![-\w])|\S*(?:://|/|\.whl)\S*{NAME}"
    rf"|\S*{NAME}\S*\.whl|(?:--(?:extra-)?index-url|-i|--find-links|-f)[\s=]+\S*{NAME})",
    re.IGNORECASE,
)
_ELEMENT = rf"""(?:"[ \t]*{NAME}(?![-\w])[^"\r\n]*"|'[ \t]*{NAME}(?![-\w])[^'\r\n]*')"""
_INSTALL = re.compile(
    r"\s*(?:\S*python[\d.]*\s+-m\s+)?(?:(?:\S*/)?pip[\d.]*|uv\s+pip|poetry|pipenv|uv)"
    r"\s+(?:install|add)\b"
)
_TAKES_VALUE = {"-r", "-c", "-i", "-f", "-t", "--requirement", "--constraint", "--target"}
_TAKES_VALUE |= {"--index-url", "--extra-index-url", "--find-links", "--prefix", "--timeout"}


def mentions(text: str) -> bool:
    return bool(_PACKAGE.search(text))


def is_requirement(line: str) -> bool:
    """Of a line of a requirements file, comments excluded."""
    return not line.lstrip().startswith("#") and bool(_LINE.match(line))


def without_in_toml(text: str) -> str | None:
    """pyproject.toml or Pipfile without the package; None if that is not safe."""
    text_out = re.sub(rf"(?m)^[ \t]*{_ELEMENT}[ \t]*,?[ \t]*(#[^\r\n]*)?(?:\r\n|\n|\r)", "", text)
    text_out = re.sub(rf"{_ELEMENT}[ \t]*,[ \t]*", "", text_out)
    text_out = re.sub(rf",?[ \t]*{_ELEMENT}", "", text_out)
    lines, table = [], False
    for line in lines_of(text_out):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            last = header[1].split(".")[-1].strip("\"' ")
            table = bool(re.fullmatch(NAME, last, re.IGNORECASE))
        key = re.match(rf"\s*[\"']?{NAME}[\"']?\s*=", line, re.IGNORECASE)
        if not table and not key:
            lines.append(line)
    text_out = "".join(lines)
    try:
        wanted = _without(tomllib.loads(text))
        return text_out if _without(tomllib.loads(text_out)) == wanted else None
    except tomllib.TOMLDecodeError:
        return None


def without_in_lock(text: str) -> str | None:
    """poetry.lock, uv.lock, pdm.lock or Pipfile.lock without the package; None if not safe."""
    if text.lstrip().startswith("{"):
        return _without_in_json(text)
    # A [[package]] block goes on to the next one; [package.x] tables in between belong to it.
    blocks = re.split(r"(?m)^(?=\[\[package\]\]|\[(?!package\.)(?!\[))", text)
    name = re.compile(rf"(?m)^name\s*=\s*[\"']{NAME}[\"']", re.IGNORECASE)
    kept = [each for each in blocks if not (each.startswith("[[package]]") and name.search(each))]
    entry = rf"\{{[^{{}}\r\n]*name\s*=\s*\"{NAME}\"[^{{}}\r\n]*\}}"
    text_out = re.sub(rf"(?m)^[ \t]*{entry}[ \t]*,?[ \t]*(?:\r\n|\n|\r)", "", "".join(kept))
    text_out = "".join(
        line
        for line in lines_of(text_out)
        if not re.match(rf"\s*\"?{NAME}\"?\s*=", line, re.IGNORECASE)
    )
    try:
        wanted = _without(tomllib.loads(text))
        return text_out if _without(tomllib.loads(text_out)) == wanted else None
    except tomllib.TOMLDecodeError:
        return None


def without_in_command(command: str) -> str | None:
    """A shell command without the package; "" if nothing is left to install, None if unchanged.

    `command` is one command: no && or ;. Its spacing is kept.
    """
    installs = _INSTALL.match(command)
    if not installs or not mentions(command[installs.end() :]):
        return None
    head, rest = command[: installs.end()], command[installs.end() :]
    words = re.findall(r"\s+(?:\\\r?\n\s*)?(?:\"[^\"]*\"|'[^']*'|[^\s\"'])+", rest)
    if "".join(words) != rest.rstrip():
        return None
    tail = rest[len(rest.rstrip()) :]
    kept: list[str] = []
    targets, flag = 0, ""
    for word in words:
        bare = word.strip().removeprefix("\\").strip().strip("\"'")
        if mentions(bare) and not flag:
            continue
        if mentions(bare) and flag:  # --extra-index-url of its wheels
            kept.pop()
        else:
            kept.append(word)
            plain = bare != "" and not flag and not bare.startswith("-")  # "": a line's backslash
            targets += plain or flag in ("-r", "--requirement", "-e")
            targets += bare.startswith(("-r", "--requirement=")) and bare not in _TAKES_VALUE
        flag = bare if bare in _TAKES_VALUE or bare == "-e" else ""
    return head + "".join(kept) + tail if targets else ""


def _without_in_json(text: str) -> str | None:
    entry = re.compile(rf"(?m)^[ \t]*\"{NAME}\"\s*:\s*\{{", re.IGNORECASE)
    text_out = text
    try:
        while match := entry.search(text_out):
            _, end = json.JSONDecoder().raw_decode(text_out, match.end() - 1)
            if following := re.compile(r"[ \t]*,[ \t]*(\r\n|\n|\r)?").match(text_out, end):
                text_out = text_out[: match.start()] + text_out[following.end() :]
            else:  # the last one: the comma before it goes too
                text_out = re.sub(r",\s*$", "", text_out[: match.start()]) + text_out[end:]
        wanted = _without(json.loads(text))
        return text_out if _without(json.loads(text_out)) == wanted else None
    except json.JSONDecodeError:
        return None


def _without(value: Any) -> Any:
    """What the parsed file must be afterwards: the proof that an edit took only the package.

    Empty tables are left out: one whose only entry had a header of its own goes with it.
    """
    if isinstance(value, dict):
        kept = {
            key: _without(each)
            for key, each in value.items()
            if not re.fullmatch(NAME, key, re.IGNORECASE)
        }
        return {key: each for key, each in kept.items() if each != {}}
    if isinstance(value, list):
        return [_without(each) for each in value if not _is_package(each)]
    return value


def _is_package(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(re.fullmatch(NAME, str(value.get("name", "")), re.IGNORECASE))
    return isinstance(value, str) and bool(re.match(rf"\s*{NAME}(?![-\w])", value, re.IGNORECASE))
