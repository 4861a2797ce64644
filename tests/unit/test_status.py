"""reports/status.py: what is running, dead, failed or missing."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compiled import compiled
from fake_records import make

from adalora_repro.records.lock import Lock
from adalora_repro.records.run_record import RunRecord
from adalora_repro.reports import status

NOW = 1_000_000.0


def running(**progress: Any) -> RunRecord:
    fields = {"step": 10, "total_steps": 110, "updated": NOW, "host": "here", "pid": 7}
    return make(status="running", progress=fields | progress)


@pytest.mark.parametrize(
    ("progress", "alive", "expected"),
    [
        ({}, True, "running"),
        ({}, False, "interrupted"),
        ({"host": "elsewhere"}, False, "running"),
        ({"host": "elsewhere", "updated": NOW - 601}, False, "interrupted"),
        ({"updated": NOW - 601}, True, "running"),  # a slow evaluation, but its process is there
        ({"updated": NOW - 599}, True, "running"),
        ({"updated": NOW - 599}, None, "running"),  # the lock is of an earlier boot
        ({"updated": NOW - 601}, None, "interrupted"),
    ],
)
def test_running_means_heard_of_and_alive(progress: dict[str, Any], alive: bool | None, expected: str) -> None:
    assert status.as_seen(Path("x"), running(**progress), NOW, "here", lambda folder: alive).status == expected
    for word in ("ok", "failed", "cancelled"):  # these are what they say
        ended = make(status=word, progress=running(**progress).progress)
        assert status.as_seen(Path("x"), ended, NOW, "here", lambda folder: alive).status == word


def test_a_run_of_this_host_lives_as_long_as_its_lock(tmp_path: Path) -> None:
    """Its process id says nothing: after a restart, or in a container, another process may have it."""
    path, record = tmp_path / "metrics.json", running(pid=os.getpid())
    assert status.as_seen(path, record, NOW, "here").status == "interrupted"
    lock = Lock(tmp_path)
    lock.take(print)
    assert status.as_seen(path, record, NOW + 601, "here").status == "running"
    lock.release()
    assert status.as_seen(path, record, NOW, "here").status == "interrupted"


def test_time_left() -> None:
    timed = replace(running(), time={"s_per_step": 2.0})
    cases = [(timed, 0, 200), (timed, 50, 150), (timed, -50, 200), (running(), 0, None)]  # -50: a clock was ahead
    cases += [(replace(timed, progress={"updated": NOW}), 0, None)]
    for record, later, left in cases:
        assert status.seconds_left(record, NOW + later) == left


def test_status_shows_each_state_once() -> None:
    records = [
        make(seed=0),
        make(seed=1),
        running(host="elsewhere"),
        make(status="failed", error="loss is nan\nTraceback", seed=3),
        make(status="cancelled", method="adalora"),
        make(task="rte", method="dora", status="failed", error="\x1b[31mred"),
        make(task="rte", method="lora_init_r", status="failed", error="out of memory"),
        make(task="sst2", status="queued", final=None),
    ]
    records[2].key["seed"], records[2].time = 2, {"s_per_step": 2.0}
    found = [(Path(f"r/{i}"), record) for i, record in enumerate(records)]
    text = status.render_status([compiled(records)], found, NOW, "here")
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["LoRA 0.3M"].split() == ["LoRA", "0.3M", ".", "q1", "2", "r1", "f1", ".", ".", ".", ".", "."]
    assert "c1" in lines["AdaLoRA 0.3M"]
    assert "f1" in lines["dora 0.3M"]
    assert text.startswith("0 of the paper's 96 cells are filled in the paper's setting")
    assert "1 of the paper's 96 cells done; 7 runs: 2 finished, 1 running, 1 queued, 2 failed, 1 cancelled" in text
    assert "cola lora 0.3M lr 1e-3 seed 2: step 10/110, about 3 min left" in text
    assert "loss is nan, see r\n" in text
    assert "In no table: 1 run: 1 failed; adalora-report runs shows the finished\n" in text
    assert "rte lora_init_r 0.3M lr 1e-3 seed 0: out of memory, see r\n" in text
    assert "Not in a cell" not in text  # that is for finished runs
    assert "Traceback" not in text
    assert "\x1b" not in text
