"""Tasks whose data are files of the user's own (``task.hub`` null): what follows from the files is filled in."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from adalora_repro.errors import InputError
from adalora_repro.tasks import families, row_files, sources

SHOWN = 8  # classes in a note


def filled(cfg: DictConfig) -> tuple[DictConfig, list[str]]:
    """The configuration with what follows from the files, and a line on each thing that was not given.

    ``task.validation_share`` becomes null where there is a validation file. The family fills in the classes, the head
    and the metrics (``BaseTask.from_labels``).

    Raises:
        InputError: the data are not local; a file is missing, there twice, empty, or lacks a column; what the family
            refuses of its labels; ``task.validation_share`` for a task of the hub.
    """
    task = cfg.task
    if any(OmegaConf.is_missing(task, name) for name in ("name", "family")) or task.family not in families():
        return cfg, []  # refused later
    if task.hub is not None:
        if task.validation_share is not None:
            raise InputError(f"{sources.SHARE}: {task.name} has a validation split; data.holdout takes rows of train")
        return cfg, []
    if cfg.data.source != "local":
        raise sources.not_on_the_hub(cfg)
    cfg = cfg.copy()
    task = cfg.task
    splits, notes = sources.splits(cfg), []
    if all(sources.present(cfg, split)[1] for split in splits[1:]):
        task.validation_share = None
    elif task.validation_share is not None and len(splits) > 2:
        raise InputError(f"{sources.SHARE} makes one validation split, {task.name} has {', '.join(splits[1:])}")
    labels = []
    for split in splits if task.validation_share is None else splits[:1]:
        _check_columns(cfg, split)
        labels.append(sources.content(cfg, split).labels)
    if task.validation_share is not None:
        rows = sources.content(cfg, sources.TRAIN).rows
        notes.append(
            f"no validation file; held out as the validation split: {rows - sources.train_rows(cfg):,} of the {rows:,} "
            f"rows of train ({sources.SHARE}={task.validation_share}), chosen by a hash of the texts, the same for "
            "every method and seed"
        )
    named = list(task.class_names)
    for name, value in families()[task.family].Task.from_labels(cfg, labels).items():
        OmegaConf.update(task, name, value, merge=False)
    if list(task.class_names) != named:
        classes = ", ".join(f"{number} {name}" for number, name in enumerate(task.class_names[:SHOWN]))
        more = f", … ({len(task.class_names)})" if len(task.class_names) > SHOWN else ""
        notes.append(f"classes: {classes}{more}: the sorted labels of train (task.class_names is not set)")
    return cfg, notes


def _check_columns(cfg: DictConfig, split: str) -> None:
    path = sources.file_of(cfg, split)
    where, row = next(row_files.rows(path), (str(path), None))
    if row is None:
        raise sources.nothing_left(str(path), cfg, split, sources.BadRows(False))
    for column in (*cfg.task.text_columns, cfg.task.label_column):
        if isinstance(row, dict) and column not in row:
            missing = sources.missing_column(column, row)
            raise InputError(f"{where}: {missing}; task.text_columns=[…] and task.label_column=… name yours")
