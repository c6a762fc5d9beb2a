"""The files of an application that a scan looks at, and those that it leaves alone."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SKIPPED_FOLDERS = {
    *(".git", ".hg", ".svn", ".idea", ".tox", ".nox", ".cache", "__pycache__", "node_modules"),
    *("site-packages", "dist-packages", "vendor", "vendored", "third_party", "bower_components"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv", "venv", "llama.cpp"),
}
BINARY_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".ico", ".bmp", ".svgz", ".pdf", ".docx", ".xlsx"),
    *(".zip", ".gz", ".xz", ".bz2", ".zst", ".7z", ".tar", ".whl", ".jar", ".so", ".a", ".o"),
    *(".pyc", ".pyo", ".pyd", ".dll", ".exe", ".bin", ".pt", ".pth", ".onnx", ".npy", ".npz"),
    *(".safetensors", ".parquet", ".db", ".sqlite", ".sqlite3", ".mp3", ".mp4", ".wav", ".ttf"),
    *(".woff", ".woff2", ".eot", ".otf", ".faiss", ".pkl"),
}
# A dump or a log of this size is data; what depends on a model is written by people.
LARGEST_TEXT_BYTES = 4 * 2**20
HEAD_BYTES = 1024
# As bytes of lower-case text: the names, Russian spelling in UTF-8 and in Windows-1251.
TRACES = (
    *(b"saiga", b"llama_cpp", b"llama-cpp", b"llama.cpp", b".gguf", b"<bot>", b"configure_model"),
    *("айг".encode(), "айг".encode("cp1251")),
)


@dataclass
class Tree:
    texts: dict[str, bytes] = field(default_factory=dict)  # files with a trace of the old model
    models: dict[str, int] = field(default_factory=dict)  # *.gguf and their bytes
    links: dict[str, str] = field(default_factory=dict)  # symbolic links and their targets
    names: set[str] = field(default_factory=set)  # every regular file
    not_read: dict[str, str] = field(default_factory=dict)  # and why
    skipped: list[str] = field(default_factory=list)  # folders


def read_tree(root: Path) -> Tree:
    """Walks `root` without following symbolic links. Raises NotADirectoryError."""
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a directory; name the application's own folder")
    tree = Tree()
    for entry, path, models_only in _walk(str(root), "", tree, False):
        if entry.is_symlink():
            tree.links[path] = os.readlink(entry.path)  # noqa: PTH115 (50,000 files: strings)
        elif entry.name.lower().endswith(".gguf"):
            tree.names.add(path)
            tree.models[path] = entry.stat(follow_symlinks=False).st_size
        elif not models_only:
            tree.names.add(path)
            _read(entry.path, path, tree)
    return tree


def _walk(
    folder: str, prefix: str, tree: Tree, models_only: bool
) -> Iterator[tuple["os.DirEntry[str]", str, bool]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        tree.not_read[prefix.rstrip("/") or "."] = error.strerror or str(error)
        return
    for entry in entries:
        path = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            if entry.name in SKIPPED_FOLDERS or _is_venv(entry.path):
                tree.skipped.append(path)
                # llama.cpp's own sources are vendored, the models beside them are the old model's.
                if entry.name == "llama.cpp":
                    yield from _walk(entry.path, f"{path}/", tree, True)
            else:
                yield from _walk(entry.path, f"{path}/", tree, models_only)
        elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
            yield entry, path, models_only
        # Sockets, pipes and devices hold no text.


def _is_venv(folder: str) -> bool:
    return os.path.lexists(f"{folder}/pyvenv.cfg")


def _read(full: str, path: str, tree: Tree) -> None:
    if os.path.splitext(path)[1].lower() in BINARY_SUFFIXES:  # noqa: PTH122
        return
    try:
        descriptor = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.fstat(descriptor).st_size
            data = os.read(descriptor, min(size, HEAD_BYTES))
            if b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
                return
            if size > LARGEST_TEXT_BYTES:
                tree.not_read[path] = f"{size} bytes of text, the limit is {LARGEST_TEXT_BYTES}"
                return
            while len(data) < size and (more := os.read(descriptor, size - len(data))):
                data += more
        finally:
            os.close(descriptor)
    except OSError as error:
        tree.not_read[path] = error.strerror or str(error)
        return
    if has_trace(data) or has_trace(path.encode(errors="surrogateescape")):
        tree.texts[path] = data


def has_trace(data: bytes) -> bool:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.replace(b"\0", b"")
    lower = data.lower()
    return any(trace in lower for trace in TRACES)
