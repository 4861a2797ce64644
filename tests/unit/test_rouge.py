"""ROUGE: sentences, known pairs, equality with the plain scorer, and the bootstrap interval."""

from __future__ import annotations

import gzip
import json
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from task_configs import REAL_DATA, needs_real_data

from adalora_repro.metrics import rouge

# Sentences

SENTENCES = {
    "title": ("Mr. Smith went. He left.", ["Mr. Smith went.", "He left."]),
    "titles": (
        "Lt. Col. Dan Ray and Prof. Li met. Gen. Lee did not.",
        ["Lt. Col. Dan Ray and Prof. Li met.", "Gen. Lee did not."],
    ),
    "U.S.": ("U.S. troops left. U.K. ones stayed.", ["U.S. troops left.", "U.K. ones stayed."]),
    "U.S. at an end": ("He was in the U.S. He left the U.S. Army.", ["He was in the U.S.", "He left the U.S. Army."]),
    "a.m.": (
        "It began at 8 a.m. Monday. It ended at 5 p.m. The end.",
        ["It began at 8 a.m. Monday.", "It ended at 5 p.m.", "The end."],
    ),
    "i.e.": ("One, i.e. a cat, e.g. Tom. Two.", ["One, i.e. a cat, e.g. Tom.", "Two."]),
    "initials": (
        "J. R. Smith met J.K. Rowling. George W. Bush did not.",
        ["J. R. Smith met J.K. Rowling.", "George W. Bush did not."],
    ),
    "initials that are words": ("J. A. Ray met Mr. A. I. Moe.", ["J. A. Ray met Mr. A. I. Moe."]),
    "firms": (
        "Acme Inc. and Foo Ltd. merged. Bar Corp. did not.",
        ["Acme Inc. and Foo Ltd. merged.", "Bar Corp. did not."],
    ),
    "etc.": (
        "Apples, pears, etc. are fruit. She ate apples, etc. Then she left.",
        ["Apples, pears, etc. are fruit.", "She ate apples, etc.", "Then she left."],
    ),
    "dates": ("Since Dec. 5 it rained. In Sept. it did not.", ["Since Dec. 5 it rained.", "In Sept. it did not."]),
    "No. 5": ("No. 5 won. He said no. Nobody moved.", ["No. 5 won.", "He said no.", "Nobody moved."]),
    "decimals": ("It cost 3.5 million. It fell 0.2%. Bye.", ["It cost 3.5 million.", "It fell 0.2%.", "Bye."]),
    "year": ("He left in 1999. She stayed.", ["He left in 1999.", "She stayed."]),
    "quotes after a full stop": (
        "He said \"yes.\" She said 'no.' They left.",
        ['He said "yes."', "She said 'no.'", "They left."],
    ),
    "curly quotes": ("He said “yes.” She said ‘no.’ They left.", ["He said “yes.”", "She said ‘no.’", "They left."]),
    "brackets": ("(He left.) She stayed [here.] Bye.", ["(He left.)", "She stayed [here.]", "Bye."]),
    "ellipsis": ("Wait... what? Well... Then he left.", ["Wait... what?", "Well...", "Then he left."]),
    "?!": ("Really?! Yes!! Is it? No.", ["Really?!", "Yes!!", "Is it?", "No."]),
    "spaced full stops": ("He left . She stayed .", ["He left .", "She stayed ."]),
    "no blank": ("It ended at 3.He left.", ["It ended at 3.He left."]),
    "line breaks": ("Mr.\nSmith\r\n\n went \n", ["Mr.", "Smith", "went"]),
    "other line breaks": ("a\x0bb\u2028c", ["a", "b", "c"]),
    "no full stop": (" one two\t", ["one two"]),
    "empty": ("", []),
    "blank": (" \n \t\n", []),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_sentences(case: str) -> None:
    text, sentences = SENTENCES[case]
    assert rouge.split_sentences(text) == sentences


@given(st.text(st.sampled_from("aB.?!\"' \n\r1,(-”…"), max_size=40) | st.text(max_size=40))
def test_splitting_loses_nothing_but_blanks(text: str) -> None:
    sentences = rouge.split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() and len(sentence.splitlines()) == 1 for sentence in sentences)


