"""training/trackers.py: what log.jsonl says, trackers say too, and none of them can end a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import DEFAULTS

import adalora_repro
from adalora_repro.training.trackers import Trackers


class Counting:
    """A tracker that notes its calls and fails from one on."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls = fails, []

    def _call(self, name: str, *values: Any) -> None:
        self.calls.append((name, *values))
        if name == self.fails:
            raise OSError("no space\nleft")

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: Any) -> None:
        self._call("store", values)

    def log(self, values: Any, step: int) -> None:
        self._call("log", values, step)

    def finish(self) -> None:
        self._call("finish")


@pytest.mark.parametrize("fails", ["", "start", "store", "log", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_left_alone(
    fails: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from accelerate import tracking

    good, bad = Counting(), Counting(fails)
    made = {"Good": lambda: good, "Bad": lambda: bad}
    for name, maker in made.items():
        monkeypatch.setattr(tracking, name, maker, raising=False)
    trackers = Trackers()
    trackers.add("bad", "Bad", {}, {"lr": 1.0})
    trackers.add("good", "Good", {}, {"lr": 1.0})
    for t in (1, 2):
        trackers.log({"t": t, "loss": 0.5, "evaluation": {"accuracy": 1, "held_out": None}, "ranks": [1, 2]})
    trackers.finish()
    values = {"loss": 0.5, "evaluation/accuracy": 1.0}
    everything = [("start",), ("store", {"lr": 1.0}), ("log", values, 1), ("log", values, 2), ("finish",)]
    assert good.calls == everything
    ends = next((i for i, call in enumerate(everything) if call[0] == fails), len(everything))
    assert bad.calls == everything[: ends + 1]
    notes = capsys.readouterr().err
    assert notes == ("adalora-run: note: track=bad is switched off: OSError: no space left\n" if fails else "")


def test_tensorboard_has_the_curve_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = (*DEFAULTS, "method=adalora", "train.log_steps=2", "track=[tensorboard]", f"results.dir={tmp_path}")
    adalora_repro.run(*words, f"data.cache_dir={tmp_path / 'cache'}")
    (record,) = tmp_path.glob("runs/**/metrics.json")
    folder = record.parent
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("loss", "b_t", "lr"):
        logged = [(line["t"], line[name]) for line in lines if name in line]
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == [step for step, _ in logged]
        assert [value for _, value in shown] == pytest.approx([value for _, value in logged])
    assert "evaluation/accuracy" in events.Tags()["scalars"]
