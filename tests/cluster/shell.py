"""adalora-run and adalora-report as a user starts them, with tiny runs that something happens to."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from task_configs import ROOT, TINY

from adalora_repro.records import run_record
from adalora_repro.records.run_record import RunRecord

COMMAND = (
    *(word for word in TINY if word != "train.max_steps=6"),
    "task=cola",
    "method=adalora",
    "optim.lr=1e-2",
    "train.max_steps=36",
    "train.save_steps=6",
    "train.eval_steps=12",
)
SEEDS = ("seed=0,1,2,3,4,5",)
FAILING = 3  # its seed
PATIENCE_S = 600.0  # beside other work
#: with ADALORA_SLOW every step takes a while, so that a run can be interrupted, and seed 3 has a spoilt step
CUSTOM = f"""
import os
if os.environ.get("ADALORA_SLOW"):
    import sys, time, importlib.abc
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "adalora_repro.training.runner":
                sys.meta_path.remove(self)
                from adalora_repro.training import loop as train
                step = train.step
                def slowly(loop, batches):
                    time.sleep(float(os.environ["ADALORA_SLOW"]))
                    norm = step(loop, batches)
                    if loop.plan.cfg.seed == {FAILING}:
                        loop.losses[-1] = loop.losses[-1] * float("nan")
                    return norm
                train.step = slowly
    sys.meta_path.insert(0, Finder())
"""


class Shell:
    """adalora-run and adalora-report in a folder, as a user starts them."""

    def __init__(self, folder: Path) -> None:
        (folder / "custom").mkdir()
        (folder / "custom" / "sitecustomize.py").write_text(CUSTOM, encoding="utf-8")
        self.folder = folder
        paths = [str(folder / "custom"), str(ROOT)]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def start(self, module: str, *words: str, slow: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"adalora_repro.cli.{module}", *words]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | {"ADALORA_SLOW": slow},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, *words: str, slow: str = "") -> tuple[int, str, str]:
        process = self.start("run", *words, f"data.cache_dir={self.folder / 'cache'}", slow=slow)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def status(self) -> str:
        out, err = self.start("report", "status", "--backbone", "tiny-bert").communicate(timeout=PATIENCE_S)
        assert not err
        return out.partition("\n\nReproduction of Table 2")[0]

    def records(self, results: str = "results") -> dict[int, RunRecord]:
        found, refused = run_record.read_all(self.folder / results)
        assert not refused
        return {record.key["seed"]: record for _, record in found}

    def log(self, seed: int, results: str = "results") -> list[Any]:
        folder = run_record.run_folder(self.folder / results, self.records(results)[seed].key)
        return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]

    def checkpoint(self, seed: int) -> bool:
        found = self.records()
        return (
            seed in found
            and (run_record.run_folder(self.folder / "results", found[seed].key) / "checkpoint.pt").exists()
        )

    def require_undisturbed(self, *seeds: int) -> None:
        """These runs, and no others, are those of a sweep that nothing happened to."""
        words = f"seed={','.join(map(str, seeds))}", "results.dir=undisturbed"
        code, _, err = self.run("-m", *COMMAND, *words)
        assert code == 0, err
        expected, found = self.records("undisturbed"), self.records()
        assert sorted(expected) == sorted(seed for seed, record in found.items() if record.status == "ok")
        for seed, record in expected.items():
            assert found[seed].measured() == record.measured()
            assert found[seed].rank_pattern is not None
            assert self.log(seed) == self.log(seed, "undisturbed")


def until(what: Callable[[], object], describe: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, describe()
        time.sleep(0.3)
