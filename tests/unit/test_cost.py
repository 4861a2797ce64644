"""measure=cost: what stands for an epoch and a run, the figures of pairs, the record, Table 15 from fake records."""

import argparse
import copy
import dataclasses
import gc
import io
import re
import resource
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import built

from adalora_repro.cli.report import main
from adalora_repro.config import catalog
from adalora_repro.config import resolve as planning
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.records import cost_record, provenance, run_record
from adalora_repro.records.cost_record import CostRecord
from adalora_repro.records.run_record import RecordError
from adalora_repro.reports.output import add_out
from adalora_repro.reports.spec import Request
from adalora_repro.reports.tables import table15
from adalora_repro.training import cost, runner

PUBLISHED = Path(__file__).parents[2] / "results" / "published"


def pair(ours: float, theirs: float) -> dict[str, Any]:
    seconds = {"adalora": ours, "lora": theirs}
    return {"t": 0, "examples": 8, "tokens": 100, "padded_tokens": 128, "order": list(seconds), "seconds": seconds}


def make(created: float = 1.0, **key: Any) -> CostRecord:
    """A measurement of AdaLoRA beside LoRA; keyword arguments change the key."""
    key = {
        "backbone": "deberta-v3-base",
        "task": "mnli",
        "budget": "0.16%",
        "method": "adalora",
        "against": "lora",
        "protocol": "paper",
        "data": "local",
        "precision": "bf16",
        "padding": "longest",
        "weights": "random",
        "batch_size": 32,
        "typed": "",
        "tokenizer": "bytes",
        "device": "a GPU",
        "threads": 1,
    } | key
    names = [key["method"], *([key["against"]] if key["against"] else [])]
    pairs = [pair(1.1, 1.0), pair(2.4, 2.0), pair(3.3, 3.0)]
    for each in pairs:
        each["seconds"] = dict(zip(names, each["seconds"].values(), strict=False))
        each["order"] = names
    return CostRecord(
        key=key,
        methods={
            name: {"budget": key["budget"], "params": {}, "settings": {}, "peak_memory": 11_000_000_000 + number}
            | cost.figures(pairs, name, 100)
            for number, name in enumerate(names)
        },
        pairs=pairs,
        ratio=cost.ratios(pairs, *names) if len(names) > 1 else None,
        epoch={"steps": 100, "examples": 3200},
        memory_of="cuda allocator",
        environment={},
        data={},
        created=created,
    )


# -- what stands for an epoch and a run ----------------------------------------------------------------------------


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 30), st.integers(0, 5))
def test_batches_are_the_middles_of_equal_parts_by_size(sizes: list[int], count: int, seed: int) -> None:
    chosen = cost.middles(sizes, count, seed)
    assert len(chosen) == count
    assert chosen == cost.middles(sizes, count, seed)
    # by hand: the size at (k + 1/2) / K of the way through the sorted sizes
    expected = [sorted(sizes)[int((k + 0.5) * len(sizes) / count)] for k in range(count)]
    assert sorted(sizes[i] for i in chosen) == expected


def test_steps_are_spread_over_the_run() -> None:
    assert cost.steps_over_a_run(10, 5, lambda t: False) == [1, 3, 5, 7, 9]
    assert cost.steps_over_a_run(100, 1, lambda t: False) == [50]
    # MNLI: 8,000 of warm-up, 50,000 of the final phase
    times = cost.steps_over_a_run(85_904, 1000, lambda t: False)
    assert sum(t < 8_000 for t in times) == 93
    assert sum(t >= 35_904 for t in times) == 582


@pytest.mark.parametrize(
    ("method", "protocol", "steps", "of_20"),
    [
        ("adalora", "paper", 25, 3),
        ("adalora", "released", 83, 8),
        ("peft_adalora", "paper", 24, 2),
        ("lora", "paper", 0, 0),
    ],
)
def test_allocations_are_measured_in_their_share(
    hydra: None, tmp_path: Path, method: str, protocol: str, steps: int, of_20: int
) -> None:
    """Of 200 steps the paper's protocol and HF PEFT have one at t = T - t_f = 139, which delta_t does not divide."""
    words = ["method.t_i=20", "method.t_f=61", "method.delta_t=5"] if method != "lora" else []
    words += [f"method={method}", f"protocol={protocol}", "method.schedule=absolute", "budget=0.3M"]
    allocates = built(tmp_path, *words, "train.max_steps=200").method.allocates
    assert sum(map(allocates, range(200))) == steps
    assert sum(map(allocates, cost.steps_over_a_run(200, 20, allocates))) == of_20


