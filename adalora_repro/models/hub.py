"""Access to the hub without a network: its libraries would retry each request for half a minute, with warnings."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

TIMEOUT_S = 10.0  # of one attempt, as in the libraries
HOLDS_S = 60.0  # how long an answer is cached: the next run of a sweep may have a network again


@contextmanager
def asked() -> Iterator[None]:
    """Around calls that download from the hub: without a connection they use the cache, or fail at once."""
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT, int(time.monotonic() / HOLDS_S))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@lru_cache(maxsize=1)
def _reachable(endpoint: str, when: int) -> bool:
    """Whether the endpoint answers one of two requests, made as the libraries do, through the user's proxies.

    Args:
        when: part of the cache key: a new number asks again.
    """
    from huggingface_hub import get_session

    for _ in range(2):  # a working network may lose one request
        try:
            get_session().head(endpoint, timeout=TIMEOUT_S)
            return True
        except Exception as error:  # of the HTTP library, which depends on the version of huggingface_hub
            if not _no_connection(error):
                return True
    return False


def _no_connection(error: BaseException | None) -> bool:
    """Whether an error means that nobody answers; a refused certificate is an answer."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error is not None and not isinstance(error, ssl.SSLError)
