"""``data.holdout``: rows of the train split that are evaluated instead of trained on, to choose settings by.

The rows depend only on the texts, the classes and the number requested: not on the method, the learning rate, the run's
seed or the order of the file. Rows with the same words are held out together, and so are rows with the same text in
``task.holdout_by`` (a context, a premise). One sentence of a held-out pair of QQP, MRPC or STS-B may also be part of
another pair, in training.

Standard library only: a plan needs ``size`` before anything is loaded.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

from adalora_repro.errors import InputError

HOLDOUT = "holdout"  # the name of the split
SEED = "holdout 1"  # another string selects other rows
_WORDS = re.compile(r"\w+")


def size(wanted: int | float, rows: int, name: str = "data.holdout") -> int:
    """Held-out rows of ``rows``: ``wanted`` itself, or that fraction (0 < f < 1) of them, rounded.

    Raises:
        InputError: it is neither a positive whole number nor such a fraction, or it leaves one part without a row.
    """
    if not 0 < wanted < (1 if isinstance(wanted, float) else math.inf):
        raise InputError(
            f"{name}={wanted} must be a number of rows of the train split (500) or a fraction of them between "
            "0 and 1 (0.1)"
        )
    count = round(wanted * rows) if isinstance(wanted, float) else wanted
    if count == 0:
        raise InputError(f"{name}={wanted}: less than one of the {rows:,} rows of the train split")
    if count >= rows:
        raise InputError(
            f"{name}={wanted}: the train split has {rows:,} rows, and at least one must be left to train on"
        )
    return count


def parts(
    texts: Iterable[Sequence[str]], strata: Sequence[Hashable], by: Sequence[int], count: int
) -> tuple[list[int], list[int]]:
    """Indices of the rows to evaluate and of the rows to train on.

    ``count`` rows are not trained on. Groups of rows that share their texts are taken whole, in the order of a hash of
    these texts: first groups that exceed no stratum's share of ``count`` (largest remainders), then any that fit. If
    whole groups do not add up to ``count``, the missing rows are taken from one more group; because the rest of that
    group is trained on, they are not evaluated either.

    Args:
        texts: the texts of each row, compared by their words: case, punctuation and the order of the texts are ignored.
        strata: the class of each row.
        by: indices of the texts that a group shares.
        count: how many rows, fewer than there are.
    """
    groups: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for row, values in enumerate(texts):
        exact = hashlib.sha256("\0".join(values).encode()).digest()  # orders a group's rows whatever the file's order
        groups[_digest([values[column] for column in by])].append((exact, row))
    rest = [[row for _, row in sorted(groups[name])] for name in sorted(groups)]
    quota = _shares(Counter(strata), count)
    held: list[int] = []
    for stratified in (True, False):
        left = []
        for number, group in enumerate(rest):
            missing = count - len(held)
            if not missing or (stratified and not quota):
                left += rest[number:]
                break
            fits = len(group) <= missing
            if fits and stratified:
                counts = Counter(strata[row] for row in group)
                fits = counts <= quota
                quota = quota - counts if fits else quota
            if fits:
                held += group
            else:
                left.append(group)
        rest = left
    missing = count - len(held)
    trained = [row for group in rest[1:] for row in group] + (rest[0][missing:] if rest else [])
    return sorted(held), sorted(trained)


def _digest(texts: Sequence[str]) -> str:
    words = sorted(" ".join(_WORDS.findall(text.casefold())) for text in texts)
    return hashlib.sha256("\0".join([SEED, *words]).encode()).hexdigest()


def _shares(sizes: Counter[Hashable], count: int) -> Counter[Hashable]:
    """``count`` divided in proportion to ``sizes``: rounded down, the rest given to the largest remainders."""
    total = sizes.total()
    shares = Counter({stratum: count * size // total for stratum, size in sizes.items()})
    order = sorted(sizes, key=lambda stratum: (-(count * sizes[stratum] % total), str(stratum)))
    shares.update(order[: count - shares.total()])
    return shares
