"""adalora-model score: a finished run's figures again, by this package's metrics and by the hub's."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Cli, Outcome, Run, ok, only_run
from task_configs import write_jsonl

from adalora_repro.cli import model, report
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK
from adalora_repro.metrics import metric
from adalora_repro.reports.compare import BOOTSTRAP, MCNEMAR
from adalora_repro.tasks import toy_text

FEW = ("method=bitfit", "data.sample_rows=12", "data.sample_validation_rows=8", "train.max_steps=2", "optim.lr=1e-2")
SQUAD = ("task.max_length=112", "task.stride=16")
RUNS: dict[str, tuple[str, ...]] = {
    "mnli": ("task=mnli", "data.holdout=4"),
    "stsb": ("task=stsb", "train.eval_steps=1"),
    "squad": ("task=squad", *SQUAD),
    "squad_v2": ("task=squad_v2", *SQUAD, "data.holdout=4", "task.null_threshold=-1"),
    "xsum": (
        *("task=xsum", "backbone=tiny-bart", "+backbone.architecture.init_std=0.2", "task.max_length=64"),
        *("task.max_target_length=16", "task.num_beams=1"),
    ),
}
HUB_NAMES = {"spearman": "spearmanr", "exact": "exact_match"}


def refused(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == EXIT_BAD_INPUT
    assert outcome.err.startswith("adalora-model: error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The hub's modules, as far as they differ from ours: names, fractions, lines split by the caller."""
    calls: list[tuple[str, str | None]] = []

    def load(name: str, configuration: str | None = None) -> Any:
        calls.append((name, configuration))

        def compute(**inputs: Any) -> dict[str, float]:
            if name == "rouge":
                assert inputs.pop("use_stemmer") is True
            figures = metric(configuration or name).compute(**inputs)
            if name == "squad":
                figures = {HUB_NAMES.get(key, key): value for key, value in figures.items()}
            if name == "glue":
                figures = {HUB_NAMES.get(key, key): value for key, value in figures.items() if key != "corr"}
            if name == "rouge":
                figures = {key: value / 100 for key, value in figures.items() if "_" not in key}
            return figures

        return SimpleNamespace(compute=compute)

    monkeypatch.setattr("evaluate.load", load)
    return calls


@pytest.mark.parametrize("task", RUNS)
def test_figures_are_computed_again(
    task: str, tiny: Cli, ask: Cli, hub: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """By ``score``, and by ``adalora-report compare``, which reads the same files."""
    ok(tiny(*RUNS[task], *FEW))
    run = only_run()
    again = ok(ask("score", run.folder))
    assert again.out.splitlines()[-1] == "equal"
    names = {line.split("  ")[0] for line in again.out.splitlines()[2:-1]}
    expected = set(run.record.final["metrics"]) - set(model.NOT_STORED)
    assert names == expected | {f"holdout {name}" for name in run.record.final.get("holdout", {})}
    assert hub == []
    by_hub = ask("score", run.folder / "metrics.json", "--hub")
    assert (by_hub.code, by_hub.out.splitlines()[-1]) == (EXIT_OK, "equal"), by_hub.out
    assert len(hub) >= 1
    if task == "stsb":
        assert ask("score", run.folder, "--select", "best").code == EXIT_OK
    capsys.readouterr()
    assert report.main(["compare", str(run.folder), str(run.folder)]) == EXIT_OK
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    tests = {row[1].strip(): row[2].strip() for row in rows}
    assert tests[run.record.primary_metric] in (MCNEMAR, BOOTSTRAP), tests
    spoilt(run, task)
    differs = ask("score", run.folder)
    assert differs.code == EXIT_FAILED
    assert "differs by" in differs.out


def spoilt(run: Run, task: str) -> None:
    """Predictions that are not those that were scored."""
    name = {"squad": "nbest.jsonl.gz", "squad_v2": "nbest.jsonl.gz", "xsum": "predictions.jsonl.gz"}.get(task)
    path = run.folder / "final" / (name or next((run.folder / "final").glob("predictions.validation*")).name)
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    sizes = {"train": 12, "validation": 8}
    references = {row["id"]: row for row in toy_text.generate(task, "validation", sizes, 0)} if name else {}
    for row in rows:
        if name is None:
            row["prediction"] = row["label"]
        elif task == "xsum":
            row["prediction"] = references[row["id"]]["summary"]
        else:
            text = "".join(references[row["id"]]["answers"]["text"][:1])
            row["prediction"], row["null_odds"] = text, -9.0 if text else 9.0
            row["n_best"] = [{"text": text, "start": 0, "score": 1.0}]
    write_jsonl(path, rows)


def test_local_questions_need_their_data(tiny: Cli, ask: Cli, tmp_path: Path) -> None:
    sizes = {"train": 12, "validation": 8}
    for split in sizes:
        write_jsonl(tmp_path / "data" / "squad" / f"{split}.jsonl.gz", toy_text.generate("squad", split, sizes, 0))
    assert tiny("task=squad", *SQUAD, *FEW[:1], *FEW[3:], "data=local", f"data.dir={tmp_path / 'data'}").code == EXIT_OK
    folder = only_run().folder
    assert ask("score", folder, "--data-dir", tmp_path / "data").code == EXIT_OK
    refused(ask("score", folder), "--data-dir DIR")
    write_jsonl(tmp_path / "data" / "squad" / "validation.jsonl.gz", toy_text.generate("squad", "validation", sizes, 1))
    refused(ask("score", folder, "--data-dir", tmp_path / "data"), "not those of the run")


def test_what_cannot_be_scored(tiny: Cli, ask: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tiny("task=rte", *FEW).code == EXIT_OK
    run = only_run()

    def unreachable(*_: Any) -> None:
        raise ConnectionError("Couldn't reach the Hugging Face Hub")

    monkeypatch.setattr("evaluate.load", unreachable)
    refused(ask("score", run.folder, "--hub"), "--hub", "'glue'", "connection")
    refused(ask("score", tmp_path / "nowhere"), "no record")
    refused(ask("score", run.folder, "--select", "worst"), "invalid choice")
    refused(ask("score"), "RUN")
    (run.folder / "final" / "predictions.validation.jsonl.gz").write_bytes(b"no archive")
    refused(ask("score", run.folder), "cannot be read")
    for row in ({"id": "0"}, {"prediction": "no label", "label": 1}):
        write_jsonl(run.folder / "final" / "predictions.validation.jsonl.gz", [row])
        refused(ask("score", run.folder), "final: no predictions of rte")
    (run.folder / "final" / "predictions.validation.jsonl.gz").unlink()
    refused(ask("score", run.folder), "not stored here")
    path = run.folder / "metrics.json"
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps(record | {"status": "cancelled"}), encoding="utf-8")
    refused(ask("score", run.folder), "not finished (cancelled)")
    path.write_text("{", encoding="utf-8")
    refused(ask("score", run.folder), "metrics.json")
