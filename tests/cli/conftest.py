"""adalora-run in this process: importing torch and transformers once, not once per test."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from task_configs import TINY

from adalora_repro.cli import model, run
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.records import run_record
from adalora_repro.training import loop

ROOT = Path(run.__file__).parents[2]


@dataclass
class Outcome:
    """What a call of adalora-run left behind for its caller."""

    code: int
    out: str
    err: str  # without ``beginning``
    beginning: str = ""


Cli = Callable[..., Outcome]


def ok(done: Outcome) -> Outcome:
    """What a command left behind that succeeded."""
    assert done.code == EXIT_OK, (done.out, done.err)
    return done


def refused(done: Outcome) -> str:
    """The one line of wrong input, without its beginning; nothing was filed."""
    assert done.code == EXIT_BAD_INPUT, (done.out, done.err)
    (line,) = done.err.splitlines()
    assert line.startswith("adalora-run: error: ")
    assert not Path("results").exists()
    return line.removeprefix("adalora-run: error: ")


@dataclass
class Run:
    """One run folder on disk."""

    folder: Path

    @property
    def record(self) -> run_record.RunRecord:
        return run_record.read(self.folder / run_record.RECORD_NAME)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.log if "loss" in line]


Whole = Callable[..., Run]


def find_runs(results: str | Path = "results") -> list[Run]:
    return [Run(path.parent) for path in run_record.find(Path(results))]


def only_run(results: str | Path = "results") -> Run:
    (found,) = find_runs(results)
    return found


#: what every run says before its first step
BEGINNING = re.compile(
    r"^(?:.*  )?(?:.* on \S+, seed \d+, data=\w+|.* steps, [\d,]+ trainable parameters|tokenizing|loading weights)\n",
    re.MULTILINE,
)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Calls ``adalora-run`` with these words in an empty folder; nothing it changes in Hydra or the shell stays."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read from the environment on import
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    cache = f"data.cache_dir={tmp_path / 'cache'}"

    def call(*words: str) -> Outcome:
        store, config = ConfigStore.instance(), HydraConfig.instance()
        repo, before = dict(store.repo), config.cfg
        GlobalHydra.instance().clear()
        options = (
            [] if any(word.startswith("--") for word in words) or words[:1] in (("list",), ("settings",)) else [cache]
        )
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["adalora-run", *words, *options])
            try:
                code = run.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                store.repo, config.cfg = repo, before
                GlobalHydra.instance().clear()
        assert "HYDRA_FULL_ERROR" not in os.environ
        out, err = capsys.readouterr()
        return Outcome(code, out, BEGINNING.sub("", err), "".join(BEGINNING.findall(err)))

    return call


@pytest.fixture
def tiny(cli: Cli) -> Cli:
    """``cli`` with the settings of a tiny run; a word given again wins."""

    def call(*words: str) -> Outcome:
        keys = {word.lstrip("+").split("=")[0] for word in words}
        options = [word for word in words if word.startswith("-")]
        settings = [word for word in TINY if word.split("=")[0] not in keys]
        return cli(*options, *settings, *[word for word in words if word not in options])

    return call


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Calls ``adalora-model`` with these words."""

    def call(*words: str | Path) -> Outcome:
        capsys.readouterr()
        return Outcome(model.main([*map(str, words)]), *capsys.readouterr())

    return call


# -- runs that something happens to ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_runs() -> dict[tuple[str, ...], Path]:
    return {}


@pytest.fixture
def undisturbed(tiny: Cli, whole_runs: dict[tuple[str, ...], Path], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run of a command that nothing happens to; made once for the tests of a module."""

    def run_of(*words: str) -> Run:
        if words not in whole_runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            assert tiny(*words, f"results.dir={folder}").code == 0
            whole_runs[words] = folder
        return only_run(whole_runs[words])

    return run_of


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def predictions(run: Run) -> dict[str, bytes]:
    """The files in ``final/`` and ``best/``."""
    return {name: content for name, content in files_below(run.folder).items() if name.startswith(("final/", "best/"))}


def require_same(run: Run, expected: Run) -> None:
    """Record, curve and predictions; and neither a checkpoint nor a lock is left."""
    assert run.record.measured() == expected.record.measured()
    assert run.log == expected.log
    assert predictions(run) == predictions(expected)
    assert not [
        path for name in ("checkpoint*.pt", ".lock") for path in run.folder.glob(name) if ".old-" not in str(path)
    ]


def after_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[Any], object]) -> None:
    """``act`` on the run after this step."""
    whole = loop.step

    def acting(run: Any, batches: Any) -> Any:
        norm = whole(run, batches)
        if run.t == step:
            act(run)
        return norm

    patch.setattr(loop, "step", acting)


def at_call(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, act: Callable[[], object]) -> list[int]:
    """``act`` at the beginning of this call of ``owner.name``; returns how many calls there were."""
    original, calls = getattr(owner, name), [0]

    def acting(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            act()
        return original(*args)

    patch.setattr(owner, name, acting)
    return calls


def signal_after_step(patch: pytest.MonkeyPatch, step: int, signum: int = signal.SIGTERM) -> None:
    after_step(patch, step, lambda _: os.kill(os.getpid(), signum))
