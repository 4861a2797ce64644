"""The figures: their points from records, and every form they come in."""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from fake_records import make, save
from hypothesis import given
from hypothesis import strategies as st

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK, InputError
from adalora_repro.records import run_record
from adalora_repro.records.selection import Run
from adalora_repro.reports.curves import curve, evenly
from adalora_repro.reports.figures import curves, data, drawing, figure1, figure2, figure3, figure4, hours, scores
from adalora_repro.reports.frame import frame_of
from adalora_repro.reports.spec import Scope, paper_rows

SCOPE = Scope("minilm", "local")
ENCODER = ("q", "k", "v", "attn_out", "ffn_in", "ffn_out")
DECODER = (*ENCODER[:4], "cross_q", "cross_k", "cross_v", "cross_out", *ENCODER[4:])
FIGURES = ("figure1", "figure2", "figure3", "figure4", "scores", "hours", "curves", "intervals", "rates", "agreement")
Captured = pytest.CaptureFixture[str]


def pattern(stack: str = "encoder", layers: int = 2, roles: Sequence[str] = ENCODER) -> dict[str, int]:
    names = [f"{stack}.{layer}.{role}" for layer in range(layers) for role in roles]
    return {name: i % 7 for i, name in enumerate(names)}


def adalora(**changes: Any) -> Any:
    return make(method="adalora", rank_pattern=changes.pop("rank_pattern", pattern()), **changes)


