"""A run that is asked to stop while it evaluates: the evaluation gives way and is made when the run goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, Run, only_run, predictions, require_same

from adalora_repro.errors import EXIT_OK, EXIT_TERMINATED
from adalora_repro.tasks import glue
from adalora_repro.training import checkpoint, evaluate, progress
from adalora_repro.training import loop as training_loop

Cli = Callable[..., Outcome]
Whole = Callable[..., Run]
COMMAND = (
    "task=cola",
    "method=adalora",
    "train.max_steps=6",
    "train.eval_steps=3",
    "train.save_steps=100",
    "eval.batch_size=8",  # four batches
)


def stop_in(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """SIGTERM while the batch with this number is predicted, counted over all evaluations; returns the count."""
    calls = [0]
    predict = glue.Task.predict

    def signalled(self: glue.Task, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, *args)

    monkeypatch.setattr(glue.Task, "predict", signalled)
    return calls


@pytest.mark.parametrize(
    ("call", "step", "more"),
    [
        pytest.param(2, 3, [], id="between"),
        pytest.param(6, 6, [], id="the last one"),
        pytest.param(2, 3, ["train.compile=aot_eager", "train.precision=bf16"], id="compiled", marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_that_takes_long_gives_way(
    tiny: Cli, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch, call: int, step: int, more: list[str]
) -> None:
    expected = undisturbed(*COMMAND, *more)
    with monkeypatch.context() as patch:
        calls = stop_in(patch, call)
        stopped = tiny(*COMMAND, *more)
        assert calls == [call]
    assert stopped.code == EXIT_TERMINATED
    run = only_run()
    assert (run.record.status, run.record.progress["step"]) == ("cancelled", step)
    assert run.record.final is None
    again = tiny(*COMMAND, *more)
    assert again.code == EXIT_OK
    assert f"at step {step} of 6" in again.err
    require_same(run, expected)
    assert {Path(name).parent.name for name in predictions(run)} == {"best", "final"}


class KilledError(BaseException):
    """Nothing in a run expects it, as nothing sees a SIGKILL."""


@pytest.mark.parametrize(("call", "step"), [(2, 3), (8, 6)], ids=["between", "the last one"])
def test_a_kill_in_a_long_evaluation_costs_no_step(
    tiny: Cli, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch, call: int, step: int
) -> None:
    expected = undisturbed(*COMMAND)  # which is none, and saves nothing
    monkeypatch.setattr(evaluate, "LONG_EVALUATION", 4)
    predict, calls = glue.Task.predict, [0]

    def killed(self: glue.Task, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KilledError
        return predict(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(glue.Task, "predict", killed)
        with pytest.raises(KilledError):
            tiny(*COMMAND)
    (path,) = Path("results").rglob("checkpoint.pt")
    state, problems = checkpoint.load(path.parent, expected.record.key["hash"])
    assert state is not None
    assert (state["t"], state["loop"]["evaluation_due"], problems) == (step, True, [])
    again = tiny(*COMMAND)
    assert again.code == EXIT_OK, again.err
    assert f"resuming {path.parent} at step {step} of 6" in again.err
    require_same(only_run(), expected)


def test_nothing_is_saved_before_the_first_step(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_in(patch, 1)
        assert tiny(*COMMAND, "eval.untrained=true").code == EXIT_TERMINATED
    run = only_run()
    assert run.record.status == "cancelled"
    assert not list(run.folder.glob("*.pt"))
    assert tiny(*COMMAND, "eval.untrained=true").code == EXIT_OK
    assert run.log[0]["t"] == 0


def test_steps_renew_the_record_by_the_clock(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only those that are logged, evaluated or saved, which may be an hour apart."""
    monkeypatch.setattr(progress, "HEARTBEAT_S", -1.0)
    seen = []
    step = training_loop.step

    def watched(*args: Any) -> Any:
        seen.append(only_run().record)
        return step(*args)

    monkeypatch.setattr(training_loop, "step", watched)
    assert tiny(*COMMAND, "train.log_steps=100", "train.eval_steps=100").code == EXIT_OK
    assert [record.progress["step"] for record in seen] == [0, 1, 2, 3, 4, 5]
    spent = [record.time["train_s"] for record in seen]
    assert spent == sorted(set(spent))  # for the time that is left
    assert [line["t"] for line in only_run().steps] == [6]
