"""The held-out split: its rows, that none of them is trained on, and the identities that it is part of."""

import math
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from plans import resolved as planned
from task_configs import task_config, write_jsonl

from adalora_repro.config import dry_run
from adalora_repro.config import resolve as plan
from adalora_repro.errors import InputError
from adalora_repro.models import backbones
from adalora_repro.tasks import load_family, sources
from adalora_repro.tasks.base import TaskData
from adalora_repro.tasks.held_out import HOLDOUT, parts, size

NO_BAD = sources.BadRows(False)

pytestmark = pytest.mark.usefixtures("hydra")

# -- which rows


def texts_of(rows: list[int], texts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return sorted(texts[row] for row in rows)


ROWS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("uvwxyz"), st.integers(0, 2)), min_size=2)


@given(ROWS, st.data(), st.sampled_from([[0], [0, 1]]))
def test_groups_are_never_parted_and_the_order_of_the_file_does_not_matter(
    rows: list[tuple[str, str, int]], data: st.DataObject, by: list[int]
) -> None:
    words, strata = [row[:2] for row in rows], [row[2] for row in rows]
    changed = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    texts = [  # case, punctuation and, where both texts count, their order do not matter
        ((f" {a.upper()}!", b) if by == [0] else (b, f"{a}.")) if change else (a, b)
        for (a, b), change in zip(words, changed, strict=True)
    ]
    count = data.draw(st.integers(1, len(rows) - 1))
    held, trained = parts(texts, strata, by, count)
    assert len(trained) == len(rows) - count
    assert not set(held) & set(trained)
    group = [tuple(words[row][place] for place in by) for row in range(len(rows))]
    assert not {group[row] for row in held} & {group[row] for row in trained}
    assert len(held) <= count < len(held) + max(Counter(group).values())
    order = data.draw(st.permutations(range(len(rows))))
    again = parts([texts[row] for row in order], [strata[row] for row in order], by, count)
    assert texts_of([order[row] for row in again[0]], texts) == texts_of(held, texts)
    assert texts_of([order[row] for row in again[1]], texts) == texts_of(trained, texts)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=200), st.data())
def test_classes_keep_their_shares_to_less_than_a_row(strata: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(strata) - 1))
    held, _ = parts([(f"text {row}",) for row in range(len(strata))], strata, [0], count)
    assert len(held) == count
    shares = Counter(strata[row] for row in held)
    for stratum, rows in Counter(strata).items():
        assert abs(shares[stratum] - Fraction(count * rows, len(strata))) < 1


def test_a_fraction_is_rounded_to_rows() -> None:
    assert [size(wanted, 9) for wanted in (0.1, 0.3, 0.8, 1, 8)] == [1, 3, 7, 1, 8]


@pytest.mark.parametrize("wanted", [0, -1, 1.0, 2.5, math.nan, math.inf])
def test_neither_rows_nor_a_fraction(wanted: float) -> None:
    with pytest.raises(InputError, match=r"data\.holdout=.* must be a number of rows of the train split \(500\) or a"):
        size(wanted, 100)


# -- the splits of every task


SMALL = {"data__sample_rows": 40, "data__sample_validation_rows": 6}


def small(tmp_path: Path, task: str, holdout: float | None = 10, **options: Any) -> DictConfig:
    options = SMALL | {"data__cache_dir": str(tmp_path / "cache"), "data__holdout": holdout} | options
    if task in ("squad", "squad_v2"):
        options |= {"task__max_length": 112, "task__stride": 16}
    return task_config(task, **options)


def loaded(cfg: DictConfig) -> TaskData:
    return load_family(cfg).load(backbones.byte_tokenizer())


def inputs(rows: Dataset) -> Counter[tuple[int, ...]]:
    return Counter(tuple(ids) for ids in rows["input_ids"][:])


def content(rows: Dataset) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]


@pytest.mark.parametrize("task", ["mnli", "cola", "stsb", "squad_v2", "xsum"])
def test_held_out_rows_are_rows_of_train_that_are_not_trained_on(tmp_path: Path, task: str) -> None:
    whole, data = loaded(small(tmp_path, task, None)), loaded(small(tmp_path, task))
    assert set(data.evaluation) == {*whole.evaluation, HOLDOUT}
    held, trained = inputs(data.evaluation[HOLDOUT]), inputs(data.train)
    assert not held & trained
    rows = data.provenance["rows"]
    assert rows["train"] == 30
    assert 0 < rows[HOLDOUT] <= 10
    if task != "squad_v2":
        assert rows[HOLDOUT] == 10 == len(data.evaluation[HOLDOUT])
        assert held + trained == inputs(whole.train)
    for split in whole.evaluation:
        assert content(data.evaluation[split]) == content(whole.evaluation[split])
        assert data.evaluation[HOLDOUT].column_names == whole.evaluation[split].column_names