def write_log(folder: Path, size: int, steps: Sequence[int], kept: float = 0.1) -> None:
    """What training writes: lines of steps with both norms of every matrix, an evaluation, half a line at the end."""
    lines: list[dict[str, Any]] = []
    for t in steps:
        norms = {"orthogonality_P": [kept / t] * size, "orthogonality_Q": [0.0] + [kept] * (size - 1)}
        lines.append({"t": t, "loss": 1 / t, "b_t": 100 - t, **norms})
    lines.append({"t": steps[-1], "evaluation": {"accuracy_m": 0.9, "accuracy": kept}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + '{"t": 99, "loss": 0.', encoding="utf-8")


def run_of(results: Path, record: Any) -> Run:
    return Run(save(results, record), record)


def records(results: Path) -> pd.DataFrame:
    return frame_of(run_record.read_all(results)[0], checkpoints=["final"])


# --- points -----------------------------------------------------------------------------------------------------------


def test_figure1_has_a_point_for_each_choice_of_matrices(tmp_path: Path) -> None:
    for seed, score in enumerate((0.80, 0.82)):
        settings = {"method.targets": ["q"], "method.layers": None}
        save(tmp_path, make(score, task="mnli", budget="r15-q", seed=seed, settings=settings))
    params = {"method": 276_480, "total": 1}
    save(tmp_path, make(0.9, task="mnli", budget="r6", settings={"method.targets": ["ffn_in"]}, params=params))
    save(tmp_path, make(0.7, task="mnli", budget="r10-10.11", settings={"method.layers": [10, 11]}))
    save(tmp_path, make(0.6, task="mnli", budget="r10-2.3", settings={"method.layers": [2, 3]}))
    save(tmp_path, make(0.5, task="mnli"))  # every matrix
    save(tmp_path, make(0.5, task="rte", budget="r15-q", settings={"method.targets": ["q"]}))  # another task
    both = {"method.targets": ["q"], "method.layers": [0]}
    save(tmp_path, make(0.5, task="mnli", budget="r15-q-0", settings=both))  # neither panel
    figure = figure1.figure(records(tmp_path), SCOPE)
    assert list(figure.points.choice) == ["q", "ffn_in", "2, 3", "10, 11"]
    first = figure.points.iloc[0]
    assert (first.score, first.sd, first.seeds) == (pytest.approx(81), pytest.approx(2**0.5), "0, 1")
    line = ["method.targets", "ffn_in", "0.28M", "accuracy_m", "90.00", "", "0", "1e-3", "1"]
    assert list(drawing.texts(figure.table).iloc[1]) == line
    assert any("not at one budget" in note for note in figure.notes)  # 276,480 and 331,776
    assert figure.commands == []


def test_figure2_has_the_papers_points_and_ours_at_the_share_that_is_trained(tmp_path: Path) -> None:
    """Ours: 331,776 and 335,616 of 183,831,552, in the mean 0.181524%; the paper's: 0.3M of as many, and 0.65%."""
    for seed, (score, method) in enumerate([(0.80, 331_776), (0.82, 335_616)]):
        params = {"method": method, "head": 5, "total": method + 5, "at_init": 663_840, "backbone": 183_831_552}
        save(tmp_path, make(score, task="mnli", method="adalora", seed=seed, params=params))
    for other in ({"budget": "r3"}, {"budget": "nan%"}, {"method": "houlsby"}, {"task": "cola"}):
        save(tmp_path, make(0.5, **{"task": "mnli"} | other))
    save(tmp_path, make(70.0, task="squad_v2", budget="0.08%"))
    figure = figure2.figure(records(tmp_path), SCOPE)
    cells = {name: part.set_index(data.CELL) for name, part in figure.points.groupby("of")}
    assert cells["ours"].score.to_dict() == {
        ("mnli", "adalora", "0.3M"): pytest.approx(81),
        ("squad_v2", "lora", "0.08%"): 70.0,
    }
    printed = {
        (task, row["method"], row["budget"]): float(row[column])
        for task, (_, spec, column) in figure2.TASKS.items()
        for row in paper_rows(spec.paper_file)
        if row["method"] in ("lora", "adalora") and task != "xsum"  # BART's
    }
    assert cells["paper"].score.to_dict() == printed | {("squad_v2", "adalora", "4.65%"): 88.89}
    assert cells["ours"].share["mnli", "adalora", "0.3M"] == pytest.approx(100 * 333_696 / 183_831_552)
    assert cells["paper"].share["mnli", "adalora", "0.3M"] == pytest.approx(100 * 300_000 / 183_831_552)
    assert cells["paper"].share["squad_v2", "lora", "0.65%"] == 0.65
    assert "task=mnli method=lora,adalora budget=1.2M" in figure.commands[0]
    assert figure.legend[1].label == "AdaLoRA, paper (deberta-v3-base)"
    summaries = figure2.figure(frame_of([]), Scope("bart-large", "hub"))
    assert set(summaries.points.task) == {"xsum"}


def test_figure3_reads_encoders_and_decoders(tmp_path: Path) -> None:
    ranks = pattern("encoder", 2) | pattern("decoder", 3, DECODER)
    figure = figure3.figure(frame_of([]), SCOPE, [run_of(tmp_path, adalora(rank_pattern=ranks))])
    assert dict(zip(figure.points["matrix"], figure.points["rank"], strict=True)) == ranks
    assert len(figure.panels) == 2
    table = drawing.texts(figure.table)
    assert list(table) == ["run", "stack", "role", "0", "1", "2"]
    lines = {tuple(line[1:3]): list(line[3:]) for line in table.itertuples(index=False)}
    assert len(lines) == 6 + 10
    assert lines["encoder", "ffn_out"] == [str(ranks["encoder.0.ffn_out"]), str(ranks["encoder.1.ffn_out"]), ""]
    with pytest.raises(InputError, match="has no ranks"):
        figure3.figure(frame_of([]), SCOPE, [run_of(tmp_path, adalora(rank_pattern=None, task="rte"))])


def test_figure3_shows_the_tasks_with_the_newest_runs(tmp_path: Path) -> None:
    for i, task in enumerate(("rte", "cola", "mrpc", "stsb", "sst2", "rte")):
        save(tmp_path, adalora(task=task, seed=i, progress={"updated": float(i)}))
    runs = figure3.figure(records(tmp_path), SCOPE).points.run.unique()
    assert [run.split()[0] for run in runs] == ["rte", "sst2", "stsb", "mrpc"]


def test_figure3_draws_matrices_that_the_paper_has_no_name_for(tmp_path: Path) -> None:
    run = run_of(tmp_path, adalora(rank_pattern=pattern(roles=("qkv", "ffn_in_gate"))))
    assert "qkv" in str(drawing.render(figure3.figure(frame_of([]), SCOPE, [run]), "svg"))


def test_figure4_sets_the_newest_run_beside_one_with_another_gamma(tmp_path: Path) -> None:
    for i, (method, gamma) in enumerate((("adalora_gamma0", 0.0), ("adalora", 0.1), ("adalora", 0.1))):
        record = adalora(seed=i, settings={"method.gamma": gamma}, progress={"updated": float(i)}, variant=str(gamma))
        record.key["method"] = method
        write_log(save(tmp_path, record).parent, len(pattern()), (10, 20, 40))
    points = figure4.figure(records(tmp_path), SCOPE).points
    assert [text.split("γ=")[1] for text in points.run.unique()] == ["0.1 seed 2", "0 seed 0"]
    assert set(points["matrix"]) == {"encoder.0.attn_out", "encoder.0.ffn_out"}
    assert list(zip(points.step, points.value, strict=True))[:3] == [(10, 0.01), (20, 0.005), (40, 0.0025)]
    assert len(points) == 2 * 2 * 2 * 3
    assert figure4.figure(frame_of([]), SCOPE).points.empty


def test_scores_are_one_point_a_cell_and_a_constant_prediction_is_flagged(tmp_path: Path) -> None:
    for seed, score in enumerate((0.80, 0.82)):
        save(tmp_path, make(score, task="mnli", seed=seed))
    save(tmp_path, make(0.0, method="bitfit", budget="bitfit", degenerate=True))
    save(tmp_path, make(0.3, task="mnli", seed=2, max_examples=10))
    figure = scores.figure(records(tmp_path), SCOPE)
    assert list(figure.points.score) == [0.0, pytest.approx(81)]
    assert list(drawing.texts(figure.table).degenerate) == ["yes", ""]
    assert [panel.title for panel in figure.panels] == ["cola: matthews_correlation (%)", "mnli: accuracy_m (%)"]


def test_hours_of_two_devices_are_never_in_one_panel(tmp_path: Path) -> None:
    """A cell with seeds on two GPUs is a point of each; the hours are the mean over the seeds there."""
    for seed, (seconds, device) in enumerate(((3600.0, "H100"), (10800.0, "H100"), (32400.0, "V100"))):
        of_gpu = {"memory": {"of": "cuda allocator"}, "environment": {"device": device, "threads": seed}}
        save(tmp_path, make(0.8, seed=seed, time={"train_s": seconds}, **of_gpu))
    save(tmp_path, make(0.8, task="rte"))  # without a time
    figure = hours.figure(records(tmp_path), SCOPE)
    titles = [f"cola: matthews_correlation (%)\n{device}" for device in ("H100", "V100")]
    assert [panel.title for panel in figure.panels] == titles
    assert list(zip(figure.points.hours, figure.points.seeds, strict=True)) == [(2.0, "0, 1"), (9.0, "2")]


def test_curves_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, kept in enumerate((0.2, 0.4)):
        write_log(save(tmp_path, adalora(task="rte", seed=seed)).parent, 12, (10, 20), kept)
    figure = curves.figure(records(tmp_path), SCOPE)
    assert [panel.title for panel in figure.panels] == ["rte: development score", "rte: b(t)", "rte: training loss"]
    values = figure.points.groupby("quantity", observed=True).value.agg(list).to_dict()
    assert values["development score"] == [pytest.approx(30.0)]
    assert values["b(t)"] == [90, 80]
    assert values["training loss"] == [0.1, 0.05]
    assert set(figure.points.seeds) == {2}


def test_curves_pass_over_what_is_not_theirs(tmp_path: Path) -> None:
    write_log(tmp_path, 2, (1, 2, 4))
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert curve(tmp_path, "loss", most=2)[0] == (1, 1.0)
    assert curve(tmp_path, "b_t") == [(1, 99), (2, 98), (4, 96)]
    assert curve(tmp_path, "evaluation", itemgetter("accuracy_m")) == [(4, 0.9)]
    assert curve(tmp_path, "evaluation", itemgetter("f1")) == []
    assert curve(tmp_path, "orthogonality_P", itemgetter(1)) == [(1, 0.1), (2, 0.05), (4, 0.025)]
    assert curve(tmp_path, "orthogonality_P", itemgetter(2)) == []
    bad = ["[1]", '{"t": "1", "loss": 1}', '{"t": 3, "loss": "x"}', '{"t": 3, "loss": true}', "\xff", '{"t": 3}']
    bad += ['{"t": -1, "loss": 1}', f'{{"t": {"9" * 400}, "loss": 1}}', f'{{"t": 3, "loss": {"9" * 400}}}']
    bad += ['{"t": 3, "loss": NaN}', '{"t": 3, "loss": 1e300}', '{"loss":' + "[" * 100_000]
    bad += ['{"t": 3, "evaluation": 1}', '{"t": 3, "evaluation": {"loss": "x"}}']
    (tmp_path / "log.jsonl").write_text("\n".join(bad), encoding="utf-8")
    assert curve(tmp_path, "loss") == curve(tmp_path, "evaluation", itemgetter("loss")) == []
    assert curve(tmp_path / "nowhere", "loss") == []
    (tmp_path / "log.jsonl").unlink()
    os.mkfifo(tmp_path / "log.jsonl")  # nothing waits for it
    assert curve(tmp_path, "loss") == []


@given(st.lists(st.integers(), unique=True), st.integers(2, 20))
def test_thinned_points_keep_both_ends_and_their_order(items: list[int], most: int) -> None:
    thin = evenly(items, most)
    assert len(thin) == min(len(items), most)
    assert thin == sorted(thin, key=items.index)
    assert (thin[:1], thin[-1:]) == (items[:1], items[-1:])


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with results/ that fill every figure."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results")
    save(folder, make(0.8, task="mnli", budget="r15-q", settings={"method.targets": ["q"]}))
    save(folder, make(0.7, task="mnli", seed=1, time={"train_s": 60.0}))
    save(folder, make(0.6, task="mnli", seed=1, lr=2e-3))
    save(folder, adalora(task="mnli", seed=1))
    write_log(save(folder, adalora(task="mnli", progress={"updated": 2.0})).parent, len(pattern()), (10, 20))
    save(folder, adalora(task="rte", progress={"updated": 1.0}))
    return folder


