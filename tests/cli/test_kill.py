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
from conftest import ROOT, TINY, Outcome, Run, find_runs, only_run

from adalora_repro.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED

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


def resumed_as_if_nothing_had_happened(tiny: Cli, words: tuple[str, ...] = COMMAND) -> bool:
    again = tiny(*words)
    assert again.code == EXIT_OK, again.err
    assert re.search(r"^resuming results/", again.err, re.MULTILINE)
    assert tiny(*words, "results.dir=undisturbed").code == EXIT_OK
    found, expected = only_run(), only_run("undisturbed")
    assert not list(found.folder.glob("*.pt"))
    assert not (found.folder / ".lock").exists()
    for name in ("final", "best"):
        files, wanted = sorted((found.folder / name).iterdir()), sorted((expected.folder / name).iterdir())
        assert [path.name for path in files] == [path.name for path in wanted] != []
        assert [path.read_bytes() for path in files] == [path.read_bytes() for path in wanted]
    return found.record.measured() == expected.record.measured() and found.log == expected.log


@pytest.mark.parametrize("checkpoints", [1, 4])
def test_sigkill_at_any_step_costs_nothing(tiny: Cli, tmp_path: Path, checkpoints: int) -> None:
    process, _ = killed(tmp_path / "cache", checkpoints)
    run: Run = only_run()
    assert run.record.progress["pid"] == process.pid
    assert run.record.final is None
    assert resumed_as_if_nothing_had_happened(tiny)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, EXIT_TERMINATED), (signal.SIGINT, EXIT_INTERRUPTED)])
def test_a_signal_ends_the_run_cleanly(tiny: Cli, tmp_path: Path, signum: int, code: int) -> None:
    process = start(tmp_path / "cache")
    try:
        wait_for_checkpoints(process, 1)
        process.send_signal(signum)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code
    record = find_runs()[0].record
    assert record.status == "cancelled"
    assert record.error == f"{signal.Signals(signum).name}: the same command resumes it"
    assert err.splitlines()[-1].startswith(f"adalora-run: cancelled: {record.error}")
    assert "Traceback" not in err
    assert 2 <= record.progress["step"] < 12
    assert resumed_as_if_nothing_had_happened(tiny)
