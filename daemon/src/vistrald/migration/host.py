"""Facts about this host that a plan states; pure data, measured when it is written."""

import platform
import shutil
from pathlib import Path
from typing import Any

import psutil

CPUINFO = Path("/proc/cpuinfo")
SHOWN_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")


def host_facts(root: Path) -> dict[str, Any]:
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set(fields.get("flags", "").split())
    return {
        "name": platform.node(),
        "machine": platform.machine(),
        "cpu": fields.get("model name", "unknown"),
        "cores": len(psutil.Process().cpu_affinity()),
        "cpu_flags": [flag for flag in SHOWN_FLAGS if flag in flags],
        "memory_bytes": psutil.virtual_memory().total,
        "disk_free_bytes": shutil.disk_usage(root).free,
    }
