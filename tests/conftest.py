"""Being here puts ``tests/`` on the import path: helpers that several tests share lie beside this file."""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest

#: configurations kept; a test that repeats a command does so soon
KEPT = 64


def pytest_configure() -> None:
    """Python looks for garbage after every 700 new objects; composing a configuration makes hundreds of thousands."""
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def read_once() -> Iterator[None]:
    """OmegaConf parses a YAML text once, and Hydra composes the same words in the same folder once; copies are handed
    out. Processes that tests start have nothing of this."""
    import yaml
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.config_store import ConfigStore
    from hydra.core.utils import JobRuntime

    parse, compose = yaml.load, ConfigLoaderImpl.load_configuration
    texts: dict[str, Any] = {}
    composed: OrderedDict[Any, Any] = OrderedDict()

    def load(stream: Any, Loader: Any) -> Any:
        if Loader.__name__ != "OmegaConfLoader" or not hasattr(stream, "read"):
            return parse(stream, Loader)
        text = stream.read()
        if text not in texts:
            stream.seek(0)  # an error names the file
            texts[text] = parse(stream, Loader)
        return copy.deepcopy(texts[text])

    def load_configuration(self: ConfigLoaderImpl, **given: Any) -> Any:
        sources = tuple((source.provider, source.path) for source in self.repository.get_sources())
        words = tuple(given.pop("overrides"))
        registered = frozenset(ConfigStore.instance().repo)
        key = (words, *given.items(), sources, registered, os.getcwd(), JobRuntime.instance().get("name"))
        if key not in composed:
            composed[key] = compose(self, overrides=list(words), **given)
            if len(composed) > KEPT:
                composed.popitem(last=False)
        return copy.deepcopy(composed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", load)
        patch.setattr(ConfigLoaderImpl, "load_configuration", load_configuration)
        yield


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
