"""What a text file is for, by its name and, where names vary, by its contents."""

import re
from pathlib import PurePosixPath
from typing import Literal

Category = Literal[
    "python",
    "requirements",
    "lock",
    "toml",
    "setup_cfg",
    "env",
    "yaml",
    "systemd",
    "cron",
    "shell",
    "script",
    "dockerfile",
    "document",
    "other",
]

_DOCUMENT_SUFFIXES = {".md", ".rst", ".adoc", ".html", ".htm", ".tex", ".log", ".markdown", ".docs"}
_LOCKS = {"poetry.lock", "uv.lock", "pdm.lock", "pipfile.lock"}
_REQUIREMENTS = re.compile(r"(^|[-_.])(requirements?|constraints?)([-_.]|$)")
_ENV_NAME = re.compile(r"(^|[-_.])env([-_.]|$)")
_ENV_LINE = re.compile(r"\s*(#.*|(export\s+)?[A-Za-z_][A-Za-z0-9_]*\s*=.*)?")
_SHEBANG_SHELL = re.compile(r"#!.*\b(ba|da|z|k)?sh\b")
_UNIT_SECTION = re.compile(r"^\[(Unit|Service|Timer|Install)\]", re.MULTILINE)
_CRON_LINE = re.compile(r"^\s*(@\w+|([\d*/,-]+\s+){4}[\w*/,-]+)\s+\S", re.MULTILINE)
_INSTRUCTION = re.compile(r"^FROM\s+\S+", re.MULTILINE | re.IGNORECASE)


def category(path: str, text: str) -> Category:  # noqa: PLR0911, PLR0912 (a table as conditions)
    pure = PurePosixPath(path)
    name, suffix, folders = pure.name.lower(), pure.suffix.lower(), set(pure.parts[:-1])
    if suffix in (".py", ".pyw", ".pyi") or re.match(r"#!.*\bpython", text):
        return "python"
    if name in _LOCKS:
        return "lock"
    if name == "pipfile" or suffix == ".toml":
        return "toml"
    if name in ("setup.cfg", "tox.ini"):
        return "setup_cfg"
    if re.search(r"(^|[-_.])(dockerfile|containerfile)([-_.]|$)", name):
        return "dockerfile"
    if suffix in (".yml", ".yaml"):
        return "yaml"
    in_requirements = "requirements" in folders and suffix in (".txt", ".in")
    if in_requirements or (_REQUIREMENTS.search(name) and suffix in (".txt", ".in", ".pip")):
        return "requirements"
    if suffix in (".sh", ".bash", ".zsh", ".ksh") or _SHEBANG_SHELL.match(text):
        return "shell"
    if suffix in (".service", ".timer", ".socket") or (
        suffix == ".conf" and any(folder.endswith((".service.d", ".timer.d")) for folder in folders)
    ):
        return "systemd"
    if name.startswith("crontab") or suffix == ".cron" or any("cron" in each for each in folders):
        return "cron"
    if suffix in (".bat", ".cmd", ".ps1", ".mk") or name in ("makefile", "jenkinsfile", "justfile"):
        return "script"
    if suffix in _DOCUMENT_SUFFIXES:
        return "document"
    if _ENV_NAME.search(name) or suffix == ".env":
        return "env"
    return _by_contents(suffix, text)


def _by_contents(suffix: str, text: str) -> Category:
    """Of files whose names say nothing: an env file may be called anything."""
    if suffix not in ("", ".txt", ".conf", ".cfg", ".example", ".sample", ".local", ".production"):
        return "other"
    lines = text.splitlines()
    if any("=" in line for line in lines) and all(_ENV_LINE.fullmatch(line) for line in lines):
        return "env"
    if _UNIT_SECTION.search(text):
        return "systemd"
    if suffix == "" and _INSTRUCTION.search(text):
        return "dockerfile"
    if suffix == "" and _CRON_LINE.search(text):
        return "cron"
    return "document" if suffix in ("", ".txt") else "other"
