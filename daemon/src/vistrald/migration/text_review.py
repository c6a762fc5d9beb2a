"""What a text file that is not Python says about the old model, and the same text without it.

One pass finds and edits, so that a finding and its edit cannot disagree. Lines that need no edit
are kept as they are, byte for byte.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from vistrald.migration import requirements, settings_map
from vistrald.migration.categories import Category
from vistrald.migration.finding import Action, Finding
from vistrald.migration.source import lines_of, split_end

MENTION = re.compile(
    r"saiga|\bсайг[аиуеой]|llama[-_. ]?cpp|\.gguf\b|<bot>|configure_model", re.IGNORECASE
)
_MEMORY_LIMIT = re.compile(
    r"\s*((mem_limit|mem_reservation|memswap_limit|memory)\s*:|Memory(Max|High|Limit)\s*=)"
)
_SEPARATOR = re.compile(r"(&&|\|\||;|\|)")
# What may stand before a command on its line.
_LEAD = re.compile(
    r"\s*(?:(?:RUN|run)\s+(?:--\S+\s+)*|-\s+)?(?:[\w-]+:\s+)?(?:sudo\s+)?(?:\w+=(?:\"[^\"]*\"|'[^']*'|\S*)\s+)*"
)
_STYLES: dict[Category, settings_map.Style] = {"env": "env", "yaml": "yaml"}
_COMMENTS: dict[Category, str] = {"systemd": "#;", "cron": "#", "dockerfile": "#"}


@dataclass
class TextReview:
    text: str  # without the old model
    findings: list[Finding] = field(default_factory=list)


def review(
    path: str, category: Category, text: str, removed_scripts: Iterable[str] = ()
) -> TextReview:
    """`removed_scripts`: base names of those that go away; what runs them is found."""
    match category:
        case "document" | "other":
            return TextReview(
                text, _whole(path, text, "document" if category == "document" else "mention")
            )
        case "lock":
            return _structured(path, text, requirements.without_in_lock, locked=True)
        case "toml":
            return _structured(path, text, requirements.without_in_toml)
        case _:
            return _Lines(path, category, text, frozenset(removed_scripts)).review()


def _whole(path: str, text: str, kind: str) -> list[Finding]:
    for number, line in enumerate(lines_of(text), start=1):
        if MENTION.search(line):
            return [Finding(path, number, kind, "report", line.strip()[:120])]
    return []


def _structured(
    path: str, text: str, without: Callable[[str], str | None], *, locked: bool = False
) -> TextReview:
    result = TextReview(text)
    fresh = without(text) if requirements.mentions(text) else text
    touched = set(_removed_lines(text, fresh)) if fresh is not None else set()
    for number, line in enumerate(lines_of(text), start=1):
        if number in touched and requirements.mentions(line):
            result.findings.append(Finding(path, number, "requirement", "edit", line.strip()[:120]))
        elif fresh is None and requirements.mentions(line):
            found = Finding(path, number, "requirement", "report", line.strip()[:120], person=True)
            result.findings.append(found)
        elif MENTION.search(line) and number not in touched:
            result.findings.append(Finding(path, number, "mention", "report", line.strip()[:120]))
    if fresh is not None and fresh != text:
        result.text = fresh
        if locked:
            result.findings.append(Finding(path, 0, "lock-digest", "report", person=True))
    return result


def _removed_lines(old: str, new: str) -> Iterator[int]:
    """Numbers of the lines that an edit which only takes away took or changed."""
    left = iter(lines_of(new))
    expected = next(left, None)
    old_lines = lines_of(old)
    for number, line in enumerate(old_lines, start=1):
        if line == expected:
            expected = next(left, None)
            continue
        yield number
        if expected is not None and expected not in old_lines[number:]:
            expected = next(left, None)  # this line was changed, not taken


class _Lines:
    def __init__(self, path: str, category: Category, text: str, scripts: frozenset[str]) -> None:
        self._path = path
        self._category = category
        self._text = text
        self._findings: list[Finding] = []
        names = "|".join(map(re.escape, sorted(scripts)))
        self._script = re.compile(rf"(?<![\w.-])(?:[\w./${{}}~\"-]*/)?({names})(?![\w.-])")
        self._has_scripts = bool(names)
        self._expects_value_of = ""  # YAML's name: SAIGA_X, whose value is on the next line

    def review(self) -> TextReview:
        out: list[str] = []
        number = 1
        for lines in self._logical_lines():
            out += self._logical(lines, number)
            number += len(lines)
        if self._findings and self._category in ("yaml", "systemd"):
            self._memory_limits()
        return TextReview("".join(out), sorted(self._findings))

    def _logical_lines(self) -> Iterator[list[str]]:
        """Lines joined where one goes on with a backslash."""
        joined: list[str] = []
        joins = self._category in ("requirements", "shell", "dockerfile", "yaml", "systemd")
        for line in lines_of(self._text):
            joined.append(line)
            if not (joins and split_end(line)[0].endswith("\\") and not self._is_comment(line)):
                yield joined
                joined = []
        if joined:
            yield joined

    def _logical(self, lines: list[str], number: int) -> list[str]:
        whole = "".join(lines)
        if (
            not MENTION.search(whole)
            and not self._expects_value_of
            and not self._runs_script(whole)
        ):
            return lines
        listed = self._category == "setup_cfg" and requirements.is_requirement(whole)
        if self._category == "requirements" or listed:
            return self._requirement(lines, number)
        if self._is_comment(whole):
            return self._mention(lines, number)
        found = len(self._findings)
        fresh: str | None = whole
        if requirements.mentions(whole):
            fresh = self._install(whole, number)
        if fresh is not None and self._has_scripts:
            fresh = self._script_call(fresh, number)
        if fresh is not None:
            fresh = "".join(
                self._settings(line, number + offset) for offset, line in enumerate(lines_of(fresh))
            )
        if fresh == whole and len(self._findings) == found:
            return self._mention(lines, number)
        return [] if fresh is None else [fresh]

    def _requirement(self, lines: list[str], number: int) -> list[str]:
        if requirements.is_requirement(lines[0]):
            self._add(number, "requirement", "edit", lines[0])
            return []
        return self._mention(lines, number)

    def _install(self, whole: str, number: int) -> str | None:
        """The line without the package; None: the line goes away."""
        if self._category == "yaml" and re.match(
            rf"\s*-\s+[\"']?{requirements.NAME}", whole, re.IGNORECASE
        ):
            self._add(number, "requirement", "edit", whole)  # conda's environment.yml
            return None
        code, end = split_end(whole)
        pieces = _SEPARATOR.split(code)
        changed = False
        for index in range(0, len(pieces), 2):
            lead = match[0] if (match := _LEAD.match(pieces[index])) else ""
            fresh = requirements.without_in_command(pieces[index][len(lead) :])
            if fresh is None:
                continue
            offset = _line_offset("".join(pieces[:index]), pieces[index])
            if fresh:
                pieces[index] = lead + fresh
            elif len(pieces) == 1 and self._category == "dockerfile":
                self._add(number + offset, "requirement", "edit", pieces[index])
                return None
            elif self._category == "yaml" and re.match(r"\s*(-\s+)?[\w-]+:\s|\s*-\s", lead):
                # `run: true` would be a Boolean and an empty list may mean something else.
                self._add(number + offset, "requirement", "report", pieces[index], person=True)
                return whole
            else:
                pieces[index] = _only_true(pieces[index], lead)
            changed = True
            self._add(number + offset, "requirement", "edit", whole.splitlines()[offset])
        if not changed and re.search(r"\b(pip|poetry|pipenv|uv)[\d.]*\b", whole):
            self._add(number, "requirement", "report", whole, person=True)
        return "".join(pieces) + end if changed else whole

    def _script_call(self, whole: str, number: int) -> str | None:
        match = self._script.search(whole)
        if not match:
            return whole
        code, end = split_end(whole)
        alone = re.fullmatch(
            rf"(\s*)(?:sudo\s+)?(?:(?:ba|z)?sh\s+|source\s+|\.\s+)?[\"']?{re.escape(match[0])}[\"']?"
            r"[^|&;<>()]*(?:\|\|\s*(?:true|:|exit\s+\d+)\s*)?",
            code,
        )
        if self._category == "shell" and alone:
            self._add(number, "script-call", "edit", code)
            return f"{alone[1]}true{end}"
        own_line = self._category == "cron" or re.match(r"\s*ExecStart(Pre|Post)\s*=", code)
        if own_line and _SEPARATOR.search(code) is None:
            self._add(number, "script-call", "edit", code)
            return None
        self._add(number, "script-call", "report", code, person=True)
        return whole

    def _settings(self, line: str, number: int) -> str:
        code, comment, end = self._split(line)
        if expected := self._expects_value_of:
            self._expects_value_of = ""
            if value := re.fullmatch(r"(\s*value\s*:\s+)([\"']?)(.*?)(\2\s*)", code):
                fresh = settings_map.new_text(expected, value[3])
                return f"{value[1]}{value[2]}{fresh}{value[4]}{comment}{end}"
        if not settings_map.SETTING.search(code):
            return line
        renamed = settings_map.rename(code, _STYLES.get(self._category, "shell"))
        for name in dict.fromkeys(renamed.names):
            doubtful = name in renamed.doubtful
            self._add(number, "setting-line", "edit", name, person=doubtful)
        if self._category == "env" and renamed.names and self._is_set(renamed.names[0]):
            return ""
        if self._category == "yaml" and (
            match := re.fullmatch(r"\s*-?\s*name\s*:\s+[\"']?(SAIGA_\w+)[\"']?\s*", code)
        ):
            self._expects_value_of = match[1]
        return renamed.text + comment + end

    def _is_set(self, name: str) -> bool:
        """Whether the counterpart has its own line already, which then is the one that counts."""
        fresh = settings_map.counterpart(name)
        return bool(re.search(rf"(?m)^\s*(?:export\s+)?{fresh}\s*=", self._text))

    def _memory_limits(self) -> None:
        for number, line in enumerate(lines_of(self._text), start=1):
            if _MEMORY_LIMIT.match(line):
                self._add(number, "memory-limit", "report", line, person=True)

    def _mention(self, lines: list[str], number: int) -> list[str]:
        for offset, line in enumerate(lines):
            if MENTION.search(line):
                # A value may be a password or hold one.
                what = line.partition("=")[0] if self._category == "env" else line
                self._add(number + offset, "mention", "report", what)
        return lines

    def _runs_script(self, text: str) -> bool:
        return self._has_scripts and bool(self._script.search(text))

    def _is_comment(self, line: str) -> bool:
        return line.lstrip().startswith(tuple(_COMMENTS.get(self._category, "#")))

    def _split(self, line: str) -> tuple[str, str, str]:
        """Code, comment, line end."""
        body, end = split_end(line)
        if self._category in _COMMENTS:  # only whole lines are comments there
            return body, "", end
        quote = ""
        for index, char in enumerate(body):
            if quote:
                quote = "" if char == quote else quote
            elif char in "\"'":
                quote = char
            elif char == "#" and (index == 0 or body[index - 1].isspace()):
                start = len(body[:index].rstrip())
                return body[:start], body[start:], end
        return body, "", end

    def _add(
        self, number: int, kind: str, action: Action, what: str, *, person: bool = False
    ) -> None:
        found = Finding(self._path, number, kind, action, what.strip()[:120], person)
        self._findings.append(found)


def _line_offset(before: str, piece: str) -> int:
    """How many lines down the package stands."""
    position = next((match.start() for match in re.finditer("llama", piece, re.IGNORECASE)), 0)
    return (before + piece[:position]).count("\n")


def _only_true(piece: str, lead: str) -> str:
    """`true` in a command's place: chains and the bodies of `if` stay valid."""
    start = re.match(r"\s*(?:(?:RUN|run)\s+(?:--\S+\s+)*)?", lead)
    head = start[0] if start else ""
    tail = re.search(r"\s*(?:\\\r?\n\s*)?$", piece)
    return f"{head}true{tail[0] if tail else ''}"
