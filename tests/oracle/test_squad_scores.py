"""SQuAD's scores against a slow second reading of the rules: loops over characters, lists, all thresholds.

Figures are compared with ``==``: the official scripts are to be met to the last digit.
"""

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_configs import REAL_DATA, needs_real_data

from adalora_repro.metrics.squad import best_thresholds, normalize_answer, score_all, squad_metrics

References = Mapping[str, Sequence[str]]


# The second reading


def slow_tokens(text: str) -> list[str]:
    """The tokens of the normalized text, character by character.

    An article stands between word boundaries exactly when it is a longest run of word characters; it leaves a gap.
    """
    kept = [c for c in text.lower() if not (33 <= ord(c) <= 47 or 58 <= ord(c) <= 64 or 91 <= ord(c) <= 96)]
    kept = [c for c in kept if not 123 <= ord(c) <= 126]
    pieces, position = [], 0
    while position < len(kept):
        end = position
        while end < len(kept) and kept[end].isalnum():
            end += 1
        if end == position:
            pieces.append(kept[position])
            position += 1
        else:
            run = "".join(kept[position:end])
            pieces.append(" " if run in ("a", "an", "the") else run)
            position = end
    tokens, token = [], ""
    for character in "".join(pieces) + " ":
        if not character.isspace():
            token += character
        elif token:
            tokens.append(token)
            token = ""
    return tokens


def slow_pair(predicted: list[str], gold: list[str]) -> tuple[int, float]:
    """Exact match and F1 with one gold answer: every common token is crossed out of the gold ones."""
    same = predicted == gold
    if predicted == [] or gold == []:
        return int(same), int(same)
    left, common = list(gold), 0
    for token in predicted:
        if token in left:
            left.remove(token)
            common += 1
    if common == 0:
        return int(same), 0
    precision, recall = common / len(predicted), common / len(gold)
    return int(same), (2 * precision * recall) / (precision + recall)


def slow_scores(prediction: str | None, answers: Sequence[str]) -> tuple[int, float]:
    if prediction is None:
        return 0, 0
    golds = []
    for answer in answers:
        if slow_tokens(answer):
            golds.append(slow_tokens(answer))
    exact: int = 0
    f1: float = 0
    for gold in golds or [[]]:
        pair = slow_pair(slow_tokens(prediction), gold)
        exact = pair[0] if pair[0] > exact else exact
        f1 = pair[1] if pair[1] > f1 else f1
    return exact, f1


def slow_all(predictions: Mapping[str, str], references: References) -> dict[str, tuple[int, float]]:
    return {question: slow_scores(predictions.get(question), golds) for question, golds in references.items()}


def slow_metrics(scores: Mapping[str, tuple[int, float]], references: References) -> dict[str, float]:
    figures: dict[str, float] = {}
    groups = {
        "": list(references),
        "HasAns_": [question for question in references if len(references[question]) > 0],
        "NoAns_": [question for question in references if len(references[question]) == 0],
    }
    for prefix, questions in groups.items():
        if questions:
            figures[prefix + "exact"] = 100.0 * sum(scores[question][0] for question in questions) / len(questions)
            figures[prefix + "f1"] = 100.0 * sum(scores[question][1] for question in questions) / len(questions)
            figures[prefix + "total"] = len(questions)
    return figures


def slow_walk(
    part: int, answers: Mapping[str, str], odds: Mapping[str, float], references: References
) -> tuple[float, float]:
    """The official walk, every stop of it counted anew from the start: (percent, threshold)."""
    remaining, order = list(odds), []
    while remaining:  # a stable sort: the first of the smallest
        smallest = remaining[0]
        for question in remaining:
            smallest = question if odds[question] < odds[smallest] else smallest
        remaining.remove(smallest)
        order.append(smallest)
    stops = []
    for end in range(len(order) + 1):
        value: float = len([question for question in references if not references[question]])
        for question in order[:end]:
            golds = references[question]
            if golds:
                value += slow_scores(answers[question], golds)[part]
            elif answers[question] != "":
                value -= 1
        stops.append(value)
    best = stops.index(max(stops))
    return 100.0 * stops[best] / len(references), odds[order[best - 1]] if best else 0.0


# Predictions and answers of few words, so that many are near each other


