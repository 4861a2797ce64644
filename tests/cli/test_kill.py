"""Real processes, really killed: the same command goes on and ends with the record of an undisturbed run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, TINY, Outcome, Run, only_run, require_same

from adalora_repro.errors import EXIT_OK

#: by default test_faults.py kills in the middle of each write, test_run.py sends signals, and a golden run is killed
pytestmark = pytest.mark.slow
Cli = Callable[..., Outcome]
COMMAND = (
    *(word for word in TINY if not word.startswith("train.max_steps")),
    "task=cola",
    "method=adalora",
    "optim.lr=1e-2",
    "train.max_steps=12",
    "train.save_steps=2",
    "train.eval_steps=3",
)
PATIENCE_S = 180.0
#: adalora-run, but every step takes a while, so that the moment of a signal can be chosen
SLOWLY = """
import sys, time
from adalora_repro.training import loop
from adalora_repro.cli.run import main
step = loop.step
def slowly(run, batches):
    time.sleep(0.25)
    return step(run, batches)
loop.step = slowly
sys.exit(main())
"""


def start(cache: Path, command: tuple[str, ...] = COMMAND) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", SLOWLY, *command, f"data.cache_dir={cache}"]
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def wait_for_checkpoints(process: subprocess.Popen[str], count: int) -> None:
    """Returns right after the ``count``-th checkpoint appeared."""
    seen: set[int] = set()
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for path in Path("results").rglob("checkpoint.pt"):
            seen.add(path.stat().st_mtime_ns)
        if len(seen) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint number {count}")


def killed(cache: Path, checkpoints: int, command: tuple[str, ...] = COMMAND) -> tuple[subprocess.Popen[str], str]:
    """The process of a run that SIGKILL ended right after its ``checkpoints``-th checkpoint, and its standard error."""
    process = start(cache, command)
    try:
        wait_for_checkpoints(process, checkpoints)
    finally:
        process.kill()
        _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert only_run().record.status == "running"
    return process, err


def resumed_as_if_nothing_had_happened(tiny: Cli, words: tuple[str, ...] = COMMAND) -> None:
    again = tiny(*words)
    assert again.code == EXIT_OK, again.err
    assert re.search(r"^resuming results/", again.err, re.MULTILINE)
    assert tiny(*words, "results.dir=undisturbed").code == EXIT_OK
    require_same(only_run(), only_run("undisturbed"))


@pytest.mark.parametrize("checkpoints", [1, 4])
def test_sigkill_at_any_step_costs_nothing(tiny: Cli, tmp_path: Path, checkpoints: int) -> None:
    process, _ = killed(tmp_path / "cache", checkpoints)
    run: Run = only_run()
    assert run.record.progress["pid"] == process.pid
    assert run.record.final is None
    resumed_as_if_nothing_had_happened(tiny)
