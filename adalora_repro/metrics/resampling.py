"""The bootstrap behind every interval and test over examples or pairs of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CONFIDENCE = 0.95
BATCH = 2_000_000  # numbers drawn at once, about 24 bytes each


def bootstrap(samples: tuple[Any, ...], statistic: Callable[..., Any], resamples: int) -> Any:
    """scipy's result, with the percentile interval of level ``CONFIDENCE``.

    Samples (n,) are resampled together, always with the same random numbers. ``statistic`` takes samples (…, n) and
    their ``axis``.
    """
    import numpy as np
    from scipy import stats

    return stats.bootstrap(
        samples,
        statistic,
        paired=len(samples) > 1,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH // len(samples[0])),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
