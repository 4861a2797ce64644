"""The end of ``make quickstart``: a table of what was trained, the page, and the page's address.

    python -m adalora_repro.cli.quickstart results/quickstart

Numbers on generated text are compared with nothing: no paper's line, no marks of significance.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.records.run_record import RunRecord, read_all


def table(records: Sequence[RunRecord]) -> str:
    """One line a method, in the order of the runs: mean accuracy in percent, trained parameters, seconds."""
    from tabulate import tabulate

    methods = dict.fromkeys(record.key["method"] for record in sorted(records, key=lambda r: r.progress["updated"]))
    rows = []
    for method in methods:
        runs = [record for record in records if record.key["method"] == method]
        scores = [100 * record.final["metrics"][record.primary_metric] for record in runs if record.final]
        seconds = [record.time["train_s"] + record.time["eval_s"] for record in runs]
        rows.append((method, mean(scores), f"{runs[0].params['total']:,}", round(mean(seconds))))
    names = ("method", f"mean {records[0].primary_metric} (%)", "trainable parameters", "seconds")
    return tabulate(rows, names, floatfmt=".1f", colalign=("left", "right", "right", "right"))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of the finished runs below a folder of results, and makes their page."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1:
        print("quickstart: name one folder of results", file=sys.stderr)
        return EXIT_BAD_INPUT
    folder = words[0]
    records, _ = read_all(Path(folder))
    finished = [record for _, record in records if record.status == "ok"]
    if not finished:
        print(f"quickstart: no finished run below {folder}", file=sys.stderr)
        return EXIT_BAD_INPUT
    code = report.main(["html", "--results", folder])
    print(f"\n{table(finished)}\n\nThese scores are on generated text, not GLUE. Next: README.md, docs/own.md.")
    print(f"The page: {(Path(folder) / 'report.html').resolve().as_uri()}")
    return code or EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
