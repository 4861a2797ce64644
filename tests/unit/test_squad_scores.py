"""SQuAD's scores: every rule of the official scripts by a case done by hand."""

from __future__ import annotations

import math
import sys
from random import Random

import pytest

from adalora_repro.metrics.squad import best_thresholds, example_scores, normalize_answer, score_all, squad_metrics


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("", ""),
        (" \t\n", ""),
        ("The Norman Conquest", "norman conquest"),
        ("an A the", ""),
        ("theatre antenna banana a-b-a", "theatre antenna banana aba"),  # articles inside words stay
        ("bathe the breathe", "bathe breathe"),
        ("A.", ""),  # punctuation goes first, then it is an article
        ("t.h.e", ""),
        ("the_end", "theend"),  # the underscore is punctuation too
        ("$1,234.50 (10%)", "123450 10"),
        (r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~""", ""),
        ("24–10", "24–10"),  # only ASCII punctuation: dash and curly quotes stay
        ("“the” End", "“ ” end"),  # beside them an article is a whole word; a blank takes its place
        ("rock–a–bye", "rock– –bye"),
        ("ÉCOLE Straße ÀÉÎ", "école straße àéî"),
        ("a\u0301 b", "\u0301 b"),  # a combining accent is no word character for the official regex
        ("á b the9 9the éa theé", "á b the9 9the éa theé"),
        ("\u00a0Super\u2003Bowl\u3000 50\x1c", "super bowl 50"),  # all that str.split() parts at
        ("Super\u200bBowl", "super\u200bbowl"),  # but a zero-width space is not one
        ("İstanbul", "i̇stanbul"),
    ],
)
def test_normalization(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1.0),
        ("the denver broncos!", ["Denver Broncos"], 1, 1.0),
        ("Broncos Denver", ["Denver Broncos"], 0, 1.0),  # a bag of tokens
        ("Denver", ["Denver Broncos"], 0, 2 / 3),
        ("Denver", ["Santa Clara"], 0, 0.0),
        ("in Denver in 2016", ["in Denver"], 0, 2 / 3),  # "in" is in common once: P = 2/4, R = 1
        ("in in Denver", ["in in May"], 0, 2 / 3),  # and twice here
        ("1,000", ["1000"], 1, 1.0),
        ("1 000", ["1000"], 0, 0.0),
        # several golds: the best of each score, not necessarily of the same one
        ("Denver Broncos", ["Santa Clara", "Denver", "Denver Broncos"], 1, 1.0),
        ("Denver Broncos", ["Denver Broncos", "Denver", "Santa Clara"], 1, 1.0),
        ("Denver Broncos win", ["Denver", "Denver Broncos"], 0, 0.8),
        # no answer
        ("", [], 1, 1),
        (" ", [], 1, 1),
        ("the", [], 1, 1),
        (",.!", [], 1, 1),
        ("Denver", [], 0, 0),
        ("", ["Denver"], 0, 0),
        (",.!", ["Denver"], 0, 0),
        ("a", ["A team"], 0, 0),
        # golds that normalize to nothing are dropped; where none stays, no answer is right
        ("", ["interventionism", "."], 0, 0),
        (".", ["interventionism", "."], 0, 0),
        ("interventionism", [".", "interventionism"], 1, 1.0),
        ("", ["the"], 1, 1),
        ("The", ["the", "."], 1, 1),
        ("Denver", ["the"], 0, 0),
    ],
)
def test_one_question(prediction: str, answers: list[str], exact: int, f1: float) -> None:
    assert example_scores(prediction, answers) == (exact, pytest.approx(f1, abs=1e-15))
    assert example_scores(prediction, tuple(answers)) == example_scores(prediction, answers)


REFERENCES = {"q1": ["Denver Broncos", "Broncos"], "q2": [], "q3": ["24–10"], "q4": ["the"], "q5": []}


def test_figures_of_all_and_of_both_groups() -> None:
    predictions = {"q1": "Denver", "q2": "", "q3": "24–10", "q4": "", "q5": "Denver", "unknown": "ignored"}
    f1 = 2 * 1.0 * 0.5 / 1.5
    assert squad_metrics(predictions, REFERENCES) == {
        "exact": 100.0 * 3 / 5,
        "f1": 100.0 * (f1 + 1 + 1 + 1 + 0) / 5,
        "total": 5,
        "HasAns_exact": 100.0 * 2 / 3,  # q4 has an answer, although it normalizes to nothing
        "HasAns_f1": 100.0 * (f1 + 1 + 1) / 3,
        "HasAns_total": 3,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }


@pytest.mark.parametrize(("answers", "present", "absent"), [(["x"], "HasAns", "NoAns"), ([], "NoAns", "HasAns")])
def test_a_group_without_questions_has_no_figures(answers: list[str], present: str, absent: str) -> None:
    figures = squad_metrics({"q": "x"}, {"q": answers})
    assert {f"{present}_{name}" for name in ("exact", "f1", "total")} < figures.keys()
    assert not [name for name in figures if name.startswith(absent)]


def test_a_missing_prediction_scores_nothing_even_where_no_answer_is_right() -> None:
    references = {"q1": ["x"], "q2": [], "q3": ["the"], "q4": []}
    assert score_all({"q4": ""}, references) == {"q1": (0, 0), "q2": (0, 0), "q3": (0, 0), "q4": (1, 1)}
    figures = squad_metrics({"q4": ""}, references)
    assert (figures["exact"], figures["f1"], figures["total"]) == (25.0, 25.0, 4)
    assert (figures["HasAns_exact"], figures["NoAns_exact"]) == (0.0, 50.0)


def test_sums_go_in_the_order_of_the_references() -> None:
    """Floats added in another order differ in the last digit."""
    golds = {f"q{k}": [" ".join(f"w{i}" for i in range(k + 2))] for k in range(40)}
    predictions = dict.fromkeys(reversed(golds), "w0")
    in_order = [example_scores("w0", answers)[1] for answers in golds.values()]
    assert squad_metrics(predictions, golds)["f1"] == 100.0 * sum(in_order) / 40
    backwards = 100.0 * sum(reversed(in_order)) / 40
    assert squad_metrics(predictions, dict(reversed(golds.items())))["f1"] == backwards
    assert sys.version_info >= (3, 12) or backwards != 100.0 * sum(in_order) / 40  # sum() compensates from 3.12 on


def test_no_references_are_an_error() -> None:
    with pytest.raises(ValueError, match="no questions"):
        squad_metrics({"q": "x"}, {})
    with pytest.raises(ValueError, match="no questions"):
        best_thresholds({"q": "x"}, {"q": 0.5}, {})


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


def test_ties_are_walked_in_the_order_of_the_odds_not_of_the_references() -> None:
    answers, references = {"right": "x", "wrong": "z"}, {"wrong": [], "right": ["x"]}
    assert best_thresholds(answers, {"right": 1.0, "wrong": 1.0}, references)["best_exact"] == 100.0
    assert best_thresholds(answers, {"wrong": 1.0, "right": 1.0}, references)["best_exact"] == 50.0


@pytest.mark.parametrize(
    ("answers", "odds"),
    [({"q1": "x"}, {"q1": 0.0, "q2": 0.0}), ({"q1": "x", "q2": ""}, {"q1": 0.0}), ({"q1": "", "q2": ""}, None)],
    ids=["no answer text", "no odds", "odds that are not a number"],
)
def test_a_question_that_cannot_be_walked_is_an_error(answers: dict[str, str], odds: dict[str, float] | None) -> None:
    with pytest.raises(ValueError, match="question q2"):
        best_thresholds(answers, odds or {"q1": 0.0, "q2": math.nan}, {"q1": ["x"], "q2": []})


def test_scores_that_are_given_are_used() -> None:
    predictions, references = {"q1": "x", "q2": "z"}, {"q1": ["x"], "q2": []}
    scores = score_all(predictions, references)
    assert scores == {"q1": (1, 1.0), "q2": (0, 0)}
    assert squad_metrics(predictions, references, scores=scores) == squad_metrics(predictions, references)
    assert squad_metrics(predictions, references, scores=scores | {"q1": (0, 0.5)})["f1"] == 25.0
    odds = {"q1": 0.5, "q2": 1.5}
    assert best_thresholds(predictions, odds, references, scores=scores)["best_exact"] == 100.0
    none = best_thresholds(predictions, odds, references, scores=scores | {"q1": (0, 0)})
    assert (none["best_exact"], none["best_f1"]) == (50.0, 50.0)


def test_a_whole_validation_set() -> None:
    """As many questions as SQuAD 2.0 has: a quadratic walk would take minutes."""
    draw = Random(0)
    words = [f"word{index}" for index in range(300)] + ["the", "a", "St. Louis,", "1,000"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(72_000)]
    references = {str(index): texts[6 * index : 6 * index + draw.choice([0, 3, 6])] for index in range(12_000)}
    answers = {question: draw.choice(golds or texts[:9]) for question, golds in references.items()}
    odds = {question: draw.gauss(0, 5) for question in references}
    figures = squad_metrics(answers, references)
    best = best_thresholds(answers, odds, references)
    assert figures["total"] == 12_000
    assert figures["HasAns_exact"] > 99 > figures["exact"]  # golds, but for those that are an article alone
    assert best["best_exact"] >= figures["exact"]