# Scores

KNOWN = {  # prediction, reference, percent of ROUGE-1, -2, -L, -Lsum
    "Lin (2004), S2": ("police kill the gunman", "police killed the gunman", (100, 100, 100, 100)),
    "Lin (2004), S3": ("the gunman kill police", "police killed the gunman", (100, 100 / 3, 50, 50)),
    "Lin (2004), union": ("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", (800 / 15, 200 / 13, 800 / 15, 800 / 15)),
    "union of other order": ("w1 w3 w8 w9 w5\nw1 w2 w6 w7 w8", "w1 w2 w3 w4 w5", (800 / 15, 200 / 13, 40, 800 / 15)),
    "swapped sentences": ("She stayed. He left.", "He left. She stayed.", (100, 200 / 3, 50, 100)),
    "no sentence twice": ("the cat", "the cat\nthe cat", (400 / 6, 50, 400 / 6, 400 / 6)),
    "case and punctuation": ("The U.S., it's 3.5%!", "the u s it s 3 5", (100, 100, 100, 100)),
    "surrounding blanks": ("  a cat \n", "\n\ta cat", (100, 100, 100, 100)),
    "one word": ("cat", "cat", (100, 0, 100, 100)),
    "nothing shared": ("a dog", "the cat", (0, 0, 0, 0)),
    "empty prediction": ("", "the cat", (0, 0, 0, 0)),
    "empty reference": ("the cat", " ", (0, 0, 0, 0)),
    "no word": ("...", "?!", (0, 0, 0, 0)),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_scores(case: str) -> None:
    prediction, reference, expected = KNOWN[case]
    scores = rouge.rouge_scores([prediction], [reference])
    assert list(scores) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert [values for (values,) in scores.values()] == pytest.approx(expected, rel=1e-12)


TEXTS = st.text(st.sampled_from("abB .?!\n1é-"), max_size=40)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_pair_s_score_depends_on_nothing_else(pairs: list[tuple[str, str]], order: random.Random) -> None:
    def score(some: list[tuple[str, str]]) -> list[tuple[float, ...]]:
        scores = rouge.rouge_scores([prediction for prediction, _ in some], [reference for _, reference in some])
        return list(zip(*scores.values(), strict=True))

    shuffled = order.sample(range(len(pairs)), len(pairs))
    scores = score(pairs)
    assert len(scores) == len(pairs)
    assert score([pairs[k] for k in shuffled]) == [scores[k] for k in shuffled]
    assert all(0 <= value <= 100 for row in scores for value in row)
    # F is symmetric but for rougeLsum, whose union is one of the reference's words
    swapped = score([(reference, prediction) for prediction, reference in pairs])
    assert [row[:3] for row in swapped] == [pytest.approx(row[:3]) for row in scores]


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: rouge.rouge_scores(["a", "b"], ["a"]), "2 predictions for 1 references"),
        (lambda: rouge.rouge_scores([], []), "no summary"),
        (lambda: rouge.confidence_interval([]), "no value"),
        (lambda: rouge.summarize(dict.fromkeys(rouge.NAMES, ())), "no value"),
    ],
)
def test_nothing_to_score_is_refused(refused: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused()


def plain(pairs: list[tuple[str, str]]) -> dict[str, list[float]]:
    """What the package gives without our tokenizer."""
    scorer = RougeScorer(list(rouge.NAMES), use_stemmer=True)
    rows = [scorer.score(*("\n".join(rouge.split_sentences(text)) for text in (r, p))) for p, r in pairs]
    return {name: [row[name].fmeasure * 100 for row in rows] for name in rouge.NAMES}


WORDS = "running runs ran dying skies News innings 2nd U.S. café ıstanbul ST\u212a yyyy flies. happily? agreed\n the a"


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(WORDS.split(" ")), max_size=20), st.lists(st.sampled_from(WORDS.split(" ")), max_size=20)
)
def test_kept_stems_change_no_bit(prediction: list[str], reference: list[str]) -> None:
    pair = (" ".join(prediction), " ".join(reference))
    assert rouge.rouge_scores([pair[0]], [pair[1]]) == plain([pair])