def test_epoch_is_the_official_one(hydra: None) -> None:
    cfg = compose("config", ["task=squad_v2", "data=sample", "budget=0.16%", "method.schedule=scaled"])
    plan = planning.resolve(cfg)
    # 1,000 rows here gave 1,010 windows: 130,319 rows would give 131,622, which are 8,227 batches of 16
    assert cost.official_epoch(plan, 1010, {"train": 1000}) == {"examples": 131_622, "steps": 8_227}


def test_what_was_typed_beside_what_the_key_tells() -> None:
    words = [
        "task=mnli",
        "method=adalora",
        "method.gamma=0",
        "+x=1",
        "results.dir=r",
        "data.dir=d",
        "train.batch_size=8",
        "save=none",
        "track=[mlflow]",
    ]
    assert cost.typed(words) == "+x=1 method.gamma=0 train.batch_size=8"


def test_a_mac_s_peak_memory_is_in_bytes_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_value", lambda *_: None)  # there is no /proc
    monkeypatch.setattr(provenance, "sys", SimpleNamespace(platform="darwin"))
    peak = provenance.peak_memory(torch.device("cpu"))["peak"]
    assert peak == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# -- figures -------------------------------------------------------------------------------------------------------

PAIRS = [pair(1.1, 1.0), pair(2.4, 2.0), pair(3.3, 3.0)]


def test_figures_by_hand() -> None:
    assert cost.figures(PAIRS, "adalora", 100) == {
        "median_s": 2.4,
        "mean_s": pytest.approx(6.8 / 3),
        "epoch_s": pytest.approx(680 / 3),
        "tokens_per_s": pytest.approx(300 / 6.8),
    }


def test_ratios_by_hand() -> None:
    found = cost.ratios(PAIRS, "adalora", "lora")
    assert found["median"]["value"] == pytest.approx(1.1)  # of 1.1, 1.2, 1.1
    assert found["epoch"]["value"] == pytest.approx(6.8 / 6)
    assert cost.ratios([pair(1.0, 2.0)], "adalora", "lora")["median"] == {"value": 0.5, "low": None, "high": None}


seconds = st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=2, max_size=12)


@settings(max_examples=20)
@given(seconds, st.floats(0.1, 10))
def test_interval_lies_among_the_pairs_and_has_no_unit(times: list[tuple[float, float]], unit: float) -> None:
    ours, theirs = np.array(times).T
    for statistic in (cost.median_of_ratios, cost.ratio_of_means):
        found = cost.interval(ours, theirs, statistic)
        ends = [found["low"], found["high"]]
        slack = 1 + 1e-9
        assert min(ours / theirs) / slack <= ends[0] <= ends[1] <= max(ours / theirs) * slack
        assert found == cost.interval(ours, theirs, statistic), "the same pairs, another interval"
        scaled = cost.interval(ours * unit, theirs * unit, statistic)
        assert [scaled["low"], scaled["high"]] == pytest.approx(ends)


# -- the record ----------------------------------------------------------------------------------------------------


def test_measurements_are_filed_side_by_side_and_read_back(tmp_path: Path) -> None:
    first, second = (cost_record.write(make(created), tmp_path) for created in (1.0, 2.0))
    folder = tmp_path / "cost" / "deberta-v3-base" / "mnli" / "0.16%"
    assert first == folder / "adalora-lora-bf16-longest-random-1" / "cost.json"
    assert second == folder / "adalora-lora-bf16-longest-random-2" / "cost.json"
    read, refused = cost_record.read_all(tmp_path)
    assert not refused
    assert [path for path, _ in read] == [first, second]
    assert read[0][1] == make(1.0)
    assert run_record.read_all(tmp_path) == ([], [])  # a measurement is no record of training


