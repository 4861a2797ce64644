"""adalora-model: what can be done with a finished run.

``predict`` answers texts with the model that the run keeps, as JSON Lines; ``export`` writes that model to a folder of
its own, for HF PEFT or as a checkpoint of transformers. ``score`` computes the run's figures again from its stored
predictions, through ``evaluate``, and compares them with the record: with the metrics of this package, or with
``--hub`` with the hub's own modules.

Exit codes: 0 done (score: equal), 1 score: not equal, 2 wrong input (no run, an unfinished one, nothing stored; one
line on stderr), 130 Ctrl-C.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import sys
import zlib
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro import __version__
from adalora_repro.cli.arguments import Parser, completed, exit_code
from adalora_repro.errors import EXIT_FAILED, EXIT_OK, InputError, clean, first_line
from adalora_repro.records import run_record, validation
from adalora_repro.records.run_record import RecordError, RunRecord
from adalora_repro.tasks.held_out import HOLDOUT

if TYPE_CHECKING:
    from omegaconf import DictConfig

CHECKPOINTS = ("final", "best")
FORMS = ("peft", "merged")
TOLERANCE = 1e-9  # relative; the same sums over the same numbers
HUB_TOLERANCE = 1e-6  # the hub's modules hold numbers in 32 bits
NOT_STORED = ("written_tokens",)  # figures of what is not among the predictions
#: figure of GLUE -> configuration of the hub's module that computes it
HUB_GLUE = {"accuracy": "sst2", "f1": "mrpc", "matthews_correlation": "cola", "pearson": "stsb", "spearman": "stsb"}
OURS = {"exact_match": "exact", "spearmanr": "spearman"}  # the hub's names of figures -> this package's


@dataclass(frozen=True)
class Stored:
    """One checkpoint's predictions of a finished run.

    Attributes:
        folder: ``final`` or ``best`` of the run.
        cfg: the run's settings, as the task and its data need them.
        hub: whether the hub's own metrics compute the figures.
    """

    folder: Path
    record: RunRecord
    cfg: DictConfig
    hub: bool

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of one ``*.jsonl.gz``.

        Raises:
            InputError: it is not there or cannot be read.
        """
        path = self.folder / name
        try:
            with gzip.open(io.BytesIO(run_record.content_of(path))) as file:
                rows = [validation.parse(line) for line in file]
        except FileNotFoundError:
            raise InputError(f"{path}: no such file: this run's predictions are not stored here") from None
        except (RecordError, OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{path}: cannot be read ({first_line(error)})") from None
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path}: no predictions in it")
        return rows

    def references(self, split: str, ids: Sequence[str]) -> list[Any]:
        """The label column of the rows with these ids, read again from the run's data.

        Raises:
            InputError: the data cannot be had, have changed, or lack an id.
        """
        from adalora_repro.tasks import load_family, sources

        cfg = self.cfg
        if cfg.data.source == "local" and not cfg.data.dir:
            raise InputError(
                f"the references of {cfg.task.name} are in the run's data: --data-dir DIR names their folder"
            )
        recorded = self.record.data.get("fingerprint")
        if recorded not in (sources.fingerprint(cfg), cfg.data.source == "local" and sources.byte_fingerprint(cfg)):
            raise InputError(f"the data of {cfg.task.name} are not those of the run: their fingerprints differ")
        origin = sources.TRAIN if split == HOLDOUT else split
        rows = sources.load_split(cfg, origin, load_family(cfg), sources.BadRows(bool(cfg.data.skip_invalid)))
        labels = dict(zip(rows["id"][:], rows[cfg.task.label_column][:], strict=True))
        if missing := [key for key in ids if key not in labels]:
            raise InputError(f"the {origin} split of {cfg.task.name} has no row '{missing[0]}'")
        return [labels[key] for key in ids]


def computed(stored: Stored, ours: str, theirs: tuple[str, str | None], **inputs: Any) -> dict[str, float]:
    """Figures by this package's metric, or by the hub's (module and configuration) under this package's names.

    Raises:
        InputError: the hub's can neither be loaded from there nor from the cache of an earlier time.
    """
    import evaluate

    from adalora_repro.metrics import metric

    if not stored.hub:
        return dict(metric(ours).compute(**inputs) or {})
    try:
        loaded = evaluate.load(*theirs)
    except (OSError, ImportError) as error:  # no connection is an OSError
        raise InputError(
            f"--hub: cannot load the metric '{theirs[0]}' ({first_line(error)}); it needs a connection to the hub, or "
            "the cache of an earlier time"
        ) from None
    return {OURS.get(name, name): float(value) for name, value in (loaded.compute(**inputs) or {}).items()}


