"""Score against hours of training: the cells of ``scores``, each device in a panel of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adalora_repro.records.selection import device_of
from adalora_repro.reports.figures import data, drawing
from adalora_repro.reports.figures.scores import against
from adalora_repro.reports.spec import Scope

if TYPE_CHECKING:
    import pandas as pd

CAPTION = "hours as recorded, without evaluations; other work on the machine makes them longer."


def figure(runs: pd.DataFrame, scope: Scope) -> drawing.Figure:
    """A cell whose runs were made on several devices has a point for each, of the runs made there."""
    runs = data.shown_runs(runs, scope)
    runs = runs[runs["time.train_s"].notna()]
    hours = runs["time.train_s"].astype(float) / 3600
    runs = runs.assign(device=[device_of(run.record) for run in runs.run], hours=hours)
    cells = data.cells_of(runs, "device", hours=("hours", "mean"))
    return against("hours", "hours of training", CAPTION, cells, runs, scope, apart=("task", "device"))


REPORT = drawing.report_of("hours", "Score against hours of training", figure)
