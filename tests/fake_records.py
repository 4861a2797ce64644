"""Records as the training side writes them, without training."""

from pathlib import Path
from typing import Any

from adalora_repro.records.revisions import present
from adalora_repro.records.run_record import RunRecord, run_folder, write

GLUE = {
    "mnli": ("accuracy_m", "accuracy_mm"),
    "sst2": ("accuracy",),
    "cola": ("matthews_correlation",),
    "qqp": ("accuracy", "f1"),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "stsb": ("corr", "pearson", "spearman"),
}
SQUAD_V2 = ("HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1", "best_exact", "best_f1")
THRESHOLDS = ("best_exact_thresh", "best_f1_thresh")
ROUGE = tuple(f"rouge{n}{end}" for n in ("1", "2", "L", "Lsum") for end in ("", "_low", "_high"))
PERCENT = {  # percentages, where GLUE has fractions
    "squad": ("exact", "f1"),
    "squad_v2": ("exact", "f1", *SQUAD_V2, *THRESHOLDS),
    "xsum": ROUGE,
    "cnn_dailymail": ROUGE,
}
METRICS = GLUE | PERCENT
PRIMARY = {"squad": "f1", "squad_v2": "f1", "xsum": "rouge2", "cnn_dailymail": "rouge2"}


def make(score: float | dict[str, float] = 0.5, held_out: float | None = None, **changes: Any) -> RunRecord:
    """A finished run. ``score`` is of every metric or by name, in the task's unit; ``held_out`` of the primary metric.

    Keyword arguments change the key or the record.
    """
    key: dict[str, Any] = {
        "backbone": "minilm",
        "task": "cola",
        "method": "lora",
        "budget": "0.3M",
        "protocol": "paper",
        "data": "local",
        "lr": 1e-3,
        "seed": 0,
        "total_steps": 100,
        "max_examples": None,
        "variant": "v1",
        "hash": "",
    }
    for name in list(changes):
        if name in key and not isinstance(changes[name], dict):  # ``budget`` is a label in the key, a dict outside
            key[name] = changes.pop(name)
    key["hash"] = key["hash"] or f"{key['variant']}h{key['seed']}"
    names = METRICS[key["task"]]
    metrics = score if isinstance(score, dict) else dict.fromkeys(names, score)
    record = RunRecord(
        key=key,
        primary_metric=PRIMARY.get(key["task"], names[0]),
        status="ok",
        final={"metrics": metrics, "step": key["total_steps"]},
        params={"method": 331_776, "head": 592_130, "total": 923_906, "at_init": 331_776, "backbone": 183_831_552},
        data={"source": "local", "rows": {"train": 8551, "validation": 1043}},
        settings={"optim.lr": key["lr"], "seed": key["seed"]} | present(key["method"]),
    )
    if held_out is not None:
        record.final["holdout"] = {record.primary_metric: held_out}
    for name, value in changes.items():
        if not hasattr(record, name):
            raise TypeError(name)
        setattr(record, name, value)
    return record


def save(results: Path, record: RunRecord) -> Path:
    """Writes the record where it belongs; its path."""
    folder = run_folder(results, record.key)
    folder.mkdir(parents=True, exist_ok=True)
    return write(record, folder)
