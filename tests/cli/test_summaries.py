"""adalora-run on XSum and CNN/DailyMail with tiny-bart: six methods, files, rows that are left out."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome, Run, only_run
from task_configs import REAL_DATA, needs_real_data, write_jsonl

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.metrics import rouge
from adalora_repro.tasks import toy_text

Cli = Callable[..., Outcome]
#: by default one that prunes and one that adds modules; the others on BART: tests/unit/test_methods.py
SLOW = ("bitfit", "full", "lora", "pfeiffer")
METHODS = ["adalora", "houlsby", *(pytest.param(method, marks=pytest.mark.slow) for method in SLOW)]
#: tiny-bart with weights large enough to tell documents apart; T = 4
SMALL = (
    "task=xsum",
    "backbone=tiny-bart",
    "+backbone.architecture.init_std=0.2",
    "task.max_length=64",
    "task.max_target_length=16",
    "task.num_beams=2",
    "data.sample_rows=16",
    "data.sample_validation_rows=10",
    "train.batch_size=4",
    "train.max_steps=4",
    "optim.lr=1e-2",
)


@pytest.fixture
def summaries(tiny: Cli) -> Cli:
    """``tiny`` with the settings of ``SMALL``; a word given again wins."""

    def call(*words: str) -> Outcome:
        keys = {word.split("=")[0] for word in words}
        return tiny(*[word for word in SMALL if word.split("=")[0] not in keys], *words)

    return call


def predictions(run: Run, folder: str = "final") -> list[dict[str, Any]]:
    with gzip.open(run.folder / folder / "predictions.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def check_scores(run: Run, references: dict[str, str], folder: str = "final") -> list[dict[str, Any]]:
    """The kept predictions, scored again, are what the record says."""
    rows = predictions(run, folder)
    assert [row["id"] for row in rows] == list(references)
    scores = rouge.rouge_scores([row["prediction"] for row in rows], list(references.values()))
    for name in rouge.NAMES:
        assert [row[name] for row in rows] == scores[name]
    metrics = dict((run.record.final if folder == "final" else run.record.best)["metrics"])  # type: ignore[index]
    assert metrics.pop("written_tokens") > 0
    assert metrics == rouge.summarize(scores)
    for name in rouge.NAMES:
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    return rows


def sampled(rows: int = 10) -> dict[str, str]:
    made = toy_text.generate("xsum", "validation", {"train": 16, "validation": rows}, 0)
    return {row["id"]: row["summary"] for row in made}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_scored(summaries: Cli, method: str) -> None:
    done = summaries(f"method={method}", "budget=0.13%", "train.eval_steps=2")
    assert done.code == EXIT_OK, done.err
    run = only_run()
    assert run.folder.parts[1:5] == ("runs", "tiny-bart", "xsum", method)
    record = run.record
    assert record.status == "ok"
    assert record.primary_metric == "rouge2"
    assert record.key["budget"] == ("0.13%" if method not in ("full", "bitfit") else method)
    assert (record.final["step"], record.key["total_steps"]) == (4, 4)  # type: ignore[index]
    rows = check_scores(run, sampled())
    check_scores(run, sampled(), "best")
    assert len({row["prediction"] for row in rows}) > 1
    assert [line["t"] for line in run.log if "evaluation" in line] == [2, 4]
    assert all(np.isfinite(line["loss"]) for line in run.steps)
    # the console shows what the task is about, without intervals
    assert done.out.startswith("done: rouge1 ")
    assert "rouge1_low" not in done.out
    if method == "adalora":
        assert record.rank_pattern is not None
        assert sum(record.rank_pattern.values()) == record.budget["b_T"] == 32  # type: ignore[index]
    elif method == "lora":
        assert record.rank_pattern is not None
        assert set(record.rank_pattern.values()) == {1}
        assert len(record.rank_pattern) == 32
    else:
        assert record.rank_pattern is None


# Own files


def row(number: int, **changes: Any) -> dict[str, Any]:
    text = "Rain fell on the town. Two roads were closed until noon, the police said."
    return {
        "id": f"n{number}",
        "document": f"{number} days ago. {text}",
        "summary": f"{number} roads closed.",
    } | changes


def local(root: Path, train: list[Any], validation: list[Any] | None = None, name: str = "xsum") -> list[str]:
    write_jsonl(root / name / "train.jsonl.gz", train)
    write_jsonl(root / name / "validation.jsonl.gz", validation or [row(i) for i in range(4)])
    return ["data=local", f"data.dir={root}", f"task={name}"]


def test_bad_rows_are_left_out_on_demand(summaries: Cli, tmp_path: Path) -> None:
    bad = [row(2, document=""), row(2, summary=None), row(1)]  # n1 is there already
    words = local(tmp_path, [row(0), row(1), *bad, *(row(i) for i in range(20, 26))], [row(0), row(1, summary=None)])
    words += ["method=adalora", "budget=0.13%", "train.max_steps=null", "train.epochs=2", "train.batch_size=2"]
    refused = summaries(*words)
    assert refused.code == EXIT_BAD_INPUT
    assert refused.err == (
        f"adalora-run: error: {tmp_path / 'xsum' / 'train.jsonl.gz'}:3: id 'n2': the document is empty; "
        "data.skip_invalid=true leaves such rows out\n"
    )
    done = summaries(*words, "data.skip_invalid=true")
    assert done.code == EXIT_OK, done.err
    record = only_run().record
    assert record.data["skipped"] == {"train": 3, "validation": 1}
    assert record.data["rows"] == {"train": 8, "validation": 1}
    assert record.key["total_steps"] == record.final["step"] == 8  # type: ignore[index]
    assert "8 training examples, 4 steps an epoch, T = 8" in done.err
    skipped = json.loads((only_run().folder / "skipped.json").read_text(encoding="utf-8"))
    assert [len(skipped[split]) for split in ("train", "validation")] == [3, 1]
    assert [line["id"] for line in predictions(only_run())] == ["n0"]


# Real data


@needs_real_data
@pytest.mark.parametrize(("name", "column"), [("xsum", "summary"), ("cnn_dailymail", "highlights")])
def test_real_documents(summaries: Cli, tmp_path: Path, name: str, column: str) -> None:
    rows = {}
    for split, count in (("train", 8), ("validation", 5)):
        with gzip.open(REAL_DATA / name / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows[split] = [json.loads(line) for line in itertools.islice(file, count)]
    words = local(tmp_path, rows["train"], rows["validation"], name)
    options = ["task.max_length=512", "task.max_target_length=40", "train.max_steps=3"]
    done = summaries(*words, *options, "method=adalora", "budget=0.26%")
    assert done.code == EXIT_OK, done.err
    check_scores(only_run(), {line["id"]: line[column] for line in rows["validation"]})