def test_copies_and_damaged_files_are_named_and_not_counted(tmp_path: Path) -> None:
    path = cost_record.write(make(), tmp_path)
    copied = tmp_path / "cost" / "deberta-v3-base" / "mnli" / "0.65%" / path.parent.name / "cost.json"
    copied.parent.mkdir(parents=True)
    copied.write_bytes(path.read_bytes())
    damaged = tmp_path / "cost" / "x" / "cost.json"
    damaged.parent.mkdir()
    damaged.write_text("{", encoding="utf-8")
    found, refused = cost_record.read_all(tmp_path)
    assert [path for path, _ in found] == [path]
    assert len(refused) == 2
    assert str(copied) in refused[0]
    assert "belongs in" in refused[0]
    assert str(damaged) in refused[1]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("schema_version", 2, "schema_version 2"),
        ("key.threads", True, "key.threads is True"),
        ("key.against", "bitfit", "are not those of the key"),
        ("methods.lora.mean_s", float("nan"), "methods.lora.mean_s is nan"),
        ("pairs", [{"seconds": {"lora": 1.0}}], "pairs[0].order is missing"),
        ("ratio", None, "are not those of the key"),
        ("other", 1, "unknown field 'other'"),
    ],
)
def test_what_is_no_measurement_is_refused_by_name(name: str, value: Any, problem: str) -> None:
    values = copy.deepcopy(dataclasses.asdict(make()))
    *parents, last = name.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(RecordError, match=re.escape(problem)):
        cost_record.validate(values, "FILE")


def test_names_cannot_leave_the_results(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="folder name"):
        cost_record.write(make(task="../x"), tmp_path)
    assert not list(tmp_path.iterdir())


# -- memory --------------------------------------------------------------------------------------------------------


def test_the_process_that_measures_memory_has_the_folder_of_config_dir(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any, input: bytes, **__: Any) -> Any:
        catalog.add_folder(None)  # as in a new process
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(input)))
        cost.answer()
        return SimpleNamespace(returncode=0, stdout=capsys.readouterr().out)

    monkeypatch.setattr(cost.subprocess, "run", run)
    monkeypatch.setattr(cost, "peak_here", lambda *_: {"of": str(*catalog.added_folders())})
    catalog.add_folder(str(tmp_path))
    try:
        plan = SimpleNamespace(key={"method": "lora"})
        assert cost.peak_of(plan, [], torch.device("cpu")) == {"of": str(tmp_path)}
    finally:
        catalog.add_folder(None)


# -- identity of a scoring run -------------------------------------------------------------------------------------


def test_how_a_run_is_measured_is_not_what_is_measured(hydra: None) -> None:
    words = ["task=mrpc", "method=adalora", "budget=1.2M", "backbone=minilm", "data=sample"]
    words += ["method.schedule=scaled", "train.group_by_length=true"]
    plan, measured = (
        planning.resolve(compose("config", [*words, *more])) for more in ([], ["measure=cost", "cost.steps=7"])
    )
    assert measured.key["hash"] == plan.key["hash"]
    assert measured.folder == Path("results/cost/minilm/mrpc/1.2M/adalora-lora-fp32-longest-pretrained")


# -- Table 15 ------------------------------------------------------------------------------------------------------


def report(results: Path, *words: str) -> str:
    parser = argparse.ArgumentParser()
    table15.add_arguments(parser)
    add_out(parser)
    form = [] if "--format" in words else ["--format", "markdown"]
    request = Request(parser.parse_args([*words, *form]), {}, results)
    text = table15.REPORT.make(request)
    assert not request.refused
    return text


