"""Processes that make batches beside the step: the same batches, silent, and gone when the step is."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from programs import alive

from adalora_repro.models import backbones
from adalora_repro.tasks import processes
from adalora_repro.training import batches as batches_of_a_run
from adalora_repro.training.batches import FEW_BATCHES, WORKERS, loaded


def signals() -> tuple[list[Any], list[Any]]:
    return [signal.getsignal(s) for s in processes.SIGNALS], [*signal.pthread_sigmask(signal.SIG_BLOCK, [])]


@pytest.mark.parametrize("threads", [None, "true"])
def test_a_fork_is_silent_about_the_tokenizers_threads(
    threads: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(processes.TOKENIZER_THREADS, raising=False)
    if threads is not None:
        monkeypatch.setenv(processes.TOKENIZER_THREADS, threads)
    backbones.byte_tokenizer()(["Rollo led the Normans"] * 64)  # with threads, if it may
    before = signals()
    list(batches_of(2))
    assert signals() == before
    assert capfd.readouterr().err == ""
    assert os.environ.get(processes.TOKENIZER_THREADS) == threads
    if threads is None:  # what is true of the environment that Python shows is true of the one that Rust reads
        assert processes.TOKENIZER_THREADS not in subprocess.check_output(["env"], text=True, encoding="utf-8")


# Batches


def batches_of(workers: int, count: int = 5) -> Iterator[dict[str, Any]]:
    rows = Dataset.from_dict({"number": list(range(3 * count))})
    parts = [[3 * i, 3 * i + 2, 3 * i + 1] for i in range(count)]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = torch.tensor([row["number"] for row in rows])
        return {"number": numbers, "signals": signals(), "pid": os.getpid()}

    return loaded(rows, parts, collate, torch.device("cpu"), workers)


def test_batches_made_beside_the_step_are_the_same() -> None:
    one, several = list(batches_of(0)), list(batches_of(2))
    assert [batch["number"].tolist() for batch in one] == [batch["number"].tolist() for batch in several]
    assert {batch["pid"] for batch in one} == {os.getpid()}
    assert len({batch["pid"] for batch in several} - {os.getpid()}) == 2
    for batch in several:
        assert batch["signals"] == ([signal.SIG_IGN] * len(processes.SIGNALS), [])


def test_who_wants_no_more_batches_ends_the_workers() -> None:
    batches = batches_of(2, count=200)
    pids = [next(batches)["pid"] for _ in range(2)]
    began = time.monotonic()
    batches.close()
    assert not any(map(alive, pids))
    assert time.monotonic() - began < 4, "the loader waited in vain for five seconds and killed them"


@pytest.mark.parametrize(
    ("asked", "device", "batches", "usable", "workers"),
    [
        (None, "cpu", 10**6, 16, 0),
        (None, "cuda", FEW_BATCHES - 1, 16, 0),
        (None, "cuda", FEW_BATCHES, 16, WORKERS),
        (None, "cuda", 10**6, 1, 0),
        (3, "cpu", 1, 1, 3),
        (0, "cuda", 10**6, 16, 0),
    ],
)
def test_how_many_workers(
    asked: int | None, device: str, batches: int, usable: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adalora_repro.training.batches.usable", lambda: usable)
    monkeypatch.setattr(batches_of_a_run, "loaded", lambda *arguments: arguments[-1])
    loop: Any = SimpleNamespace(
        task=SimpleNamespace(collate=None),
        device=torch.device(device),
        plan=SimpleNamespace(cfg=SimpleNamespace(train=SimpleNamespace(num_workers=asked))),
    )
    assert batches_of_a_run.on_device(loop, Dataset.from_dict({}), range(batches), batches) == workers
