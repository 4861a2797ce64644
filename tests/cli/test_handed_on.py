"""SIGUSR2, by which a scheduler announces the end of a job: first a checkpoint, then whoever had a handler for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, Run, only_run, require_same
from test_stop import COMMAND

from adalora_repro.errors import EXIT_FAILED, EXIT_OK, EXIT_TERMINATED
from adalora_repro.records import lock
from adalora_repro.tasks import glue
from adalora_repro.training import loop as training_loop

Cli = Callable[..., Outcome]
REQUEUED = "SIGUSR2: goes on if its job is requeued; the same command resumes it"


class RequeuedError(SystemExit):
    """What submitit's handler ends the process with."""


@pytest.fixture
def handed() -> Iterator[list[dict[str, Any]]]:
    """A handler like submitit's; what it saw of the run when it was called."""
    seen: list[dict[str, Any]] = []

    def handler(signum: int, frame: Any) -> None:
        run = only_run()
        checkpoints = list(run.folder.glob("*.pt"))
        seen.append({"status": run.record.status, "saved": len(checkpoints), "held": lock.held(run.folder)})
        raise RequeuedError(255)

    before = signal.signal(signal.SIGUSR2, handler)
    yield seen
    assert signal.getsignal(signal.SIGUSR2) is handler
    signal.signal(signal.SIGUSR2, before)


def signalled(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """SIGUSR2 at the beginning of one call of ``owner.name``."""
    original, calls = getattr(owner, name), [0]

    def function(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(*args)

    monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [(training_loop, "step", 2, 2), (glue.Task, "predict", 2, 3)],
    ids=["step", "evaluation"],
)
def test_a_checkpoint_then_the_handler_then_on_as_if_nothing_had_happened(
    tiny: Cli,
    undisturbed: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    handed: list[dict[str, Any]],
    owner: Any,
    name: str,
    call: int,
    step: int,
) -> None:
    with monkeypatch.context() as patch:
        signalled(patch, owner, name, call)
        assert tiny(*COMMAND).code == 255  # the handler's
    assert handed == [{"status": "cancelled", "saved": 1, "held": False}]
    run = only_run()
    assert (run.record.error, run.record.progress["step"]) == (REQUEUED, step)
    again = tiny(*COMMAND)
    assert again.code == EXIT_OK
    assert f"at step {step} of 6" in again.err
    require_same(run, undisturbed(*COMMAND))


def test_before_the_first_step_it_goes_on_at_once(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from adalora_repro.training import runner

    seen = []
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.append(list(Path().rglob(".lock"))))
    try:
        signalled(monkeypatch, runner, "build", 1)
        stopped = tiny(*COMMAND)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert stopped.code == EXIT_TERMINATED  # of a handler that returns
    assert seen == [[]]


def test_a_run_that_fails_is_not_requeued(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, handed: list[dict[str, Any]]
) -> None:
    signalled(monkeypatch, training_loop, "step", 2)
    done = tiny(*COMMAND, "optim.lr=1e38")
    assert done.code == EXIT_FAILED, done.err
    assert only_run().record.status == "failed"
    assert handed == []