@pytest.mark.parametrize("name", FIGURES)
def test_every_form(results: Path, capsys: Captured, name: str) -> None:
    assert report.main([name]) == EXIT_OK
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0].count(". ") >= 1
    assert report.main([name, "--out", "points.csv"]) == EXIT_OK
    points = list(csv.DictReader(io.StringIO(Path("points.csv").read_text(encoding="utf-8"))))
    assert any(point["record"].startswith("results/runs/minilm/mnli/") for point in points)
    for ending, magic in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert report.main([name, "--out", f"drawn.{ending}"]) == EXIT_OK
        assert Path(f"drawn.{ending}").read_bytes().startswith(magic)
    assert report.main([name, "--out", "again", "--format", "svg"]) == EXIT_OK
    assert Path("again").read_bytes() == Path("drawn.svg").read_bytes()
    ElementTree.parse("drawn.svg")


def test_runs_may_be_folders_or_records(results: Path, capsys: Captured) -> None:
    folder = next((results / "runs/minilm/rte").glob("**/metrics.json")).parent
    assert report.main(["figure3", str(folder), str(folder / "metrics.json")]) == EXIT_OK
    out = capsys.readouterr().out
    assert "rte adalora" in out
    assert "mnli" not in out.split("- The paper")[0]


@pytest.mark.parametrize("name", FIGURES)
def test_without_records_a_command_is_named(tmp_path: Path, capsys: Captured, name: str) -> None:
    (tmp_path / "runs").mkdir()
    assert report.main([name, "--results", str(tmp_path)]) == EXIT_OK
    assert "  adalora-run " in capsys.readouterr().out


