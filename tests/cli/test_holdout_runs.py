"""Runs with ``data.holdout``, and runs that make the same prediction for every example."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, find_runs, only_run
from task_configs import write_jsonl

from adalora_repro.errors import EXIT_OK
from adalora_repro.tasks import glue
from adalora_repro.tasks.base import Evaluation
from adalora_repro.training import evaluate
from adalora_repro.training import loop as training_loop


def test_the_best_checkpoint_is_that_of_the_held_out_split(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the reported split, which gets worse here while the held-out split improves until step 4."""
    figures = {2: (0.9, 0.5), 4: (0.8, 0.7), 6: (0.7, 0.6)}

    def evaluation(loop: training_loop.RunState, watch: Any) -> Evaluation:
        reported, held = figures[loop.t]
        return Evaluation({"accuracy": reported}, holdout={"accuracy": held} if loop.plan.cfg.data.holdout else None)

    monkeypatch.setattr(evaluate, "evaluate", evaluation)
    command = ("task=sst2", "method=lora", "train.eval_steps=2")
    done = tiny(*command, "data.holdout=4")
    assert done.code == EXIT_OK, done.err
    assert "; held out: accuracy 0.6000  (" in done.out
    assert only_run().record.best == {"metrics": {"accuracy": 0.8}, "holdout": {"accuracy": 0.7}, "step": 4}
    assert tiny(*command, "results.dir=without").code == EXIT_OK
    assert only_run("without").record.best == {"metrics": {"accuracy": 0.9}, "step": 2}


# -- a run that predicts the same for all examples


def test_one_class_for_all_examples_is_said_and_recorded(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = glue.Task.predict

    def one_class(self: glue.Task, model: Any, batch: Any) -> Any:
        found = predict(self, model, batch)
        return found | {"prediction": found["prediction"] * 0 + 1}

    with monkeypatch.context() as patch:
        patch.setattr(glue.Task, "predict", one_class)
        done = tiny("task=mnli", "method=lora", "data.holdout=15")
    assert done.code == EXIT_OK
    assert done.err.splitlines()[-1] == (
        "adalora-run: note: degenerate: the last evaluation gave every example the same prediction "
        "(validation_matched: class 1, validation_mismatched: class 1, holdout: class 1)"
    )
    assert only_run().record.degenerate is True


# -- data of the user's own


def test_the_same_rows_in_other_files_are_the_same_run(tiny: Cli) -> None:
    """A run that was filed when data were identified by their bytes is found, and new seeds join it."""
    from adalora_repro.tasks import sources

    rows = [{"sentence": f"a film {row}", "label": row % 2} for row in range(20)]
    for split in ("train", "validation"):
        write_jsonl(Path("own") / "sst2" / f"{split}.jsonl.gz", rows)
        write_jsonl(Path("plain") / "sst2" / f"{split}.jsonl", rows, compress=False)
    command = ("task=sst2", "method=lora", "data=local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "fingerprint", sources.byte_fingerprint)  # as it was
        assert tiny(*command, "data.dir=own").code == EXIT_OK
    (old,) = find_runs()
    assert old.record.settings["data.fingerprint"] == old.record.data["fingerprint"]
    done = tiny(*command, "data.dir=own")
    assert done.out.startswith(f"already done: {old.folder} ")
    assert tiny(*command, "data.dir=own", "seed=1").code == EXIT_OK
    assert {run.record.key["variant"] for run in find_runs()} == {old.record.key["variant"]}
    assert len(find_runs()) == 2

    elsewhere = (*command, "results.dir=new")
    assert tiny(*elsewhere, "data.dir=own").code == EXIT_OK
    assert only_run("new").record.key["variant"] != old.record.key["variant"]
    assert tiny(*elsewhere, "data.dir=plain").out.startswith("already done: ")

    for name in ("0", "z"):  # before and behind the run's own, in whatever order they are looked into
        (old.folder.parent / name).mkdir()
        os.mkfifo(old.folder.parent / name / "metrics.json")
        (old.folder.parent / f"{name}-folder" / "metrics.json").mkdir(parents=True)
    assert tiny(*command, "data.dir=own").out.startswith(f"already done: {old.folder} ")
