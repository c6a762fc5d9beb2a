"""The machine that is surveyed, in its own words."""

import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import psutil

from vistrald.cgroup import memory_limit, memory_used, usable_cores
from vistrald.frameworks.findings import Host

# Those that decide which kernels run, in llama.cpp and in torch.
INSTRUCTION_SETS = ["avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"]
INSTRUCTION_SETS += ["amx_int8", "amx_bf16"]
RESERVE = 1_000_000_000  # bytes that a trial leaves to the host


def describe() -> Host:
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    flags = fields.get("flags", "").split()
    return Host(
        processor=fields.get("model name", "?"),
        instruction_sets=[each for each in INSTRUCTION_SETS if each in flags],
        machine=platform.machine(),
        system=platform.freedesktop_os_release()["PRETTY_NAME"],
        kernel=platform.release(),
        cores=usable_cores(),
        memory=psutil.virtual_memory().total,
        nvidia=Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists(),
        python=platform.python_version(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def memory_for_trials() -> int:
    """Bytes that a trial may take without driving the host, or its control group, into swap."""
    free = psutil.virtual_memory().available
    limit = memory_limit()
    if limit is not None:
        free = min(free, limit - (memory_used() or 0))
    return free - RESERVE
