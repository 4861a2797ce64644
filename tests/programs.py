"""Python in processes of its own, with this project or with a copy of it that may be written to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from task_configs import ROOT

#: calls the programs one after the other, as if each had been typed: torch is imported once
CALLER = """
import importlib, json, sys
from hydra.core.global_hydra import GlobalHydra
for module, *words in json.load(sys.stdin):
    GlobalHydra.instance().clear()
    sys.argv = [module, *words]
    if code := importlib.import_module(f"adalora_repro.cli.{module}").main():
        sys.exit(f"{sys.argv}: exit code {code}")
    print(end=chr(0))
"""


def python(*words: str, project: Path = ROOT, **options: Any) -> subprocess.CompletedProcess[str]:
    """``python`` with these words and the modules of ``project``; what it prints is captured."""
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, encoding="utf-8", **options
    )


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False


def copy_project(folder: Path) -> None:
    for name in ("adalora_repro", "hydra_plugins", "conf", "sweeps"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def printed(project: Path, calls: list[list[str]]) -> list[str]:
    """What each of these calls prints in the folder of a copied project: ``["run", "task=cola"]`` for adalora-run."""
    done = python("-c", CALLER, project=project, cwd=project, input=json.dumps(calls))
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]
