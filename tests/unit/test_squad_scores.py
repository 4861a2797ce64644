"""SQuAD's thresholds by cases done by hand; all figures against a second reading of the rules: tests/oracle."""

from __future__ import annotations

import math

import pytest

from adalora_repro.metrics.squad import best_thresholds

# (has an answer, prediction, odds); the gold answer is always "x y": "x y" scores (1, 1), "x" (0, 2/3), "z" (0, 0)
CASES = {
    "between right answers and wrong ones": ([(1, "x y", -2), (0, "z", 3), (1, "x y", 1)], (100, 1), (100, 1)),
    "one threshold for each score": ([(1, "x y", 1), (0, "z", 2), (1, "x", 3), (1, "x", 4)], (50, 1), (175 / 3, 4)),
    "nothing beats no answer at all": ([(0, "z", 1), (1, "x y", 2)], (50, 0.0), (50, 0.0)),
    "of equal bests the first": ([(1, "x y", 1), (0, "z", 2), (1, "x y", 3)], (200 / 3, 1), (200 / 3, 1)),
    "the whole walk": ([(1, "x y", 0.1), (1, "x y", 0.3)], (100, 0.3), (100, 0.3)),
    "an empty answer costs nothing": ([(0, "", 1), (1, "x y", 2)], (100, 2), (100, 2)),
    "a lone point is an answer": ([(0, ".", 1), (1, "x y", 2)], (50, 0.0), (50, 0.0)),
    "wrong answers only": ([(1, "z", 1), (1, "", 2)], (0, 0.0), (0, 0.0)),
    "below 0": ([(1, "x y", -3), (0, "z", -2)], (100, -3), (100, -3)),
    # two questions at 1: no threshold parts them, the walk does; the other way round it gains nothing
    "ties, the right one first": ([(1, "x y", 1), (0, "z", 1)], (100, 1), (100, 1)),
    "ties, the wrong one first": ([(0, "z", 1), (1, "x y", 1)], (50, 0.0), (50, 0.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_thresholds(case: str) -> None:
    questions, exact, f1 = CASES[case]
    rows = {f"q{index}": row for index, row in enumerate(questions)}
    references = {question: ["x y"] if has_answer else [] for question, (has_answer, _, _) in rows.items()}
    answers = {question: text for question, (_, text, _) in rows.items()}
    odds = {question: float(value) for question, (_, _, value) in rows.items()}
    figures = best_thresholds(answers | {"unknown": "z"}, odds | {"unknown": 0.0}, references)
    assert figures == {
        "best_exact": pytest.approx(exact[0]),
        "best_exact_thresh": exact[1],
        "best_f1": pytest.approx(f1[0]),
        "best_f1_thresh": f1[1],
    }


@pytest.mark.parametrize(
    ("answers", "odds"),
    [({"q1": "x"}, {"q1": 0.0, "q2": 0.0}), ({"q1": "x", "q2": ""}, {"q1": 0.0}), ({"q1": "", "q2": ""}, None)],
    ids=["no answer text", "no odds", "odds that are not a number"],
)
def test_a_question_that_cannot_be_walked_is_an_error(answers: dict[str, str], odds: dict[str, float] | None) -> None:
    with pytest.raises(ValueError, match="question q2"):
        best_thresholds(answers, odds or {"q1": 0.0, "q2": math.nan}, {"q1": ["x"], "q2": []})
