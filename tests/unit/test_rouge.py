"""ROUGE: sentences, and the bootstrap interval; the scores: tests/oracle."""

import random
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from adalora_repro.metrics import rouge

# Sentences

SENTENCES = {
    "titles": "Mr. Smith went. | Lt. Col. Dan Ray and Prof. Li met. | Gen. Lee did not.",
    "U.S.": "U.S. troops left. | He was in the U.S. | He left the U.S. Army.",
    "a.m.": "It began at 8 a.m. Monday. | It ended at 5 p.m. | The end.",
    "i.e.": "One, i.e. a cat, e.g. Tom. | Two.",
    "initials": "J. R. Smith met J.K. Rowling. | George W. Bush met Mr. A. I. Moe.",
    "firms": "Acme Inc. and Foo Ltd. merged. | Bar Corp. did not.",
    "etc.": "Apples, pears, etc. are fruit. | She ate apples, etc. | Then she left.",
    "dates": "Since Dec. 5 it rained. | In Sept. it did not.",
    "No. 5": "No. 5 won. | He said no. | Nobody moved.",
    "decimals": "It cost 3.5 million. | It fell 0.2%. | He left in 1999. | She stayed.",
    "quotes": "He said \"yes.\" | She said 'no.' | He said “yes.” | She said ‘no.’ | They left.",
    "brackets": "(He left.) | She stayed [here.] | Bye.",
    "ellipsis": "Wait... what? | Well... | Then he left.",
    "?!": "Really?! | Yes!! | Is it? | No.",
    "spaced full stops": "He left . | She stayed .",
    "no blank": "It ended at 3.He left.",
}
LINES = {"Mr.\nSmith\r\n\n went \n": ["Mr.", "Smith", "went"], "a\x0bb\u2028c": ["a", "b", "c"], " \n \t\n": []}


@pytest.mark.parametrize("case", SENTENCES)
def test_sentences(case: str) -> None:
    sentences = SENTENCES[case].split(" | ")
    assert rouge.split_sentences(" ".join(sentences)) == sentences


def test_line_breaks_end_sentences() -> None:
    assert {text: rouge.split_sentences(text) for text in LINES} == LINES


@given(st.text(st.sampled_from("aB.?!\"' \n\r1,(-”…"), max_size=40) | st.text(max_size=40))
def test_splitting_loses_nothing_but_blanks(text: str) -> None:
    sentences = rouge.split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() and len(sentence.splitlines()) == 1 for sentence in sentences)


# Interval of the mean


def skewed(count: int, seed: int = 3) -> list[float]:
    return (100 * np.random.default_rng(seed).beta(2, 5, count)).tolist()


def test_the_interval_is_that_of_the_mean_and_the_global_generators_stay() -> None:
    values = skewed(1600)
    np.random.seed(5)
    random.seed(5)
    before = np.random.get_state(), random.getstate()
    low, high = rouge.confidence_interval(values)
    np.testing.assert_equal(np.random.get_state(), before[0])
    assert random.getstate() == before[1]
    assert rouge.confidence_interval(values) == (low, high)
    error = np.std(values) / 40
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * scipy.stats.norm.ppf(0.975) * error, rel=0.1)


@pytest.mark.parametrize("values", [[41.7], [0.1] * 7, [0.0, 0.0], [1e300] * 3])
def test_equal_values_are_their_own_interval(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rouge.confidence_interval(values) == (values[0], values[0])