@pytest.mark.parametrize("task", ["squad_v2", "mnli"])
def test_rows_with_the_same_context_are_held_out_together(tmp_path: Path, task: str) -> None:
    """Real data have several rows for each; here three for each of eight, so that of 8 rows two groups are held out."""
    context = task_config(task).task.holdout_by[0]
    rows = sources.load_split(task_config(task, data__sample_rows=8), "train", load_family(task_config(task)), NO_BAD)
    train: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        for copy in range(3):
            other = next(name for name in row if name not in (context, "id", "label", "answers"))
            unique = {context: f"{row[context]} {number}", other: f"{row[other]} {number} {copy}"}
            train.append(row | unique | ({"id": f"{number} {copy}"} if "id" in row else {"label": copy % 2}))
    random.Random(0).shuffle(train)
    write_jsonl(tmp_path / task / "train.jsonl.gz", train)
    for split in task_config(task).task.validation.values():
        write_jsonl(tmp_path / task / f"{split}.jsonl.gz", train[:2])
    data = loaded(small(tmp_path, task, 8, data__source="local", data__dir=str(tmp_path)))
    assert (data.provenance["rows"][HOLDOUT], data.provenance["rows"]["train"]) == (6, 16)


def test_bad_rows_are_in_no_part_and_reported_once(tmp_path: Path) -> None:
    good = [{"sentence": f"a film {row}", "label": row % 2} for row in range(20)]
    bad = [{"sentence": "x", "label": 7}, "{broken"]
    write_jsonl(tmp_path / "sst2" / "train.jsonl.gz", [*good[:10], *bad, *good[10:]])
    write_jsonl(tmp_path / "sst2" / "validation.jsonl.gz", good[:4])
    local = {"data__source": "local", "data__dir": str(tmp_path), "data__skip_invalid": True}
    data = loaded(small(tmp_path, "sst2", 6, **local))
    assert data.provenance["rows"] == {"train": 14, "validation": 4, HOLDOUT: 6}
    assert data.provenance["skipped"] == {"train": 2}
    assert Counter(data.evaluation[HOLDOUT]["labels"]) == {0: 3, 1: 3}


def test_no_group_is_small_enough(tmp_path: Path) -> None:
    rows = [{"sentence": "the same", "label": row % 2} for row in range(9)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "sst2" / f"{split}.jsonl.gz", rows)
    with pytest.raises(InputError, match=r"data\.holdout=3: rows of sst2 with the same sentence are held out together"):
        loaded(small(tmp_path, "sst2", 3, data__source="local", data__dir=str(tmp_path)))


def test_the_name_of_the_split_is_taken() -> None:
    other = {"task__validation": {"": HOLDOUT}}
    load_family(task_config("sst2", **other))
    with pytest.raises(InputError, match=r"task\.validation: 'holdout' is reserved for the rows that data\.holdout"):
        load_family(task_config("sst2", data__holdout=3, **other))


# -- the plan


@pytest.mark.parametrize(("task", "rows"), [("cola", 8551), ("mnli", 392_702), ("xsum", 204_045)])
def test_t_is_made_from_the_rows_that_are_left(task: str, rows: int) -> None:
    """Of the hub's data before they are there."""
    found = planned(
        f"task={task}", "method=lora", f"budget={'0.13%' if task == 'xsum' else '0.3M'}", "data.holdout=0.1"
    )
    held = round(rows / 10)
    per_epoch = math.ceil((rows - held) / found.cfg.train.batch_size)
    assert found.cfg.data.holdout == found.settings["data.holdout"] == held
    assert (found.train_rows, found.steps_per_epoch) == (rows - held, per_epoch)
    assert found.total_steps == math.ceil(per_epoch * found.cfg.train.epochs)
    text = " ".join(dry_run.describe(plan.count(found)).split())
    assert f"held out {held:,} rows of the train split, evaluated and never trained on;" in text
    assert f"; {rows - held:,} remain for training" in text


def test_it_is_part_of_what_a_run_is() -> None:
    """With 10% of sample's 1,500 rows: the fraction and the number are one run, its seed and method change no row."""
    words = ["task=rte", "backbone=tiny-bert", "data=sample"]
    without, rows, fraction = (planned(*words, *more) for more in ((), ("data.holdout=150",), ("data.holdout=0.1",)))
    assert without.key["hash"] != rows.key["hash"] == fraction.key["hash"]
    assert "data.holdout" not in without.settings
    assert "task.holdout_by" not in without.asked
    assert list(rows.settings["task.holdout_by"]) == ["sentence1"]
    assert without.key["hash"] == planned(*words, "task.holdout_by=[]").key["hash"]  # without effect, no other run
    assert rows.key["hash"] != planned(*words, "data.holdout=150", "task.holdout_by=[]").key["hash"]
