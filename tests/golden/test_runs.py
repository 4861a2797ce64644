"""A tiny run of every method and of every kind of task: its record, its log and its files."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Cli, only_run

from golden import rows
from golden.conftest import HERE, Golden
from golden.entry import names

METHODS = names("method")
#: what processors may differ by in a run of 24 steps; correlations near 0 differ by more of themselves
TOLERANCE = {"": 1e-3, "pearson": 1e-2, "spearman": 1e-2, "corr": 1e-2}
SETTINGS = (
    *("data=local", "data.dir=data", "backbone=tiny-bert", "task.max_length=48"),
    *("train.batch_size=8", "train.max_steps=24", "train.log_steps=4", "train.eval_steps=8", "train.device=cpu"),
    "method.schedule=scaled",
)
STSB = ("task=stsb", *SETTINGS)  # its figures show small differences, those of classes do not
LR = ("optim.lr=2e-3",)
#: a run of each kind of task, in the other protocol too
TASKS = {
    "cola-holdout": ("task=cola", "method=lora", "data.holdout=8", "train.grad_accumulation=2", "optim.lr=5e-3"),
    "mnli-released": ("task=mnli", "protocol=released", "optim.lr=1e-2"),
    "squad_v2": (
        *("task=squad_v2", "method=full", "budget=0.16%", "optim.lr=5e-3"),
        *("task.stride=8", "task.null_threshold=20"),
    ),
    "xsum": (
        *("task=xsum", "method=full", "budget=0.26%", "backbone=tiny-bart", "optim.lr=1e-2"),
        *("task.max_target_length=12", "task.num_beams=2"),
    ),
}
#: parts of a record that differ from run to run
VOLATILE = ("time", "memory", "environment", "progress")
#: parts of GLUE's predictions that are newer than the files here (tests/unit/test_glue.py has them)
NEWER = ("index", "logits", "label_name", "prediction_name")


def kept(folder: Path) -> dict[str, Any]:
    """What a run left behind, without what differs from run to run."""
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    progress = {name: record["progress"][name] for name in ("step", "total_steps")}
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {
        "folder": folder.as_posix(),
        "files": files,
        "metrics": {name: value for name, value in record.items() if name not in VOLATILE} | {"progress": progress},
        "log": [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()],
        "predictions": {path.name: predictions(path) for path in sorted(folder.glob("final/predictions.*"))},
    }


def predictions(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [{name: value for name, value in row.items() if name not in NEWER} for row in rows]


def ran(cli: Cli, *words: str) -> dict[str, Any]:
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    return kept(only_run().folder)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "lora_rank_pattern"])
def test_a_method(method: str, cli: Cli, golden: Golden) -> None:
    rows.write(Path("data"), "stsb")
    lr = () if method == "lora_at_adalora" else LR  # whose own rate is all that it is about
    golden(f"runs/{method}.json", ran(cli, *STSB, *lr, f"method={method}"), TOLERANCE)


def test_ranks_of_another_run(cli: Cli, golden: Golden) -> None:
    rows.write(Path("data"), "stsb")
    source = ran(cli, *STSB, *LR, "method=adalora")["folder"]
    Path(source).rename("source")
    golden(
        "runs/lora_rank_pattern.json",
        ran(cli, *STSB, *LR, "method=lora_rank_pattern", "method.rank_pattern=source"),
        TOLERANCE,
    )


@pytest.mark.parametrize("name", TASKS)
def test_a_task(name: str, cli: Cli, golden: Golden) -> None:
    words = TASKS[name]
    rows.write(Path("data"), words[0].removeprefix("task="))
    golden(f"runs/{name}.json", ran(cli, *SETTINGS, *words), TOLERANCE)


def test_every_file_belongs_to_a_run() -> None:
    assert {path.stem for path in (HERE / "runs").iterdir()} == {*METHODS, *TASKS}