def real_pairs(task: str, text: str, summary: str, count: int) -> Iterator[tuple[str, str]]:
    """The first three sentences of an article, as a prediction, and its summary."""
    with gzip.open(REAL_DATA / task / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        for line, _ in zip(file, range(count), strict=False):
            row = json.loads(line)
            yield " ".join(rouge.split_sentences(row[text])[:3]), row[summary]


@needs_real_data
@pytest.mark.parametrize("columns", [("xsum", "document", "summary"), ("cnn_dailymail", "article", "highlights")])
def test_kept_stems_change_no_bit_on_real_texts(columns: tuple[str, str, str]) -> None:
    pairs = list(real_pairs(*columns, count=120))
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    scores = rouge.rouge_scores(predictions, references)
    assert scores == plain(pairs)
    assert 5 < np.mean(scores["rougeL"]) < 50


def test_stems_are_kept() -> None:
    tokenizer = rouge._StemmedTokenizer()
    assert tokenizer.tokenize("Running cats ran, the RUNNING cats.") == ["run", "cat", "ran", "the", "run", "cat"]
    assert tokenizer.stem.cache_info()[:3] == (2, 2, rouge.STEMS)  # hits, misses, and room; "ran" and "the" are short


# Interval of the mean


def skewed(count: int, seed: int = 3) -> list[float]:
    return (100 * np.random.default_rng(seed).beta(2, 5, count)).tolist()


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    values, generator = np.array(skewed(150)), np.random.default_rng(99)
    means = [values[generator.integers(0, 150, 150)].mean() for _ in range(20_000)]
    for confidence in (0.5, 0.95):
        low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
        found = rouge.confidence_interval(values.tolist(), confidence, resamples=20_000)
        assert found == pytest.approx((low, high), abs=0.04 * (high - low))


def test_the_interval_shrinks_as_the_root_of_n_and_grows_with_confidence() -> None:
    def width(count: int, confidence: float = 0.95) -> float:
        low, high = rouge.confidence_interval(skewed(count), confidence)
        return high - low

    assert width(100) / width(1600) == pytest.approx(4, rel=0.2)
    assert width(100, 0.5) < width(100, 0.9) < width(100, 0.99)
    error = np.std(skewed(1600)) / 40
    assert width(1600) == pytest.approx(2 * scipy.stats.norm.ppf(0.975) * error, rel=0.1)


def test_the_seed_decides_and_the_global_generators_stay() -> None:
    values = skewed(50)
    np.random.seed(5)
    random.seed(5)
    before = np.random.get_state(), random.getstate()
    first = rouge.confidence_interval(values)
    after = np.random.get_state(), random.getstate()
    assert before[1] == after[1]
    np.testing.assert_equal(before[0], after[0])
    np.random.seed(6)
    random.seed(6)
    assert rouge.confidence_interval(values) == first == rouge.confidence_interval(values, 0.95, 1000, 0)
    assert rouge.confidence_interval(values, seed=1) != first


@pytest.mark.parametrize("values", [[41.7], [0.1] * 7, [0.0, 0.0], [1e300] * 3])
def test_equal_values_are_their_own_interval(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rouge.confidence_interval(values) == (values[0], values[0])


def test_two_values_and_a_batch_of_one_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rouge.confidence_interval([0, 1]) == (0, 1)
        monkeypatch.setattr(rouge, "BATCH", 3)
        low, high = rouge.confidence_interval(skewed(20))
    assert low < np.mean(skewed(20)) < high


# Record


def test_figures_for_the_record() -> None:
    scores = {name: skewed(40, seed) for seed, name in enumerate(rouge.NAMES)}
    figures = rouge.summarize(scores)
    assert list(figures) == [name + suffix for name in rouge.NAMES for suffix in ("", "_low", "_high")]
    assert all(type(value) is float for value in figures.values())
    for name, values in scores.items():
        assert figures[name] == pytest.approx(sum(values) / 40)
        assert (figures[f"{name}_low"], figures[f"{name}_high"]) == rouge.confidence_interval(values)