def rows_of(text: str) -> dict[tuple[str, str], list[str]]:
    """(name, label) -> the other cells of a markdown table."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return {(name, label): rest for name, label, *rest in cells}


def test_without_measurements_the_paper_speaks_alone() -> None:
    text = report(Path("results"), "--backbone", "bart-large")
    rows = rows_of(text)
    assert rows["MNLI 0.16% LoRA", "paper"] == ["11.098", "", "105", "", "", "", ""]
    assert rows["MNLI 0.16% AdaLoRA", "paper"] == ["11.110", "", "117", "", "", "1.114", ""]
    assert rows["SQuADv2 (by the text) 0.08% AdaLoRA", "paper"] == rows["SST-2 (by the label) 0.08% AdaLoRA", "paper"]
    assert rows["SQuADv2 (by the text) 0.08% AdaLoRA", "paper"][5] == "1.183"
    assert text.splitlines()[-2] == (
        "adalora-run -m task=mnli,squad_v2,sst2 method=adalora budget=0.08%,0.16%,0.65% backbone=bart-large "
        "data=hub measure=cost"
    )


def test_ours_beside_the_paper_s(tmp_path: Path) -> None:
    cost_record.write(make(), tmp_path)
    text = report(tmp_path)
    rows = rows_of(text)
    assert rows["MNLI 0.16% LoRA", "ours"] == ["11.000", "2", "3.3", "0.4", "50", "", ""]  # 7 epochs of 100 steps
    *figures, ratio, median = rows["MNLI 0.16% AdaLoRA", "ours"]
    assert figures == ["11.000", "2.267", "3.8", "0.4", "44"]
    assert ratio.startswith("1.133 \\[1.")
    assert median.startswith("1.100 \\[1.100, 1.200")
    assert "a GPU, 1 thread, bf16, padding longest, random weights, tokenizer: bytes" in text.splitlines()[0]
    assert "budget=0.08%,0.65%" in text  # what is left to measure on MNLI
    assert set(rows_of(report(tmp_path, "--only-filled"))) >= {("MNLI 0.16% LoRA", "ours")}
    assert "SST-2 (" not in report(tmp_path, "--only-filled").split("\n- ")[0]


def test_the_newest_of_a_setting_is_shown(tmp_path: Path) -> None:
    for created, memory in ((5.0, 1e9), (9.0, 2e9), (7.0, 3e9)):
        record = make(created)
        record.methods["adalora"]["peak_memory"] = memory
        cost_record.write(record, tmp_path)
    assert rows_of(report(tmp_path))["MNLI 0.16% AdaLoRA", "ours"][0] == "2.000"


def test_settings_are_never_mixed_in_a_line(tmp_path: Path) -> None:
    cost_record.write(make(), tmp_path)
    cost_record.write(make(precision="fp32"), tmp_path)
    cost_record.write(make(typed="method.gamma=0"), tmp_path)
    text = report(tmp_path)
    labels = [label for name, label in rows_of(text) if name == "MNLI 0.16% AdaLoRA"]
    assert labels == ["ours 1", "ours 2", "ours 3", "paper"]
    assert "method.gamma=0" in text


def test_a_row_of_its_own_wins_over_one_beside_another(tmp_path: Path) -> None:
    cost_record.write(make(9.0), tmp_path)
    alone = make(1.0, method="lora", against=None)
    alone.methods["lora"]["peak_memory"] = 5e9
    cost_record.write(alone, tmp_path)
    assert rows_of(report(tmp_path))["MNLI 0.16% LoRA", "ours"][0] == "5.000"


def test_other_methods_and_tasks_get_rows_below_the_paper_s(tmp_path: Path) -> None:
    cost_record.write(make(task="cola", budget="0.3M", method="houlsby", against="bitfit"), tmp_path)
    cost_record.write(make(task="mine", against=None), tmp_path)
    rows = rows_of(report(tmp_path))
    assert list(rows)[-3:-1] == [("cola 0.3M BitFit", "ours"), ("cola 0.3M HAdapter (Houlsby)", "ours")]
    assert rows["cola 0.3M HAdapter (Houlsby)", "ours"][5].endswith("to BitFit")
    assert rows["mine 0.16% AdaLoRA", "ours"][3] == "–", "the paper has no T for it"


def test_backbones_are_never_mixed(tmp_path: Path) -> None:
    cost_record.write(make(backbone="minilm"), tmp_path)
    cost_record.write(make(backbone="tiny"), tmp_path)
    assert "Backbone minilm; a GPU" in report(tmp_path)
    assert rows_of(report(tmp_path, "--backbone", "tiny"))["MNLI 0.16% LoRA", "ours"][0] == "11.000"
    assert "not measured yet" in report(tmp_path, "--backbone", "bart-large")
    assert main(["table15", "--backbone", "tiny", "--results", str(tmp_path)]) == EXIT_OK  # measured, in no conf/
    assert main(["table15", "--backbone", "minilmm", "--results", str(tmp_path)]) == EXIT_BAD_INPUT


@pytest.mark.parametrize(("device", "freed"), [("cuda", True), ("cpu", False)])
def test_a_model_that_refers_to_itself_leaves_the_gpu(
    device: str, freed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(gone() is None))
    model = torch.nn.Linear(2, 2)
    model.own_forward = model.forward  # refers to the model, as what accelerate keeps does
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        runner.free_device(torch.device(device))
    finally:
        gc.enable()
    assert emptied == [True] * freed
