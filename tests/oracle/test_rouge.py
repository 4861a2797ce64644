"""ROUGE written from Lin (2004), one definition after the other, in whole numbers and recursions.

Where the paper leaves a choice it is that of ROUGE-1.5.5 and of Google's package: words are stemmed from four
characters on; of several longest common subsequences, one that leaves out the reference's last words; ROUGE-Lsum
counts no word more often than the candidate has it.
"""

import functools
import gzip
import json
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from task_configs import REAL_DATA, needs_real_data

from adalora_repro.metrics.rouge import rouge_scores, split_sentences

Words = tuple[str, ...]
stem = functools.cache(PorterStemmer().stem)


def words(text: str) -> Words:
    return tuple(stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower()))


def percent(matches: int, candidate: int, reference: int) -> Fraction:
    """F with β = 1: of recall m/r and precision m/c, 2 (m/r) (m/c) / (m/r + m/c) = 2 m / (r + c)."""
    return Fraction(200 * matches, reference + candidate) if matches else Fraction(0)


def rouge_n(n: int, candidate: Words, reference: Words) -> Fraction:
    """Section 2: n-grams of the reference, each crossed out in the candidate once it is matched."""
    grams = [[text[k : k + n] for k in range(len(text) - n + 1)] for text in (candidate, reference)]
    left, matches = list(grams[0]), 0
    for gram in grams[1]:
        if gram in left:
            left.remove(gram)
            matches += 1
    return percent(matches, len(grams[0]), len(grams[1]))


def lcs(reference: Words, candidate: Words) -> tuple[int, ...]:
    """Section 3: positions in the reference of a longest common subsequence."""

    @functools.cache
    def of_prefixes(i: int, j: int) -> tuple[int, ...]:
        if not i or not j:
            return ()
        if reference[i - 1] == candidate[j - 1]:
            return (*of_prefixes(i - 1, j - 1), i - 1)
        return max(of_prefixes(i - 1, j), of_prefixes(i, j - 1), key=len)  # the first of equals

    return of_prefixes(len(reference), len(candidate))


def rouge_l(candidate: Words, reference: Words) -> Fraction:
    """Section 3.1."""
    return percent(len(lcs(reference, candidate)), len(candidate), len(reference))


def rouge_lsum(candidate: list[Words], reference: list[Words]) -> Fraction:
    """Section 3.2: for each sentence of the reference, the union of its LCS with each sentence of the candidate."""
    matched: list[str] = []
    for sentence in reference:
        union = {position for other in candidate for position in lcs(sentence, other)}
        matched += [sentence[position] for position in union]
    available = [word for sentence in candidate for word in sentence]
    matches = sum(min(matched.count(word), available.count(word)) for word in set(matched))
    return percent(matches, len(available), sum(map(len, reference)))


def slow(candidate: list[str], reference: list[str]) -> list[float]:
    """The four figures of texts given as sentences."""
    whole = words(" ".join(candidate)), words(" ".join(reference))
    sentences = [words(sentence) for sentence in candidate], [words(sentence) for sentence in reference]
    return [float(value) for value in (rouge_n(1, *whole), rouge_n(2, *whole), rouge_l(*whole), rouge_lsum(*sentences))]


def fast(candidate: str, reference: str) -> list[float]:
    return [value for (value,) in rouge_scores([candidate], [reference]).values()]


# few words, hence many ties and repetitions; no word ends a sentence
WORDS = st.sampled_from(
    ["a", "the", "run", "running", "runs", "dog", "dogs", "U.S", "3.5", "café", "it's", "7", "NEWS"]
)
SENTENCES = st.lists(st.lists(WORDS, min_size=1, max_size=9).map(" ".join), max_size=5)


@settings(max_examples=300)
@given(SENTENCES, SENTENCES)
def test_scores_are_those_of_the_definitions(candidate: list[str], reference: list[str]) -> None:
    found = fast("\n".join(candidate), "\n".join(reference))
    assert found == pytest.approx(slow(candidate, reference), rel=1e-12, abs=1e-12)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_characters(candidate: str, reference: str) -> None:
    found = fast(candidate, reference)
    assert found == pytest.approx(slow(split_sentences(candidate), split_sentences(reference)), rel=1e-12, abs=1e-12)


@needs_real_data
@pytest.mark.parametrize(
    ("task", "text", "summary"), [("xsum", "document", "summary"), ("cnn_dailymail", "article", "highlights")]
)
def test_leads_of_real_articles(task: str, text: str, summary: str) -> None:
    """200 pairs: the first sentence as XSum's prediction, the first three as CNN/DailyMail's."""
    lead = 1 if task == "xsum" else 3
    with gzip.open(REAL_DATA / task / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(200), strict=False)]
    candidates = [split_sentences(row[text])[:lead] for row in rows]
    references = [row[summary] for row in rows]
    found = rouge_scores([" ".join(candidate) for candidate in candidates], references)
    assert len(rows) == 200
    for k, (candidate, reference) in enumerate(zip(candidates, references, strict=True)):
        sentences = split_sentences(" ".join(candidate)), split_sentences(reference)
        assert [values[k] for values in found.values()] == pytest.approx(slow(*sentences), rel=1e-12, abs=1e-12)
