"""The hub where it cannot be reached: its libraries would try each request for half a minute, and say so each time."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

TIMEOUT_S = 10.0  # of one try; the libraries' own for such a request
AGAIN_S = 1.0  # until the second try: a network that works may miss one
HOLDS_S = 60.0  # how long an answer holds: the next run of a sweep may have a network again
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)


@contextmanager
def asked() -> Iterator[None]:
    """Around calls that fetch from the hub: without a connection they take what the cache has, or fail at once."""
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
    """Whether the endpoint answers, whatever it says: asked as the libraries ask, through the user's proxies.

    Args:
        when: another number asks anew.
    """
    from huggingface_hub import get_session

    del when
    for pause in (AGAIN_S, 0.0):
        try:
            get_session().head(endpoint, timeout=TIMEOUT_S)
            return True
        except Exception as error:  # of a library that changes with huggingface_hub's version: httpx, requests
            if not _no_connection(error):
                return True
        time.sleep(pause)
    return False


def _no_connection(error: BaseException | None) -> bool:
    """Whether an error comes from a name that is not known, a connection that is refused or an answer that is late."""
    while error is not None:
        if isinstance(error, socket.gaierror | ConnectionError | TimeoutError):
            return True
        if isinstance(error, OSError) and error.errno in UNREACHABLE:
            return True
        error = error.__cause__ or error.__context__
    return False