def glue(stored: Stored, split: str, name: str) -> dict[str, float]:
    """Figures of ``predictions.<split>.jsonl.gz``, which holds the labels too."""
    rows = stored.rows(f"predictions.{split}.jsonl.gz")
    inputs = {"predictions": [row["prediction"] for row in rows], "references": [row["label"] for row in rows]}
    names = list(stored.cfg.task.metrics)
    if not stored.hub:
        return computed(stored, "+".join(names), ("glue", None), **inputs)
    figures = [figure for figure in names if figure in HUB_GLUE]
    return {figure: computed(stored, figure, ("glue", HUB_GLUE[figure]), **inputs)[figure] for figure in figures}


def squad(stored: Stored, split: str, name: str) -> dict[str, float]:
    """Figures of ``nbest<name>.jsonl.gz``; 2.0: of the best answers and the odds that there is none."""
    rows = stored.rows(f"nbest{name}.jsonl.gz")
    ids = [row["id"] for row in rows]
    references = [
        {"id": key, "answers": answers} for key, answers in zip(ids, stored.references(split, ids), strict=True)
    ]
    threshold = stored.cfg.task.null_threshold
    if threshold is None:
        predictions = [{"id": row["id"], "prediction_text": row["prediction"]} for row in rows]
        return computed(stored, "squad", ("squad", None), predictions=predictions, references=references)
    answers = [next(answer["text"] for answer in row["n_best"] if answer["start"] is not None) for row in rows]
    predictions = [
        {"id": row["id"], "prediction_text": text, "no_answer_probability": row["null_odds"]}
        for row, text in zip(rows, answers, strict=True)
    ]
    inputs = {"predictions": predictions, "references": references, "no_answer_threshold": threshold}
    return computed(stored, "squad_v2", ("squad_v2", None), **inputs)


def summarization(stored: Stored, split: str, name: str) -> dict[str, float]:
    """Figures of ``predictions<name>.jsonl.gz``."""
    from adalora_repro.metrics import rouge

    rows = stored.rows(f"predictions{name}.jsonl.gz")
    texts = {
        "predictions": [row["prediction"] for row in rows],
        "references": stored.references(split, [row["id"] for row in rows]),
    }
    if not stored.hub:
        return computed(stored, "rouge", ("rouge", None), **texts)
    lines = {key: list(map(rouge.sentence_lines, values)) for key, values in texts.items()}
    figures = computed(stored, "rouge", ("rouge", None), **lines, use_stemmer=True)
    return {figure: 100 * value for figure, value in figures.items()}


FAMILIES: dict[str, Callable[[Stored, str, str], dict[str, float]]] = {
    "glue": glue,
    "squad": squad,
    "summarization": summarization,
}


def configuration(record: RunRecord, data_dir: str | None) -> DictConfig:
    """What of the run's settings its task and data need."""
    from omegaconf import OmegaConf

    from adalora_repro.config.schema import Config

    values: Any = OmegaConf.to_container(OmegaConf.structured(Config))  # an older run lacks some settings
    cfg: DictConfig = OmegaConf.create(values)
    for name, value in record.settings.items():
        if name.startswith(("task.", "data.")):
            OmegaConf.update(cfg, name, value)
    cfg.data.dir = data_dir
    return cfg


def score(record: RunRecord, run: Path, select: str, hub: bool, data_dir: str | None) -> tuple[str, bool]:
    """A table of the record's figures beside those computed again, and whether they are equal.

    Raises:
        InputError: there is nothing to compute them from.
    """
    from tabulate import tabulate

    family = record.settings.get("task.family")
    entry = record.final if select == "final" else record.best
    if family not in FAMILIES or entry is None:
        raise InputError(f"{run}: no checkpoint '{select}' of a task family that can be computed again")
    stored = Stored((run if run.is_dir() else run.parent) / select, record, configuration(record, data_dir), hub)
    splits = dict(stored.cfg.task.validation)
    rows = []
    try:
        for suffix, split in splits.items():
            rows += compared(FAMILIES[family](stored, split, suffix), entry["metrics"], suffix, hub, "")
        if HOLDOUT in entry:
            figures = FAMILIES[family](stored, HOLDOUT, f".{HOLDOUT}")
            primary = next(suffix for suffix in splits if any(f"{f}{suffix}" == record.primary_metric for f in figures))
            rows += compared(figures, entry[HOLDOUT], primary, hub, f"{HOLDOUT} ")
    except (LookupError, TypeError, ValueError, StopIteration) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{stored.folder}: no predictions of {stored.cfg.task.name} ({problem})") from None
    if not rows:
        raise InputError(f"{run}: the {'hub' if hub else 'record'} has none of the figures computed again")
    table = tabulate(rows, ("figure", "record", "computed again", ""), floatfmt=".10g")
    return table, all(row[-1] == "equal" for row in rows)


