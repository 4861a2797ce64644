"""Being here puts ``tests/`` on the import path: helpers that several tests share lie beside this file."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    """``hydra.compose`` over conf/ for the tests of a module; what that registers is forgotten behind it."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    from adalora_repro import run
    from adalora_repro.config import resource

    store = ConfigStore.instance()
    before = dict(store.repo)
    GlobalHydra.instance().clear()
    run._register()
    with initialize_config_dir(str(resource("conf")), version_base="1.3"):
        yield
    store.repo = before
    if "datasets" in sys.modules:
        sys.modules["datasets"].enable_progress_bars()  # what building a run switched off
