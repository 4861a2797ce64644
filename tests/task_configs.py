"""Configurations of tasks as Hydra composes them, but without the rest of conf/; real data where there are some."""

import copy
import functools
import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from adalora_repro.config.schema import Config
from adalora_repro.errors import InputError

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml") if OmegaConf.load(path).task.get("hub"))
#: settings of a run that takes a second; T = 6 optimizer steps
TINY = (
    "backbone=tiny-bert",
    "task.max_length=32",
    "data=sample",
    "data.sample_rows=64",
    "data.sample_validation_rows=32",
    "train.batch_size=8",
    "train.max_steps=6",
    "train.log_steps=2",
    "train.device=cpu",
    "method.schedule=scaled",
)

REAL_DATA = Path(os.environ.get("ADALORA_TEST_DATA", ROOT.parent / "shared" / "data"))
needs_real_data = pytest.mark.skipif(
    not (REAL_DATA / "cola" / "train.jsonl.gz").is_file(), reason="no real data (ADALORA_TEST_DATA names their folder)"
)


def task_yaml(task: str) -> DictConfig:
    """The task's file without its defaults list, which is Hydra's (``backbone`` for summarization)."""
    values = OmegaConf.load(CONF / "task" / f"{task}.yaml")
    values.pop("defaults", None)
    return values


@functools.cache
def _over_schema(task: str) -> DictConfig:
    return OmegaConf.merge(OmegaConf.structured(Config), task_yaml(task))


def task_config(task: str, source: str = "sample", **options: Any) -> DictConfig:
    """The task's YAML over the schema, ``data.source`` and dotted options: ``task_config("rte", data__dir="x")``."""
    cfg = copy.deepcopy(_over_schema(task))
    for name, value in {"data__source": source, **options}.items():
        OmegaConf.update(cfg, name.replace("__", "."), value)
    return cfg


def with_backbone(cfg: DictConfig, name: str, **changes: Any) -> DictConfig:
    """The configuration with the backbone of this file."""
    cfg.backbone = OmegaConf.merge(cfg.backbone, OmegaConf.load(CONF / "backbone" / f"{name}.yaml"), changes)
    return cfg


def word_pieces() -> Any:
    """The tokenizer of MiniLM's package, which strips accents and lowers case; the test is skipped without it."""
    from adalora_repro.models import backbones

    try:
        return backbones.load_tokenizer(with_backbone(task_config("rte"), "minilm"))
    except InputError as error:
        pytest.skip(str(error))


def write_jsonl(path: Path, lines: Iterable[Any], compress: bool = True) -> Path:
    """Writes objects as JSON and texts as they are, one a line."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    return path
