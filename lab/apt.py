"""The machine's own apt configuration, so that hosts take packages from where the machine does."""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from lab.errors import LabError

SUITE = "bookworm"
_FIELD_OF_OPTION = {"arch": "Architectures", "lang": "Languages", "target": "Targets"}
_ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)"
)


def sources(etc: Path = Path("/etc/apt")) -> str:
    """Return the machine's Debian 12 sources that hosts can reach by HTTP, in deb822 form.

    Third parties' sources are left out: their keys and packages are no part of a plain Debian host.
    """
    stanzas = [
        stanza
        for text in _texts(etc, "list")
        for line in text.splitlines()
        if (stanza := _from_one_line(line.partition("#")[0].strip()))
    ]
    for text in _texts(etc, "sources"):
        # A blank line inside an inline key is written " ." and so does not split it.
        stanzas += [_without_comments(part) for part in re.split(r"\n\s*\n", text)]
    chosen = [stanza for stanza in stanzas if _is_debian(stanza)]
    if not chosen:
        raise LabError(
            f"no HTTP source for Debian 12 ({SUITE}) in {etc}/sources.list or {etc}/sources.list.d;"
            f" add one: echo 'deb http://deb.debian.org/debian {SUITE} main'"
            f" > {etc}/sources.list.d/debian.list"
        )
    return "\n\n".join(chosen) + "\n"


def field(stanza: str, name: str) -> list[str]:
    """Return the words of a stanza's field, empty where it has none."""
    found = re.search(rf"^{name}:((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE | re.IGNORECASE)
    return found[1].split() if found else []


def servers(text: str) -> set[str]:
    """Return the host names in the URIs of deb822 text."""
    uris = [uri for stanza in text.split("\n\n") for uri in field(stanza, "URIs")]
    return {name for uri in uris if (name := urlsplit(uri).hostname)}


def keyrings(text: str) -> list[Path]:
    """Return the key files that the sources are signed by."""
    words = [word for stanza in text.split("\n\n") for word in field(stanza, "Signed-By")]
    return [Path(word) for word in words if word.startswith("/")]


def acquire_settings() -> str:
    """Return how this machine's apt fetches where it departs from apt's defaults.

    A mirror with old dates, say, needs Acquire::Check-Valid-Until "false" inside the hosts as well.
    Only these lines are taken: other settings name programs that hosts do not have, and additional
    indexes serve desktops.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as empty:
        empty.write('Dir::Etc::main "/nonexistent"; Dir::Etc::parts "/nonexistent";\n')
        empty.flush()
        default = set(_dump(dict(os.environ, APT_CONFIG=empty.name)))
    lines = [line for line in _dump(dict(os.environ)) if line not in default]
    wanted = [line for line in lines if re.match("Acquire::(?!IndexTargets)", line)]
    return "".join(f"{line}\n" for line in wanted)


def _dump(environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        ["apt-config", "dump"], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def _texts(etc: Path, suffix: str) -> list[str]:
    files = [etc / "sources.list"] if suffix == "list" else []
    files += sorted((etc / "sources.list.d").glob(f"*.{suffix}"))
    return [file.read_text() for file in files if file.exists()]


def _from_one_line(line: str) -> str | None:
    found = _ONE_LINE.fullmatch(line)
    if not found:
        return None
    lines = ["Types: deb", f"URIs: {found['uri']}", f"Suites: {found['suite']}"]
    if found["components"].strip():
        lines.append(f"Components: {found['components'].strip()}")
    for option in (found["options"] or "").split():
        name, _, value = option.partition("=")
        lines.append(f"{_FIELD_OF_OPTION.get(name, name.title())}: {value.replace(',', ' ')}")
    return "\n".join(lines)


def _without_comments(stanza: str) -> str:
    return "\n".join(line for line in stanza.splitlines() if line and not line.startswith("#"))


def _is_debian(stanza: str) -> bool:
    return (
        "deb" in field(stanza, "Types")
        and field(stanza, "Enabled") != ["no"]
        and any(suite.startswith(SUITE) for suite in field(stanza, "Suites"))
        and all(uri.startswith(("http://", "https://")) for uri in field(stanza, "URIs"))
    )
