"""Builds the wheelhouse of a release: every wheel that a host's venv is installed from, offline.

A code identity is a digest of what goes in (daemon sources, pinned requirements, how llama.cpp is
compiled), so it is known before anything is built, in check mode too, and the same sources
never build twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent

# Pinned here alone: the daemon's metadata asks for the same version, and a test compares them.
LLAMA_VERSION = "0.3.36"
LLAMA_SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# One wheel for every x86_64 host: the CPU kernels are compiled for each instruction set and the
# best one is picked when the library is loaded. The vision library (LLAVA) is of no use here.
LLAMA_CMAKE_ARGS = (
    "-DGGML_NATIVE=OFF",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DLLAVA_BUILD=OFF",
    # The kernels belong beside libllama in the package; by default they would land in bin/.
    "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",
    "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib",
    "-DCMAKE_INSTALL_INCLUDEDIR=llama_cpp/include",
)
# Debian 12, the only system that the roles deploy to.
TARGET = ("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none")
TARGET_PLATFORMS = tuple(f"--platform=manylinux_2_{minor}_x86_64" for minor in range(17, 37))
TARGET_PLATFORMS += ("--platform=manylinux2014_x86_64",)


def cache_dir() -> Path:
    """Where built things are kept, outside the tree: $VISTRAL_CACHE or the XDG cache."""
    if chosen := os.environ.get("VISTRAL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vistral"


def llama_key() -> str:
    """Identity of the compiled wheel: version, source digest and compile options."""
    text = "\n".join((LLAMA_VERSION, LLAMA_SDIST_SHA256, *LLAMA_CMAKE_ARGS))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def source_files(root: Path = ROOT) -> list[Path]:
    """The files that a release's code consists of, in a fixed order."""
    package = root / "daemon"
    sources = (p for p in (package / "src").rglob("*") if p.is_file() and p.suffix != ".pyc")
    wanted = (p for p in sources if not any(part.endswith(".egg-info") for part in p.parts))
    described = [package / n for n in ("pyproject.toml", "requirements.in", "requirements.txt")]
    return sorted([*wanted, *described])


def code_id(root: Path = ROOT) -> str:
    """`<version>-<digest>` of the code; equal sources give equal ids on every controller."""
    digest = hashlib.sha256(llama_key().encode())
    for path in source_files(root):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    version = tomllib.loads((root / "daemon/pyproject.toml").read_text())["project"]["version"]
    return f"{version}-{digest.hexdigest()[:10]}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two builders of the same thing wait for each other instead of building twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    click.echo(text, err=True)


def pip(*args: str, **environment: str) -> None:
    command = (sys.executable, "-m", "pip", "--disable-pip-version-check", *args)
    result = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
        raise click.ClickException(f"pip {args[0]} failed:\n{tail}")


def compile_llama(sdist: Path, into: Path, log: Path) -> None:
    """Compiles the wheel, showing ninja's own step count.

    pip's cache of wheels knows nothing of CMAKE_ARGS and would hand out another build's wheel.
    """
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps"]
    process = subprocess.Popen(
        [*command, "--no-cache-dir", f"--wheel-dir={into}", str(sdist)],
        env=os.environ | {"CMAKE_ARGS": " ".join(LLAMA_CMAKE_ARGS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = -1
    assert process.stdout is not None  # noqa: S101 - told to be a pipe above
    with log.open("w") as record:
        for line in process.stdout:
            record.write(line)
            if step := re.match(r"\s*\[(\d+)/(\d+)\]", line):
                percent = 100 * int(step[1]) // int(step[2])
                if percent // 10 > shown // 10:
                    shown = percent
                    say(f"    compiling llama.cpp: {percent} % (step {step[1]} of {step[2]})")
    if process.wait() != 0:
        raise click.ClickException(
            f"compiling llama-cpp-python failed; see {log}. "
            "The compiler comes with: apt-get install build-essential cmake ninja-build"
        )


def llama_wheel() -> Path:
    """The compiled wheel of llama-cpp-python, built once into the cache.

    Raises click.ClickException when the source's digest or the compilation is wrong.
    """
    home = cache_dir() / f"llama-{LLAMA_VERSION}-{llama_key()}"
    with locked(home.with_name(home.name + ".lock")):
        if found := list(home.glob("*.whl")):
            return found[0]
        work = home.with_name(home.name + ".partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        say(f"==> Compiling llama-cpp-python {LLAMA_VERSION} (once, some 15 minutes on 2 cores)")
        pip(
            "download", "--no-deps", "--no-binary=:all:", "--no-build-isolation", f"--dest={work}",
            f"llama-cpp-python=={LLAMA_VERSION}",
        )  # fmt: skip
        sdist = next(work.glob("*.tar.gz"))
        found_digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
        if found_digest != LLAMA_SDIST_SHA256:
            raise click.ClickException(
                f"{sdist.name}: sha256 is {found_digest}, expected {LLAMA_SDIST_SHA256}; "
                "the package index served another file. Nothing was built."
            )
        compile_llama(sdist, work / "wheel", work / "build.log")
        home.parent.mkdir(parents=True, exist_ok=True)
        (work / "wheel").rename(home)
        shutil.rmtree(work)
        return next(home.glob("*.whl"))


def build(root: Path = ROOT) -> tuple[Path, bool]:
    """Builds the release's tar of wheels unless the cache has it; returns (tar, built)."""
    identity = code_id(root)
    tar = cache_dir() / "wheelhouse" / f"{identity}.tar"
    with locked(tar.with_suffix(".lock")):
        if tar.exists():
            return tar, False
        say(f"==> Building the wheelhouse of release {identity}")
        work = tar.with_suffix(".partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        shutil.copy(llama_wheel(), work)
        pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={work}", f"{root}/daemon")
        pip(
            "download", "--only-binary=:all:", "--no-deps", "--require-hashes", *TARGET,
            *TARGET_PLATFORMS, f"--dest={work}", f"--requirement={root}/daemon/requirements.txt",
        )  # fmt: skip
        part = tar.with_suffix(".part")
        with tarfile.open(part, "w") as archive:
            for wheel in sorted(work.glob("*.whl")):
                archive.add(wheel, arcname=wheel.name)
        part.rename(tar)
        shutil.rmtree(work)
        return tar, True


@click.command()
@click.option("--dry-run", is_flag=True, help="Print what would be built; build nothing.")
@click.option("--llama-only", is_flag=True, help="Only the llama-cpp-python wheel; print its path.")
def main(dry_run: bool, llama_only: bool) -> None:
    """Print, as JSON, the release's code id, its tar of wheels, and whether it was built now."""
    if llama_only:
        click.echo(llama_wheel())
        return
    tar = cache_dir() / "wheelhouse" / f"{code_id()}.tar"
    changed = not tar.exists()
    if not dry_run:
        tar, changed = build()
    click.echo(json.dumps({"code_id": code_id(), "tar": str(tar), "changed": changed}))


if __name__ == "__main__":
    main()
