"""The application that is migrated, with what git cannot keep, and pictures of a tree."""

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

APPLICATION = Path(__file__).parent / "application"
OLD_TIME = 1_600_000_000_123_456_789  # ns
MODEL = b"GGUF\x03\0\0\0" + b"\0" * 5000


def build_application(root: Path) -> Path:
    """A copy of tests/migration/application with encodings, models, links, modes and times."""
    shutil.copytree(APPLICATION, root, ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".env.docker").write_bytes(b"\xef\xbb\xbfSAIGA_N_CTX=8192\r\nDEBUG=1\r\n")
    (root / "env.windows").write_bytes("# Модель\r\nSAIGA_N_CTX=8192\r\n".encode("cp1251"))
    (root / "backend/requirements-win.txt").write_bytes(
        b"\xff\xfe" + "fastapi\r\nllama-cpp-python==0.2.20\r\nhttpx\r\n".encode("utf-16-le")
    )
    (root / "models").mkdir()
    (root / "models/saiga_mistral_7b_q4_K.gguf").write_bytes(MODEL)
    (root / "models/current.gguf").symlink_to("saiga_mistral_7b_q4_K.gguf")
    (root / "embeddings").mkdir()
    (root / "embeddings/e5.gguf").write_bytes(MODEL)
    (root / "saiga_outside").symlink_to("/etc")
    (root / "loop").symlink_to(".")
    (root / "node_modules/llama-cpp").mkdir(parents=True)
    (root / "node_modules/llama-cpp/index.py").write_text("import llama_cpp\n")
    (root / "logo.png").write_bytes(b"saiga\0llama_cpp")
    (root / "blob").write_bytes(b"llama_cpp\0\1\2")
    (root / "configure_model.sh").chmod(0o755)
    (root / ".env").chmod(0o600)
    with suppress(OSError):  # a file system without extended attributes
        os.setxattr(root / ".env", "user.origin", b"admin")
        os.setxattr(root / "configure_model.sh", "user.origin", b"vendor")
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            os.utime(Path(folder) / name, ns=(OLD_TIME, OLD_TIME), follow_symlinks=False)
        os.utime(folder, ns=(OLD_TIME, OLD_TIME))
    return root


def picture(root: Path) -> dict[str, Any]:
    """Everything of a tree that a rollback restores, by path."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [".", *folders, *files]:
            path = Path(folder, name)
            info = path.lstat()
            entry: list[Any] = [stat.filemode(info.st_mode), info.st_uid, info.st_gid]
            if path.is_symlink():
                entry.append(path.readlink())
            else:
                attributes = {key: os.getxattr(path, key) for key in os.listxattr(path)}
                entry += [info.st_mtime_ns, attributes]
                if path.is_file():
                    entry.append(path.read_bytes())
            found[str(path.relative_to(root))] = entry
    return found
