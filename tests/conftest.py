"""Being here puts ``tests/`` on the import path: helpers that several tests share lie beside this file."""

import copy
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest


def pytest_configure() -> None:
    """Python looks for garbage after every 700 new objects; composing a configuration makes hundreds of thousands."""
    gc.set_threshold(50_000, 20, 20)
    hypothesis.settings.register_profile("untimed", deadline=None)  # an example takes longer on a busy machine
    hypothesis.settings.load_profile("untimed")
    import absl.logging  # rouge-score brings it along

    # its handler closes the stream that was standard error when it was made (pytest's capture) when logging is set up
    absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


# CPython keeps Python frames in chunks of 16 KiB and maps one anew for each call that crosses the end of one: a loop at
# an unlucky depth spends more time in mmap and munmap than in its work (half of the time of these tests). A frame that
# says it needs 512 KiB gets a chunk of 1 MiB, and all that a test calls fits into its other half.
call.__code__ = call.__code__.replace(co_stacksize=2**16)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    """Each test runs below a frame that has a chunk of its own."""
    runner = item.config.pluginmanager.get_plugin("runner")
    return call(runner.pytest_runtest_protocol, item, nextitem)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of reports wrap where they do in a file, whatever terminal the tests were started from."""
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """OmegaConf parses a YAML text once; copies are handed out. Processes that tests start have nothing of this."""
    import yaml

    parse = yaml.load
    texts: dict[str, Any] = {}

    def load(stream: Any, Loader: Any) -> Any:
        if Loader.__name__ != "OmegaConfLoader" or not hasattr(stream, "read"):
            return parse(stream, Loader)
        text = stream.read()
        if text not in texts:
            stream.seek(0)  # an error names the file
            texts[text] = parse(stream, Loader)
        return copy.deepcopy(texts[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", load)
        yield


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    """``hydra.compose`` over conf/ for the tests of a module; what that registers is forgotten behind it."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    from adalora_repro.cli import run
    from adalora_repro.config.catalog import resource

    store = ConfigStore.instance()
    before = dict(store.repo)
    GlobalHydra.instance().clear()
    run.register()
    with initialize_config_dir(str(resource("conf")), version_base="1.3"):
        yield
    store.repo = before
    if "datasets" in sys.modules:
        sys.modules["datasets"].enable_progress_bars()  # what building a run switched off
