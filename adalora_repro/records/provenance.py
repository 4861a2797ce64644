"""The environment of a run: part of every record, never of its identity."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro import __version__
from adalora_repro.records.run_record import GPU_MEMORY

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "hydra-core", "tokenizers", "numpy")
CPUINFO = Path("/proc/cpuinfo")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads and the state of the source tree."""
    import torch

    ours = _git("ls-files", "--error-unmatch", "__init__.py") is not None  # not one that merely contains .venv
    commit = _git("rev-parse", "HEAD") if ours else None
    dirty = _git("status", "--porcelain", "--", ".", "../conf", "../sweeps") if ours else None  # records do not count
    processor = _value(CPUINFO, "model name") or platform.processor() or platform.machine()
    return {
        "versions": {"adalora-repro": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "git": {"commit": commit, "dirty": None if dirty is None else bool(dirty)},
    }


def reset_peak_memory() -> None:
    """Resets the peak, because the runs of a sweep share a process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Bytes: the CUDA allocator's peak, or the process's peak resident set on a CPU."""
    import torch

    if device.type == "cuda":
        return {"peak": torch.cuda.max_memory_allocated(device), "of": GPU_MEMORY}
    status = _value(Path("/proc/self/status"), "VmHWM:")  # in kB, as ru_maxrss is except on macOS
    peak = int(status.split()[0]) if status else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": peak * (1 if sys.platform == "darwin" else 1024), "of": "resident set"}


def _value(path: Path, *names: str) -> str | None:
    """The first value with one of these names in a file of ``/proc``; None if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), None)


def has_bf16_instructions(cpuinfo: Path = CPUINFO) -> bool | None:
    """Whether this CPU multiplies matrices in bf16 (AVX512-BF16, AMX, Arm's BF16); None if Linux does not tell."""
    features = _value(cpuinfo, "flags", "Features")
    return None if features is None else not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features.split())


def _git(*arguments: str) -> str | None:
    """Output of git in this package's checkout; None outside one."""
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
