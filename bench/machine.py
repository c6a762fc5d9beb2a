"""The machine a measurement was made on, as its report names it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

# Those that decide which kernels of llama.cpp run.
INSTRUCTION_SETS = ["avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"]
INSTRUCTION_SETS += ["amx_int8"]


@dataclass(frozen=True)
class Machine:
    processor: str
    instruction_sets: list[str]
    cores: int  # usable by this process
    memory: int  # bytes
    system: str
    kernel: str
    hypervisor: bool
    python: str
    date: str  # UTC, ISO 8601, to the minute

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        virtual = ", a virtual machine" if self.hypervisor else ""
        return (
            f"{self.processor} ({', '.join(self.instruction_sets)}), {self.cores} cores"
            f"{virtual}, {self.memory / 1e9:.1f} GB RAM, {self.system}, Linux {self.kernel}"
        )


def processor(cpuinfo: str) -> tuple[str, list[str]]:
    """Name and flags of the first processor in /proc/cpuinfo's text.

    Virtual machines hide the generation from the name, so family and model are added to it.
    """
    first, _, _ = cpuinfo.partition("\n\n")
    fields = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", first, re.MULTILINE))
    name = f"{fields['model name']}, family {fields['cpu family']} model {fields['model']}"
    return name, fields["flags"].split()


def memory(meminfo: str) -> int:
    """Bytes of RAM from /proc/meminfo's text."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if not found:
        raise ValueError("/proc/meminfo has no MemTotal")
    return int(found[1]) * 1024


def describe() -> Machine:
    name, flags = processor(Path("/proc/cpuinfo").read_text())
    return Machine(
        processor=name,
        instruction_sets=[each for each in INSTRUCTION_SETS if each in flags],
        cores=len(os.sched_getaffinity(0)),
        memory=memory(Path("/proc/meminfo").read_text()),
        system=platform.freedesktop_os_release()["PRETTY_NAME"],
        kernel=platform.release(),
        hypervisor="hypervisor" in flags,
        python=platform.python_version(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