def compared(
    figures: Mapping[str, float], recorded: Mapping[str, float], suffix: str, hub: bool, label: str
) -> list[tuple[str, float, float, str]]:
    """(figure, of the record, computed again, ``equal`` or the difference) of the figures that both have.

    The bounds of intervals are a bootstrap's with our seed: the hub's are others.
    """
    rows = []
    for name, value in figures.items():
        figure = f"{name}{suffix}"
        if figure not in recorded or name in NOT_STORED:
            continue
        before, tolerance = recorded[figure], HUB_TOLERANCE if hub else TOLERANCE
        equal = math.isclose(before, value, rel_tol=tolerance, abs_tol=tolerance)
        rows.append((label + figure, before, value, "equal" if equal else f"differs by {value - before:+.3g}"))
    return rows


def parser() -> Parser:
    """The command line."""
    program = Parser(prog="adalora-model", description="Work with a finished run.", allow_abbrev=False)
    program.add_argument("--version", action="version", version=f"adalora-model {__version__}")
    commands = program.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    words = "recompute a run's metrics from its stored predictions and compare them with its record"
    command = commands.add_parser("score", help=words, description=words, allow_abbrev=False)
    command.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run, or its metrics.json")
    command.add_argument("--select", choices=CHECKPOINTS, default="final", help="checkpoint (default: %(default)s)")
    command.add_argument("--hub", action="store_true", help="use the hub's own glue, squad, squad_v2 or rouge module")
    command.add_argument("--data-dir", metavar="DIR", help="data.dir of a run on local SQuAD or summarization data")
    words = "predict on texts with a run's model; prints JSON Lines"
    command = commands.add_parser("predict", help=words, description=words, allow_abbrev=False)
    command.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run, or of an exported model")
    command.add_argument(
        "texts",
        metavar="TEXT",
        nargs="*",
        help="the texts of each row, in the order of the task's columns: question, then context",
    )
    command.add_argument(
        "--file", metavar="FILE", help="rows: .jsonl, .csv, .tsv, .parquet, or lines of text; - is standard input"
    )
    command.add_argument("--batch-size", metavar="N", type=int, default=32, help="rows at once (default: %(default)s)")
    command.add_argument("--device", default="cpu", help="default: %(default)s")
    words = "write a run's model to a new folder, to be loaded without this program"
    exporting = commands.add_parser("export", help=words, description=words, allow_abbrev=False)
    exporting.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    exporting.add_argument("--to", metavar="DIR", type=Path, required=True, help="the new folder")
    exporting.add_argument("--as", dest="form", choices=FORMS, default="peft", help="default: %(default)s")
    for each in (command, exporting):
        each.add_argument("--backbone", metavar="DIR", help="folder of the backbone, if it has moved since the run")
    return program


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""

    def command() -> int:
        args = completed(parser()).parse_args(argv)
        return {"score": run_score, "predict": run_predict, "export": run_export}[args.command](args)

    return exit_code("adalora-model", command)


def run_score(args: Namespace) -> int:
    _, record = run_record.finished(args.run)
    table, equal = score(record, args.run, args.select, args.hub, args.data_dir)
    print(table)
    print("equal" if equal else "not equal: the record and the stored predictions disagree")
    return EXIT_OK if equal else EXIT_FAILED


def run_predict(args: Namespace) -> int:
    if bool(args.texts) == (args.file is not None):
        raise InputError("predict: give texts, or --file FILE (- is standard input)")
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size} must be 1 or more")
    from adalora_repro.training import answers

    columns = answers.columns_of(args.run)
    rows = answers.rows_of(args.texts, columns) if args.file is None else answers.read_rows(args.file, columns)
    for answer in answers.answers(args.run, rows, args.batch_size, args.backbone, args.device):
        print(json_line(answer), flush=True)
    return EXIT_OK


def json_line(value: Any) -> str:
    """JSON that a terminal shows: what cannot be printed is escaped, since ``guarded`` would put a question mark."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def run_export(args: Namespace) -> int:
    from adalora_repro.training import kept

    kept.write_export(args.run, args.to, args.form, args.backbone)
    print(f"wrote {clean(str(args.to))}", file=sys.stderr)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
