"""ROUGE of summaries, as Google's ``rouge-score`` computes it, and the bootstrap interval of its mean.

Texts are prepared as transformers' summarization examples do it: stripped, one sentence a line (ROUGE-Lsum compares
line by line), Porter stems. Only the sentence splitter differs: its rules are here, for nltk's trained English model
would have to be downloaded. nltk, rouge-score and scipy are imported when the first text or interval asks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING

from adalora_repro.metrics.resampling import bootstrap

if TYPE_CHECKING:
    from nltk.tokenize.punkt import PunktSentenceTokenizer
    from rouge_score.rouge_scorer import RougeScorer

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

STEMS = 2**16  # words whose stems are kept, 14 MB when full: 5000 pairs of XSum have 19,000
RESAMPLES = 1000

#: a full stop after one of these, or after two letters as in U.S. and J.K., ends a sentence only before a starter
ABBREVIATIONS = """
    mr mrs ms messrs dr prof rev hon st sr jr esq gen sen rep gov lt col sgt capt cmdr maj adm cpl pvt pres
    inc ltd co corp bros dept univ assn ave blvd rd mt ft approx est vs etc cf al ph.d u.s.a u.a.e
    jan feb mar apr jun jul aug sep sept oct nov dec
"""
#: before a number only: "No. 5", but "He said no. Nobody moved."
NUMBERED = "no nos vol fig p pp"
#: words that with a capital begin a sentence even after an abbreviation: no parts of names, nor letters (A, I)
STARTERS = """
    the this that these those he she it they we you his her its their our my but and if when while as in on at for
    from with by after before then there what how why where
"""


def split_sentences(text: str) -> list[str]:
    """Sentences in their order, stripped, none of them blank: a line break ends one, and Punkt's rules do.

    Punkt (Kiss and Strunk 2006): ``. ? !`` before a blank or closing punctuation end a sentence; not a full stop of an
    abbreviation, of an initial before a capital, of a number or an ellipsis before a small letter.
    """
    tokenize = _splitter().tokenize
    return [sentence for line in text.splitlines() for sentence in map(str.strip, tokenize(line)) if sentence]


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F-measures in percent, one per pair, of ROUGE-1, -2, -L and -Lsum (``NAMES``).

    Equal to ``RougeScorer(NAMES, use_stemmer=True)`` to the last bit. A text without a word scores 0.

    Raises:
        ValueError: no pair, or not as many predictions as references.

    Source: Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    if not predictions:
        raise ValueError("there is no summary to score")
    scorer = _scorer()
    scores: dict[str, list[float]] = {name: [] for name in NAMES}
    for prediction, reference in zip(predictions, references, strict=True):
        pair = scorer.score(target=sentence_lines(reference), prediction=sentence_lines(prediction))
        for name in NAMES:
            scores[name].append(100 * pair[name].fmeasure)
    return scores


def summarize(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """``<name>``, the mean over examples, and ``<name>_low``, ``<name>_high``, its 95% interval; units as given."""
    import numpy as np

    figures: dict[str, float] = {}
    for name in NAMES:
        low, high = confidence_interval(scores[name])
        figures |= {name: float(np.mean(scores[name])), f"{name}_low": low, f"{name}_high": high}
    return figures


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean: the quantiles 0.025 and 0.975 of the means of ``RESAMPLES``.

    The same values give the same interval; the global generators are neither read nor moved, for a run's random state
    must not depend on its evaluations. Values that are all equal (or one value) are their own interval.
    """
    import numpy as np

    sample = np.asarray(values, dtype=np.float64)
    if (sample == sample[0]).all():
        return float(sample[0]), float(sample[0])
    interval = bootstrap((sample,), np.mean, RESAMPLES).confidence_interval
    return float(interval.low), float(interval.high)


def sentence_lines(text: str) -> str:
    """One sentence a line: ROUGE-Lsum compares line by line."""
    return "\n".join(split_sentences(text.strip()))


@functools.cache
def _splitter() -> PunktSentenceTokenizer:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = {*ABBREVIATIONS.split(), *(f"{a}.{b}" for a in ascii_lowercase for b in ascii_lowercase)}
    parameters.collocations = {(word, "##number##") for word in NUMBERED.split()}
    parameters.sent_starters = set(STARTERS.split())
    return PunktSentenceTokenizer(parameters)


@functools.cache
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(NAMES, tokenizer=_StemmedTokenizer())


class _StemmedTokenizer:
    """rouge-score's default tokenizer with Porter's stemmer, which is half of the time: a word is stemmed once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = functools.lru_cache(maxsize=STEMS)(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        from rouge_score.tokenize import tokenize

        tokens: list[str] = tokenize(text, self)  # asks its second argument for ``stem``
        return tokens
