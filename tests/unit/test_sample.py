"""Generated text: the columns of each data set, reproducible, disjoint, learnable and not by single words."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from task_configs import TASKS, task_config

from adalora_repro.errors import InputError
from adalora_repro.tasks import load_family, sources, toy_text

SIZES = {"train": 300, "validation": 100, "validation_mismatched": 50}


def texts(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(value for name, value in row.items() if isinstance(value, str) and name not in ("id", "title"))


def test_every_task_has_text() -> None:
    assert sorted(toy_text.MAKERS) == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_rows_pass_the_checks_made_of_a_user_s_file(task: str) -> None:
    cfg = task_config(task)
    rules = load_family(cfg)
    for split in SIZES:
        rows = toy_text.generate(task, split, SIZES, seed=0)
        assert len(rows) == SIZES[split]
        assert [problem for row in rows if (problem := sources.row_problem(cfg.task.label_column, rules, row))] == []


@pytest.mark.parametrize("task", TASKS)
def test_no_text_is_in_two_splits_or_twice_in_one(task: str) -> None:
    everything = [texts(row) for split in SIZES for row in toy_text.generate(task, split, SIZES, seed=0)]
    assert len(set(everything)) == len(everything) == sum(SIZES.values())


@pytest.mark.parametrize("task", TASKS)
def test_rows_follow_from_the_seed_and_validation_from_nothing_else(task: str) -> None:
    validation = toy_text.generate(task, "validation", SIZES, seed=0)
    assert toy_text.generate(task, "validation", SIZES, seed=0) == validation
    assert toy_text.generate(task, "validation", SIZES | {"train": 10}, seed=0) == validation
    assert toy_text.generate(task, "validation", SIZES, seed=1) != validation
    train = toy_text.generate(task, "train", SIZES, seed=0)
    assert toy_text.generate(task, "train", SIZES | {"train": 10}, seed=0) == train[:10]


@pytest.mark.parametrize("task", ["mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc"])
def test_no_class_is_rare_and_single_words_do_not_decide(task: str) -> None:
    cfg = task_config(task)
    sizes = {"train": 1500, "validation": 400}

    def bags(split: str) -> tuple[list[str], list[int]]:
        rows = toy_text.generate(task, split, sizes, seed=0)
        marked = [
            " ".join(f"{column}={word.lower()}" for column in cfg.task.text_columns for word in row[column].split())
            for row in rows
        ]
        return marked, [row["label"] for row in rows]

    (train, labels), (validation, expected) = bags("train"), bags("validation")
    shares = [labels.count(label) / len(labels) for label in range(cfg.task.num_labels)]
    assert min(shares) > 0.6 / cfg.task.num_labels
    words = CountVectorizer(token_pattern=r"\S+")
    model = LogisticRegression(max_iter=1000).fit(words.fit_transform(train), labels)
    assert model.score(words.transform(validation), expected) < 0.85


def test_scores_cover_their_range() -> None:
    scores = [row["label"] for row in toy_text.generate("stsb", "train", {"train": 1000}, seed=0)]
    assert min(scores) < 0.5
    assert max(scores) == 5.0
    assert len(set(scores)) > 15


@pytest.mark.parametrize("task", ["squad", "squad_v2"])
def test_answers_are_at_their_offset(task: str) -> None:
    rows = toy_text.generate(task, "train", SIZES, seed=0)
    for row in rows:
        answers = row["answers"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
    unanswerable = sum(not row["answers"]["text"] for row in rows) / len(rows)
    assert unanswerable == 0 if task == "squad" else 0.2 < unanswerable < 0.5
    assert len({row["id"] for row in rows}) == len(rows)


def test_highlights_are_lines() -> None:
    rows = toy_text.generate("cnn_dailymail", "train", SIZES, seed=0)
    assert {row["highlights"].count("\n") for row in rows} == {2}


def test_impossible_wishes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"unknown task for data=sample 'wnli'.*; valid: mnli, sst2"):
        toy_text.generate("wnli", "train", SIZES, 0)
    with pytest.raises(InputError, match=r"data\.sample_validation_rows=0: the validation split"):
        toy_text.check("rte", {"train": 1, "validation": 0})
    monkeypatch.setitem(toy_text.MAKERS, "sst2", lambda rng: {"sentence": str(rng.randrange(5)), "label": 0})
    with pytest.raises(InputError, match="only about 5 different rows of sst2, 9 asked for"):
        toy_text.generate("sst2", "train", {"train": 9}, 0)