WORDS = ["a", "an", "The", "the", "A.", "–a–", "the_", "Denver", "Broncos", "denver", "24–10", "$1,234.50", "3.5%"]
WORDS += ["Éire", "“golden", "O'Neill's", "rock–a–bye,", "theatre", "a\u0301", "İstanbul", "Straße", ".", "«", "^"]
BLANKS = [" ", " ", " ", "", "\t", "\n", "\u00a0", "\u2003", "\x1c", "\x85", "\u200b", "\u2028"]
words = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(BLANKS)), max_size=5)
texts = words.map(lambda pairs: "".join(word + blank for word, blank in pairs))
odd = st.text(
    alphabet=[*"aAnNtThHeE .,_-9", "–", "’", "é", "İ", "\u0301", "²", "\u00a0", "\x1c", "\u200b"], max_size=12
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[dict[str, list[str]], dict[str, str]]:
    """References and one prediction each, often one of the gold answers."""
    golds = draw(st.lists(st.lists(texts, max_size=3), min_size=1, max_size=10))
    references = {f"q{number}": answers for number, answers in enumerate(golds)}
    return references, {name: draw(st.sampled_from([*answers, draw(texts)])) for name, answers in references.items()}


@settings(max_examples=1000)
@given(text=st.one_of(texts, odd, st.text(max_size=15)))
def test_normalization(text: str) -> None:
    assert normalize_answer(text) == " ".join(slow_tokens(text))
    assert normalize_answer(normalize_answer(text) + " ") == " ".join(slow_tokens(" ".join(slow_tokens(text))))


@settings(max_examples=300)
@given(rows=questions(), gone=st.sets(st.integers(0, 9), max_size=2), extra=st.booleans())
def test_figures(rows: tuple[dict[str, list[str]], dict[str, str]], gone: set[int], extra: bool) -> None:
    references, predictions = rows
    predictions = {question: text for question, text in predictions.items() if int(question[1:]) not in gone}
    if extra:
        predictions["unknown"] = "x"
    expected = slow_all(predictions, references)
    scores = score_all(predictions, references)
    assert scores == expected
    assert list(scores) == list(references)
    figures = squad_metrics(predictions, references)
    assert figures == slow_metrics(expected, references)
    assert all(0 <= value <= 100 for name, value in figures.items() if not name.endswith("total"))


@settings(max_examples=250)
@given(rows=questions(), seed=st.integers(0, 10**6), step=st.sampled_from([0.2, 30.0]))
def test_thresholds(rows: tuple[dict[str, list[str]], dict[str, str]], seed: int, step: float) -> None:
    """Odds of which few are equal, and odds of which most are."""
    references, answers = rows
    draw = Random(seed)
    odds = {q: (draw.randrange(100) // step) * step - 10.1 for q in draw.sample(list(references), len(references))}
    figures = best_thresholds(answers | {"unknown": "z"}, odds | {"unknown": 0.0}, references)
    for part, name in enumerate(("exact", "f1")):
        expected = slow_walk(part, answers, odds, references)
        assert (figures[f"best_{name}"], figures[f"best_{name}_thresh"]) == expected


@needs_real_data
@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_real_answers(name: str) -> None:
    """Every question of the validation set, with a gold answer that lacks words: all scores and all figures."""
    with gzip.open(REAL_DATA / name / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        references = {row["id"]: row["answers"]["text"] for row in map(json.loads, file)}
    draw = Random(1)
    predictions = {
        question: " ".join(word for word in draw.choice(golds or ["", "x"]).split(" ") if draw.random() < 0.8)
        for question, golds in references.items()
        if draw.random() < 0.99
    }
    expected = slow_all(predictions, references)
    assert score_all(predictions, references) == expected
    figures = squad_metrics(predictions, references)
    assert figures == slow_metrics(expected, references)
    assert figures["total"] == len(references) > 5000
    assert 20 < figures["exact"] < figures["f1"] < 95
    assert ("NoAns_f1" in figures) == (name == "squad_v2")


@pytest.mark.parametrize(
    ("answers", "odds"),
    [({"q1": "x"}, {"q1": 0.0, "q2": 0.0}), ({"q1": "x", "q2": ""}, {"q1": 0.0}), ({"q1": "", "q2": ""}, None)],
    ids=["no answer text", "no odds", "odds that are not a number"],
)
def test_a_question_that_cannot_be_walked_is_an_error(answers: dict[str, str], odds: dict[str, float] | None) -> None:
    with pytest.raises(ValueError, match="question q2"):
        best_thresholds(answers, odds or {"q1": 0.0, "q2": math.nan}, {"q1": ["x"], "q2": []})