@pytest.mark.parametrize(("other", "shown"), [("tiny", "minilm"), ("deberta-v3-base", "deberta-v3-base")])
def test_figures_and_tables_show_the_same_backbone(tmp_path: Path, capsys: Captured, other: str, shown: str) -> None:
    """The paper's, or else the one with most runs."""
    for backbone, seed in ((other, 0), ("minilm", 0), ("minilm", 1)):
        save(tmp_path, make(backbone=backbone, seed=seed))
    for name in ("table1", "scores"):
        assert report.main([name, "--results", str(tmp_path)]) == EXIT_OK
        assert f"Backbone {shown}; --backbone chooses among" in capsys.readouterr().out.replace("\n", " ")


def test_in_a_page_names_are_apart_and_colours_are_the_pages(results: Path) -> None:
    evil = Run(results / "runs/x/metrics.json", adalora(task="rte", budget='"><b>\u202e\uffffevil'))
    figures = [
        figure3.figure(records(results), SCOPE),
        figure4.figure(records(results), SCOPE),
        figure3.figure(frame_of([]), SCOPE, [evil]),
    ]
    html = "".join(drawing.inline(figure, SCOPE) for figure in figures)
    texts = re.findall("<svg.*?</svg>", html, re.DOTALL)
    assert len(texts) == 2 + 2 + 1
    ids = [re.findall(' id="([^"]+)"', text) for text in texts]
    assert len(set().union(*ids)) == sum(map(len, ids))
    for text, names in zip(texts, ids, strict=True):
        ElementTree.fromstring(text.replace("<svg", '<svg xmlns:xlink="x"', 1))
        assert {*re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', text)} == {*names}
        assert not re.search("#[0-9a-f]{6}[^0-9a-f]", text.replace("#ffffff", ""))
        assert "currentColor" in text
    link = re.search('<a [^>]*#run=([^"]+)[^>]*><title>([^<]*encoder.1.ffn_out[^<]*)', html)
    assert re.match("minilm/(mnli|rte)/adalora/", link[1])
    assert "stack encoder; layer 1; role ffn_out; rank 4" in link[2]
    assert "<b>" not in html
    assert "\u202e" not in html
