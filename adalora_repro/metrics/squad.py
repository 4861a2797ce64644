"""Exact match and F1 of extracted answers, and the thresholds for "no answer", as SQuAD's own scripts define them.

Source: the official evaluation scripts of SQuAD v1.1 and v2.0 (Rajpurkar et al., 2016; Rajpurkar, Jia and Liang, 2018).
The figures are theirs to the last digit: sums go in their order, and whole scores stay integers as they do there, since
newer Pythons' ``sum`` may round floats otherwise than integers. Two places depart from a script:

- a question without a prediction scores 0, the rule of v1.1; v2.0 stops there;
- v1.1 keeps gold answers that normalize to nothing, v2.0 drops them; here they are dropped. In v1.1's validation set
  three questions have one (a lone "."), so its script differs by at most these, and by none that got words as answer.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII only: dashes and curly quotes stay
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)


def normalize_answer(text: str) -> str:
    """Lower case, then no ASCII punctuation, then no article (a blank is put in its place), then single blanks.

    The order matters: "A." is an article, "a-b" the word "ab", and an article between two dashes parts two tokens.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def example_scores(prediction: str, answers: Sequence[str]) -> tuple[int, float]:
    """(exact match, F1) of one question: the best over its gold answers, each for itself.

    With N the normalization, golds with N(g) = "" are dropped; where none stays (also: no answer), "" is the only one.

        exact = max_g [N(p) = N(g)]
        F1 = max_g 2 P R / (P + R),  P = c / |tokens of N(p)|,  R = c / |tokens of N(g)|

    c counts the tokens in common as often as both sides have them. Without tokens on either side F1 is [N(p) = N(g)].
    """
    predicted = normalize_answer(prediction)
    golds = {normalize_answer(answer) for answer in answers} - {""} or {""}
    tokens = predicted.split()
    return int(predicted in golds), max(_f1(gold.split(), tokens) for gold in golds)


def score_all(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, float]]:
    """``example_scores`` by id, in the order of the references; (0, 0) where there is no prediction.

    Raises:
        ValueError: there are no references.
    """
    if not references:
        raise ValueError("no questions to score: the references are empty")
    return {
        question: example_scores(predictions[question], answers) if question in predictions else (0, 0)
        for question, answers in references.items()
    }


def squad_metrics(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """``exact``, ``f1`` = 100 Σ score / n and ``total`` = n, of all questions and of two groups where they have any.

    ``HasAns_…`` are the questions with a gold answer, whatever it normalizes to; ``NoAns_…`` those with an empty list.

    Args:
        predictions: the text by id, "" for no answer; ids without references are ignored.

    Raises:
        ValueError: as ``score_all``.
    """
    scores = score_all(predictions, references)
    figures = _percentages([scores[question] for question in references])
    for prefix, has_answer in (("HasAns", True), ("NoAns", False)):
        group = [scores[question] for question, answers in references.items() if bool(answers) is has_answer]
        if group:
            figures |= {f"{prefix}_{name}": figure for name, figure in _percentages(group).items()}
    return figures


def best_thresholds(
    answers: Mapping[str, str],
    null_odds: Mapping[str, float],
    references: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """``best_exact``, ``best_f1`` in percent and ``best_exact_thresh``, ``best_f1_thresh``, the odds that give them.

    A question is predicted as no answer when its odds o exceed the threshold t. With s the score of its answer,

        S(t) = Σ {s_i : has answers, o_i <= t} + #{i : has none, o_i > t or answer "" }
        best = 100 max_t S(t) / n

    found in the official walk by ascending odds, which starts with every question predicted as no answer; the first of
    equal bests counts. Where nothing beats the start the threshold is 0.0. Of equal odds the walk takes one question
    after the other, in the order of ``null_odds``, and may find a best among them that no threshold gets.

    Args:
        answers: the best non-null answer by id.
        null_odds: how much more likely no answer is than that one, as a log ratio, difference or probability.

    Raises:
        ValueError: there are no references, or one of them has no answer or no number as its odds.
    """
    for question in references:
        if question not in answers or math.isnan(null_odds.get(question, math.nan)):
            raise ValueError(f"question {question} needs an answer and a number as its null odds")
    scores = score_all(answers, references)
    walk = [question for question in sorted(null_odds, key=null_odds.__getitem__) if question in references]
    figures: dict[str, float] = {}
    for part, name in enumerate(("exact", "f1")):
        current: float = sum(not golds for golds in references.values())
        best, threshold = current, 0.0
        for question in walk:
            if references[question]:
                current += scores[question][part]
            elif answers[question]:
                current -= 1
            if current > best:
                best, threshold = current, null_odds[question]
        figures |= {f"best_{name}": 100.0 * best / len(references), f"best_{name}_thresh": threshold}
    return figures


def _f1(gold: list[str], predicted: list[str]) -> float:
    if not gold or not predicted:
        return int(gold == predicted)
    common = sum((Counter(gold) & Counter(predicted)).values())
    if not common:
        return 0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)  # 2 c / (|p| + |g|) would differ in the last digit


def _percentages(scores: Iterable[tuple[int, float]]) -> dict[str, float]:
    exact, f1 = zip(*scores, strict=True)
    return {"exact": 100.0 * sum(exact) / len(exact), "f1": 100.0 * sum(f1) / len(f1), "total": len(exact)}
