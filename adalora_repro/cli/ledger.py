"""What became of the runs of one command, and the summary at the end of a sweep."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adalora_repro.config.resolve import record_in
from adalora_repro.config.sweep import Words
from adalora_repro.config.words import key_of
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, EXIT_TERMINATED
from adalora_repro.records.run_record import RunRecord

Outcome = tuple[str, int]  # a word for the summary, the exit code
DONE, ALREADY, PLANNED, FAILED, REFUSED = "done", "already done", "planned", "failed", "refused"
SKIPPED, INTERRUPTED = "skipped (another process has them)", "interrupted"
SUBMITTED, QUEUED = "submitted", "already queued"
ENDS = {EXIT_OK: DONE, EXIT_FAILED: FAILED, EXIT_BAD_INPUT: REFUSED}


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep: ``label`` is "[3/12] cola lora 0.3M lr 1e-3 seed 0"; without a folder it is refused.

    ``earlier`` is the record that ``force=true`` starts over.
    """

    label: str
    folder: Path | None = None
    earlier: RunRecord | None = None

    @property
    def reason(self) -> str:
        """Why it has failed, and where to look."""
        record = record_in(self.folder) if self.folder else None
        error = record.error if record is not None and record.status == "failed" else None
        return "; ".join(str(part) for part in (error, self.folder) if part)


def outcome_on_disk(run: SweepRun) -> Outcome:
    """Of a run whose process is gone: it ended, was refused or killed, its node is gone, or it never began."""
    record = record_in(run.folder) if run.folder else None
    if record is None or record.status == "failed" or record == run.earlier:
        return FAILED, EXIT_FAILED
    return (DONE, EXIT_OK) if record.status == "ok" else (INTERRUPTED, EXIT_TERMINATED)


def without_force(words: Sequence[str], run: SweepRun) -> list[str]:
    """For a run that a cluster may start several times: force=true starts over once, and then has another record."""
    begun = run.folder is not None and record_in(run.folder) != run.earlier
    return [word for word in words if not (begun and key_of(word) == "force")]


def report_command(tables: Iterable[str], key: Mapping[str, Any], results: Path) -> str:
    """The command that shows the runs of a sweep, by the key of one: its table's, or that of any runs."""
    folder = Path(__file__).parents[1] / "reports" / "tables"
    words = ["adalora-report", "runs"]
    if table := next((name for name in tables if (folder / f"{name}.py").is_file()), None):
        words = ["adalora-report", table, "--backbone", key["backbone"]]
        words += ["--data", key["data"]] if key["data"] != "hub" and table != "table15" else []  # which shows all data
    words += [f"--results={results}"] if results != Path("results") else []
    return shlex.join(words)


@dataclass
class Ledger:
    """What became of the runs of one command, each by its words; the sweeper (hydra_plugins) adds what it passes over.

    Attributes:
        sweep: the runs of a sweep, in their order; ``refusals``: why some of them are refused.
        left_out: runs of a later stage that have no learning rate to go on with.
        report: the command that shows the runs of a sweep.
        begun: a configuration is composed: later errors may not be the user's fault; ``inside``: a run has begun.
        apart: this is one run of a sweep whose others are in other processes.
    """

    outcomes: dict[Words, Outcome] = field(default_factory=dict)
    sweep: dict[Words, SweepRun] = field(default_factory=dict)
    refusals: dict[Words, str] = field(default_factory=dict)
    left_out: int = 0
    report: str = ""
    begun: bool = False
    inside: bool = False
    apart: bool = False
    began: float = field(default_factory=time.time)

    @property
    def code(self) -> int:
        return max((code for _, code in self.outcomes.values()), default=EXIT_OK)

    def summary(self) -> str | None:
        """The end of a sweep: counts, each failure with its reason and folder, the report; None for a single run."""
        if not self.sweep or not self.outcomes:
            return None
        counts = Counter(outcome for outcome, _ in self.outcomes.values())
        counts |= Counter({"not started": len(self.sweep) - len(self.outcomes), "left out": self.left_out})
        lines = []
        for words, (outcome, _) in self.outcomes.items():
            if outcome in (FAILED, REFUSED):
                run = self.sweep[words]
                lines.append(f"{outcome}: {run.label}: {self.refusals.get(words, run.reason)}")
        lines += [f"report: {self.report}"] if self.report else []
        order = [DONE, ALREADY, PLANNED, SUBMITTED, QUEUED, FAILED, REFUSED, SKIPPED, INTERRUPTED]
        total = ", ".join(f"{counts[word]} {word}" for word in [*order, "not started", "left out"] if counts[word])
        return "\n".join([*lines, f"sweep: {total}"])
