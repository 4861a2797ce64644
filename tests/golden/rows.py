"""Small data sets whose rows never change: each follows from its number, without the generator of data=sample."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = ("ash", "bay", "cod", "dew", "elm", "fig", "gum", "hay")
Row = dict[str, Any]


def words(number: int, count: int) -> list[str]:
    """Different numbers below 512 give different lists of three words or more."""
    return [WORDS[(number // 8**k + 3 * k) % 8] for k in range(count)]


def cola(i: int) -> Row:
    return {"sentence": " ".join([("aaa", "zzz")[i % 2] * 4, *words(i, 2)]), "label": i % 2, "idx": i}


def mnli(i: int) -> Row:
    hypothesis = " ".join([("aaa", "mmm", "zzz")[i % 3] * 4, *words(i, 2)])
    return {"premise": " ".join(words(i, 2)), "hypothesis": hypothesis, "label": i % 3, "idx": i}


def stsb(i: int) -> Row:
    score = i % 6
    first = words(i, 5)
    second = first[:score] + ["zz"] * (5 - score)
    return {"sentence1": " ".join(first), "sentence2": " ".join(second), "label": float(score), "idx": i}


def squad_v2(i: int) -> Row:
    """A third of the questions has no answer."""
    context = words(i, 4 + i % 5)
    name, answer = f"{context[0]}{i}", context[2]
    text = " ".join([name, "saw", *context])
    has = i % 3 > 0
    answers = {"text": [answer] if has else [], "answer_start": [text.index(answer)] if has else []}
    return {
        "id": f"q{i}",
        "title": name,
        "context": text,
        "question": f"what saw {name}" if has else "who is x",
        "answers": answers,
    }


def xsum(i: int) -> Row:
    text = words(i, 6)
    return {"document": " ".join(text) + ".", "summary": f"ash {text[0]}.", "id": str(i)}


ROWS: dict[str, Callable[[int], Row]] = {f.__name__: f for f in (cola, mnli, stsb, squad_v2, xsum)}
SPLITS = {"mnli": ("train", "validation_matched", "validation_mismatched")}


def write(folder: Path, task: str, train: int = 64, validation: int = 32) -> None:
    """``folder/task/split.jsonl`` for each split of the task."""
    (folder / task).mkdir(parents=True)
    first = 0
    for split in SPLITS.get(task, ("train", "validation")):
        count = train if split == "train" else validation
        lines = [json.dumps(ROWS[task](i)) + "\n" for i in range(first, first + count)]
        (folder / task / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        first += count
