"""What this machine has for localsft."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from localsft import __version__

PACKAGES = ("numpy", "tokenizers", "safetensors", "minijinja", "mlx", "mlx-lm", "huggingface_hub", "pip")


def examine() -> dict[str, Any]:
    """A flat report; sizes in bytes; ``problems`` are sentences, empty when a run would start."""
    import psutil

    from localsft.engine import physical_cores
    from localsft.models.cache import home

    memory = psutil.virtual_memory()
    problems: list[str] = []
    kernels, isa = _kernels(problems)
    cache = home()
    return {
        "localsft": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": f"{psutil.cpu_count(logical=False)} physical, {psutil.cpu_count()} logical",
        "threads_used": physical_cores(),
        "kernels": kernels,
        "gflops": _rates(),
        "kernel_used": isa,
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        "cache": str(cache),
        "cache_free_bytes": _free_space(cache, problems),
        "packages": {name: _version(name) for name in PACKAGES},
        "problems": problems,
    }


def _kernels(problems: list[str]) -> tuple[list[str], str]:
    try:
        from localsft import _core
    except ImportError as error:
        problems.append(f"the kernels can't be loaded ({error}); install localsft again, with a C++17 compiler")
        return [], ""
    try:
        return _core.available_isas(), _core.Context().isa
    except (RuntimeError, ValueError) as error:
        problems.append(f"LOCALSFT_ISA={os.environ.get('LOCALSFT_ISA', '')}: {error}")
        return _core.available_isas(), ""


def _rates() -> dict[str, int]:
    """GFLOP/s of each set of kernels on one thread, on registers alone: why ``kernel_used`` is what it is."""
    try:
        from localsft import _core
    except ImportError:
        return {}
    return {isa: round(rate / 1e9) for isa, rate in _core.isa_rates().items()}


def _free_space(cache: Path, problems: list[str]) -> int:
    """Bytes that the cache folder's disk has left; tries whether the folder can be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        problems.append(f"the cache folder {cache} can't be written ({error.strerror}); set LOCALSFT_HOME to another folder")
        return 0
    return shutil.disk_usage(cache).free


def processor_name() -> str:
    """What the processor calls itself, or the kind of machine where it can't be asked."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
