"""adalora-run on SQuAD: windows, not rows, make T; bad rows."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, only_run
from task_configs import write_jsonl

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK

WINDOWS = ["task.max_length=112", "task.stride=16"]
CONTEXT = "Rollo led the Normans to France. " * 2
ROW = {"id": "a", "question": "Who led?", "context": CONTEXT, "answers": {"text": ["Rollo"], "answer_start": [0]}}


def local_rows(rows: dict[str, list[Any]]) -> list[str]:
    for split in ("train", "validation"):
        write_jsonl(Path("data") / "squad_v2" / f"{split}.jsonl.gz", rows.get(split, [ROW]))
    return ["task=squad_v2", "budget=0.08%", "method=lora", "data=local", "data.dir=data", *WINDOWS]


def test_windows_make_the_steps_of_an_epoch(tiny: Cli) -> None:
    words = ("task=squad_v2", *WINDOWS, "data.sample_rows=24", "method=adalora", "budget=0.08%")
    done = tiny(*words, "train.max_steps=null", "train.epochs=2", "eval.max_examples=1")
    assert done.code == EXIT_OK, done.err
    record = only_run().record
    windows = record.data["windows"]["train"]
    steps = 2 * -(-windows // 8)
    assert windows > 24
    assert record.key["total_steps"] == record.final["step"] == record.progress["total_steps"] == steps
    assert len(only_run().steps) == steps // 2
    assert only_run().steps[-1]["lr"] == 0
    assert f"{windows:,} training examples, {steps // 2:,} steps an epoch, T = {steps:,}" in done.err


def test_bad_rows_stop_a_run_or_are_counted(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that show themselves in the file, and those that show themselves when they are tokenized."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, in whose place a run has stderr
    elsewhere = ROW | {"id": "elsewhere", "answers": {"text": ["Rollo"], "answer_start": [1]}}
    long = ROW | {"id": "long", "question": "q" * 94}
    done = tiny(*local_rows({"train": [ROW, long]}), "method.schedule=absolute")  # which has a note of the warm-up
    assert (done.code, done.err.count("\n")) == (EXIT_BAD_INPUT, 1), done.err
    assert "id 'long': the question has 94 tokens" in done.err
    assert done.err.endswith("; data.skip_invalid=true leaves such rows out\n")
    command = local_rows({"train": [ROW, long, elsewhere], "validation": [ROW, elsewhere]})
    done = tiny(*command)
    assert (done.code, done.out) == (EXIT_BAD_INPUT, "")
    assert done.err == (
        "adalora-run: error: data/squad_v2/train.jsonl.gz:3: id 'elsewhere': the answer 'Rollo' is not at its offset "
        "1, there is 'ollo '; data.skip_invalid=true leaves such rows out\n"
    )
    assert [path.name for path in Path().iterdir()] == ["data"]
    for results in ("first", "second"):  # the second reads the cache
        done = tiny(*command, "data.skip_invalid=true", "train.max_steps=1", f"results.dir={results}")
        assert done.code == EXIT_OK, done.err
        train, validation = (line for line in done.err.splitlines() if "left out" in line)
        assert train.startswith("squad_v2 train: 2 bad row(s) left out (data.skip_invalid=true): data/squad_v2/train")
        record = only_run(results).record
        assert record.data["skipped"] == {"train": 2, "validation": 1}
        assert record.data["rows"] == {"train": 1, "validation": 1}
        skipped = json.loads((only_run(results).folder / "skipped.json").read_text(encoding="utf-8"))
        assert validation.endswith("; ".join(skipped["validation"]))
        assert "squad_v2 train: id 'long': the question has 94 tokens" in skipped["train"][1]
