"""The list of all runs on the page: a line each, the command that runs it again, and what is behind it as JSON."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adalora_repro.config.words import lr_text, started_with, word
from adalora_repro.errors import clean, duration
from adalora_repro.records.run_record import RunRecord, stated
from adalora_repro.records.selection import run_of
from adalora_repro.reports.figures.data import run_name
from adalora_repro.reports.spec import Record, results_words
from adalora_repro.reports.status import WORDS
from adalora_repro.reports.text import fixed

OWN = ("optim.lr", "seed")  # settings in which the runs of a cell differ
#: settings that a command repeats where they are not null, by section
SECTIONS = {
    "budget": "match params",
    "data": "holdout",
    "eval": "max_examples",
    "optim": "weight_decay max_grad_norm",
    "method": "r d gamma targets layers schedule alpha init",
    "train": "epochs max_steps batch_size grad_accumulation precision padding group_by_length",
}
REPEATED = [f"{section}.{name}" for section, names in SECTIONS.items() for name in names.split()]
NULLABLE = ("train.eval_steps",)  # null says: at the end of each epoch
#: a schedule that is scaled with the number of steps makes these from the task's own
STEPS = ("method.t_i", "method.t_f", "method.delta_t", "optim.warmup_steps")


def data_of(records: Sequence[Record], results: Path, beside: Path) -> str:
    """What is behind each run, as JSON that is inert inside HTML; ``beside`` is the folder of the page.

    A run's ``parts`` are titles with indices into ``shared``, which keeps once what many runs have in common. All
    values are the record's own JSON texts: the page shows what the record says.
    """
    shared: dict[str, int] = {}

    def share(values: dict[str, str]) -> int:
        return shared.setdefault(json.dumps(values, allow_nan=False), len(shared))

    runs = {}
    for path, record in records:
        values = record.to_json()
        settings = values["settings"]
        groups = {
            "Result": {key: values[key] for key in ("status", "primary_metric", "final", "best", "degenerate")},
            "Key": values["key"],
            "Learning rate and seed": {key: settings[key] for key in OWN if key in settings},
            "Parameters and budget": {key: values[key] for key in ("params", "budget")},
            "Time and memory": {key: values[key] for key in ("time", "memory", "progress")},
            "Other settings": {key: value for key, value in settings.items() if key not in OWN},
            "Environment": values["environment"],
            "Data": values["data"],
            "Final ranks": values["rank_pattern"] or {},
        }
        parts = {title: flat(part) for title, part in groups.items()}
        runs[run_name(path, results)] = {
            "path": str(path),
            "href": quote(os.fsencode(os.path.relpath(path, beside))),
            "error": record.error or "",
            "parts": {title: share(part) for title, part in parts.items() if part},
        }
    whole = {"runs": runs, "shared": [json.loads(text) for text in shared]}
    text = json.dumps(whole, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # none that could end the element is left
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def flat(values: Any, name: str = "") -> dict[str, str]:
    """Nested values by dotted name, each as the record's JSON has it; a text without its quotes."""
    if isinstance(values, dict) and values:
        parts: dict[str, str] = {}
        for key, value in values.items():
            parts |= flat(value, f"{name}.{key}" if name else str(key))
        return parts
    text = values if isinstance(values, str) else json.dumps(values, ensure_ascii=False, allow_nan=False)
    return {name: text} if name else {}


def filter_words(record: RunRecord) -> str:
    """Words that find, in the list of runs, those of the record's cell with its learning rate and other settings."""
    key = record.key
    names = ("task", "method", "budget", "backbone", "data", "protocol")
    return words_of({name: key[name] for name in names} | {"lr": lr_text(float(key["lr"])), "setting": key["variant"]})


def words_of(values: Mapping[str, Any]) -> str:
    """ "task=cola method=lora", each without a blank inside."""
    return " ".join(f"{name}={'_'.join(clean(str(value)).split()) or '_'}" for name, value in values.items())


def row_of(path: Path, record: RunRecord, results: Path) -> dict[str, Any]:
    """One line of the list: (heading, text, value to sort by) of each column, words to filter by, and the command."""
    key = record.key
    score = run_of(path, record).scores.get(record.primary_metric)
    seconds, peak = record.time.get("train_s"), record.memory.get("peak")
    step = key["total_steps"] if record.status == "ok" else record.progress.get("step")
    lr = float(key["lr"])
    return {
        "name": run_name(path, results),
        "status": WORDS[record.status],
        "kind": record.status,
        "degenerate": record.degenerate,
        "metric": record.primary_metric,
        "words": f"{filter_words(record)} seed={key['seed']} status={record.status}",
        "cells": [
            ("Task", key["task"], None),
            ("Method", key["method"], None),
            ("Budget", key["budget"], None),
            ("lr", lr_text(lr), lr),
            ("Seed", str(key["seed"]), key["seed"]),
            ("Score (%)", "" if score is None else fixed(score), score),
            ("Time", "" if seconds is None else duration(seconds), seconds),
            ("Memory", "" if peak is None else f"{peak / 2**30:.2f} GiB", peak),
            ("Steps", "" if step is None else f"{step:,}", step),
            ("Setting", f"{key['backbone']}, {key['data']}, {key['protocol']}", None),
        ],
        "command": command_of(path, record, results),
    }


def command_of(path: Path, record: RunRecord, results: Path) -> str:
    """The command that runs this again: the one that was typed or, of a run before this was kept, one made of its
    record."""
    try:
        return clean(shlex.join(["adalora-run", *started_with(path.parent / "config.yaml")]))
    except (OSError, ValueError):
        return command_of_record(record, results)


def command_of_record(record: RunRecord, results: Path) -> str:
    """What is scaled with the number of steps (warmup, t_i) follows from it."""
    key, settings = record.key, stated(record.settings)
    words = [word("task", key["task"]), word("method", key["method"])]
    named = key["budget"] != key["method"] and settings.get("budget.match") is None and "method.r" not in settings
    words += [word("budget", key["budget"])] if named or "budget.label" in settings else []
    words += [word("backbone", key["backbone"]), word("data", key["data"])]
    words += ["data.dir=DIR"] if key["data"] == "local" else []
    words += [word("protocol", key["protocol"])] if key["protocol"] != "paper" else []
    words += [word("optim.lr", float(key["lr"])), word("seed", key["seed"])]
    steps = () if settings.get("method.schedule") == "scaled" else STEPS
    for name in (*REPEATED, *steps, *NULLABLE):
        if name in settings and ((value := settings[name]) is not None or name in NULLABLE):
            words.append(f"'{name}=[{','.join(map(str, value))}]'" if isinstance(value, list) else word(name, value))
    return " ".join(["adalora-run", *words, *results_words(results)])
