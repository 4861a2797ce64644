"""Generated text: the columns of each data set, reproducible, disjoint, learnable and not by single words."""

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
def test_rows_are_good_distinct_and_follow_from_the_seed(task: str) -> None:
    rules = load_family(task_config(task))
    splits = {split: toy_text.generate(task, split, SIZES, seed=0) for split in SIZES}
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    everything = [row for rows in splits.values() for row in rows]
    assert [problem for row in everything if (problem := sources.row_problem(rules, row))] == []
    assert len(set(map(texts, everything))) == len(everything)  # no text is in two splits or twice in one
    if rules.has_ids:
        assert len({row["id"] for row in everything}) == len(everything)
    assert toy_text.generate(task, "validation", SIZES, seed=0) == splits["validation"]
    assert toy_text.generate(task, "validation", SIZES | {"train": 10}, seed=0) == splits["validation"]
    assert toy_text.generate(task, "validation", SIZES, seed=1) != splits["validation"]
    assert toy_text.generate(task, "train", SIZES | {"train": 10}, seed=0) == splits["train"][:10]


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


def test_some_questions_of_squad_2_have_no_answer() -> None:
    for task, bounds in {"squad": (0, 0), "squad_v2": (0.2, 0.5)}.items():
        rows = toy_text.generate(task, "train", SIZES, seed=0)
        assert bounds[0] <= sum(not row["answers"]["text"] for row in rows) / len(rows) <= bounds[1]


def test_impossible_wishes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"unknown task for data=sample 'wnli'.*; valid: mnli, sst2"):
        toy_text.generate("wnli", "train", SIZES, 0)
    with pytest.raises(InputError, match=r"data\.sample_validation_rows=0: the validation split"):
        toy_text.check("rte", {"train": 1, "validation": 0})
    monkeypatch.setitem(toy_text.MAKERS, "sst2", lambda rng: {"sentence": str(rng.randrange(5)), "label": 0})
    with pytest.raises(InputError, match="has about 5 different rows of sst2, not 9"):
        toy_text.generate("sst2", "train", {"train": 9}, 0)
