"""Every shipped YAML composes, the commands in their headers too; what a composed configuration resolves to."""

import itertools
import json
import re
import shlex
import struct
from pathlib import Path
from typing import Any

import fake_records
import pytest
import yaml
from golden.entry import budgets_of, names
from omegaconf import OmegaConf
from plans import composed, counted, resolved
from programs import python
from task_configs import write_jsonl

from adalora_repro.cli import run
from adalora_repro.config import identity
from adalora_repro.config import resolve as planning
from adalora_repro.config.catalog import resource
from adalora_repro.config.origins import origins
from adalora_repro.config.plan import Plan
from adalora_repro.config.schema import Config
from adalora_repro.models.sites import MATRIX_ROLES
from adalora_repro.records import run_record
from adalora_repro.records.revisions import outdated
from adalora_repro.settings import NOTHING, settings_of
from adalora_repro.tasks import sources

ROOT = Path(run.__file__).parents[2]
CONF, SWEEPS = resource("conf"), resource("sweeps")
PUBLISHED = ROOT / "results" / "published"
#: no file is read and no size is forgotten
FREE = ("data=sample", "data.sample_rows=64", "data.sample_validation_rows=32")

FACTS = settings_of(Config)
NOT_RESULT = [name for name, facts in FACTS.items() if not facts.identity]
LATER = {name: facts.later for name, facts in FACTS.items() if facts.later is not NOTHING}

pytestmark = pytest.mark.usefixtures("hydra")


def command_lines() -> list[tuple[str, str]]:
    found = []
    for path in sorted(CONF.rglob("*.yaml")):  # those of sweeps/: test_sweeps.py
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\s*(?:#\s*(?:Command:)?)?\s*(adalora-run .*)", line):
                command = re.split(r"\s{2,}", match[1])[0]
                if "=" in command and "=TASK" not in command:
                    found.append((str(path.relative_to(path.parents[2])), command))
    return found


COMMANDS = command_lines()


@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS}))
def test_every_command_in_a_header_has_a_plan(command: str, tmp_path: Path) -> None:
    if "=RUN" in command:  # a finished run of the reader's
        pattern = {f"encoder.{layer}.{role}": 2 for layer in range(12) for role in MATRIX_ROLES[:6]}
        run_folder = fake_records.save(tmp_path, fake_records.make(method="adalora", rank_pattern=pattern)).parent
        command = command.replace("=RUN", f"={run_folder}")
    program, *words = shlex.split(command)
    assert program == "adalora-run"
    own_files = ("data=local", "data.dir=DIR")  # with the hub's number of rows instead
    words = [word for word in words if word not in ("-m", *own_files)]
    if words[0] in ("task=custom", "task=custom_qa", "task=custom_summarization"):  # which the hub does not have
        row = {"text": "a", "question": "a", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}}
        rows = [row | {"label": label, "document": "a b", "summary": "a"} for label in ("no", "yes") * 40]
        write_jsonl(tmp_path / "train.jsonl", rows, compress=False)
        write_jsonl(tmp_path / "validation.jsonl", rows, compress=False)
        words += ["data=local", f"data.dir={tmp_path}"]
    assert counted(*words).params["total"] > 0


# What the command line prints


def test_help_shows_groups_choices_and_examples(tmp_path: Path) -> None:
    done = python("-X", "importtime", "-m", "adalora_repro.cli.run", "--help", cwd=tmp_path)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not {"torch", "transformers", "datasets"} & imported
    for group in ("task", "method", "budget", "backbone", "data", "protocol"):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{group}: "))
        assert sorted(line.removeprefix(f"{group}: ").split(", ")) == names(group)
    assert f"sweep: {', '.join(path.stem for path in sorted(SWEEPS.glob('*.yaml')))}\n" in done.stdout
    assert "adalora-run task=mnli method=adalora budget=0.3M dry_run=true" in done.stdout
    for option in ("seed", "dry_run", "force", "results.dir", "eval.max_examples", "Exit codes"):
        assert option in done.stdout
    assert list(tmp_path.iterdir()) == []


# The same configuration, the same folder

BASE = ("task=cola", "method=adalora", "backbone=tiny-bert", *FREE)


def test_the_same_configuration_has_the_same_folder() -> None:
    first = resolved(*BASE)
    assert resolved(*reversed(BASE)).folder == first.folder
    assert resolved(*BASE, "method.alpha=32").key == resolved(*BASE, "method.alpha=32.0").key
    assert resolved(*BASE, "optim.lr=5e-4").key == resolved(*BASE, "optim.lr=0.0005").key == first.key
    assert resolved(*BASE, "method.target_r=2", "method.init_r=4").key == first.key  # what the budget says, said
    assert resolved(*BASE, "optim.lr=1e-3", "seed=1").key["variant"] == first.key["variant"]
    assert first.folder == run_record.run_folder(Path("results"), first.key)
    assert re.fullmatch(
        r"results/runs/tiny-bert/cola/adalora/0\.3M/paper-sample-lr0\.0005-seed0-[0-9a-f]{10}", str(first.folder)
    )


def test_what_does_not_change_the_result_is_no_part_of_the_identity() -> None:
    """Of which the names alone are needed: that the hash is made of ``asked`` is tested below."""
    plan = resolved(*BASE)
    assert all(OmegaConf.select(plan.cfg, name, default="absent") != "absent" for name in NOT_RESULT)
    assert not [name for name in plan.asked if name.startswith(tuple(NOT_RESULT))]


def published() -> dict[str, run_record.RunRecord]:
    """Folder -> record of the runs in results/published that count."""
    found = {str(path.parent): run_record.read(path) for path in run_record.find(PUBLISHED)}
    return {folder: record for folder, record in found.items() if outdated(record) is None}


def published_commands() -> list[str]:
    """The commands of docs/results.md, one for each run."""
    commands = re.findall(
        r"^adalora-run (?:-m )?(.*)$", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    found = []
    for words in map(str.split, commands):
        lists = [[f"{word.partition('=')[0]}={value}" for value in word.partition("=")[2].split(",")] for word in words]
        found += [" ".join(choice) for choice in itertools.product(*lists)]
    return found


@pytest.mark.parametrize("command", published_commands())
def test_published_commands_name_the_folders_of_their_records(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With what the record says of the data in their place."""
    words = command.replace("data.dir=DIR", f"data.dir={tmp_path}").split()
    values = dict(word.split("=") for word in words)
    (record,) = (
        record
        for record in published().values()
        if (record.key["task"], record.key["method"]) == (values["task"], values["method"])
    )
    monkeypatch.setattr(sources, "check", lambda *_: None)
    monkeypatch.setattr(sources, "train_rows", lambda _: record.data["rows"]["train"])
    monkeypatch.setattr(sources, "fingerprint", lambda _: "of the rows, which these records do not have")
    monkeypatch.setattr(sources, "byte_fingerprint", lambda _: record.data["fingerprint"])
    plan = resolved(*words, f"results.dir={PUBLISHED}")
    assert str(plan.folder) in published()
    assert plan.key == record.key
    # what is settled with the data is known to the record alone; two records name these counts as they were asked for
    settled = planning.SCALED if plan.provisional else ()
    for settings in (plan.settings, record.settings):
        for name in settled:
            settings.pop(name, None)
    assert plan.settings == record.settings


def test_every_published_record_has_its_command() -> None:
    assert len(published_commands()) == len(published()) > 5


@pytest.mark.parametrize("results", [PUBLISHED, PUBLISHED / "study-first-look"], ids=lambda path: path.name)
def test_every_published_record_lies_in_its_folder(results: Path) -> None:
    found, refused = run_record.read_all(results)
    assert refused == []
    assert {record.status for _, record in found} <= {"ok", "failed"}
    assert [run_record.run_folder(results, record.key) for _, record in found] == [path.parent for path, _ in found]


#: setting with ``later`` -> a task and another value; of AdaLoRA alone if it is ``method.allocation``
LATER_VALUES = {
    "backbone.weights": ("cola", "random"),
    "data.holdout": ("cola", "300"),
    "data.skip_invalid": ("cola", "true"),
    "method.allocation": ("cola", "uniform"),
    "method.init": ("cola", "kaiming"),
    "train.compile": ("cola", "inductor"),
    "train.pass_tokens": ("cola", "64"),
    "task.n_best": ("squad", "7"),
    "task.max_answer_length": ("squad", "9"),
    "task.null_threshold": ("squad_v2", "0.5"),
    "task.length_penalty": ("xsum", "0.5"),
    "task.min_target_length": ("xsum", "3"),
    "task.no_repeat_ngram_size": ("xsum", "2"),
    "task.early_stopping": ("xsum", "false"),
    "budget.match": ("cola", "params"),
    "budget.params": ("cola", "300000"),
}


def test_later_settings_are_all_tried() -> None:
    # tested in test_transplant.py, test_budgets.py, test_own_files.py and below
    elsewhere = {"method.rank_pattern", "method.initial_rank", "train.group_by_length", "task.validation_share"}
    elsewhere |= {"train.attention"}
    assert set(LATER_VALUES) | elsewhere == set(LATER)


@pytest.mark.parametrize("name", LATER_VALUES)
def test_a_later_setting_is_part_of_the_identity_only_at_another_value(name: str) -> None:
    task, value = LATER_VALUES[name]
    method = "adalora" if name == "method.allocation" else "lora"
    backbone = "bart-large" if task == "xsum" else "deberta-v3-base"
    words = (f"task={task}", f"method={method}", f"budget={budgets_of(task)[0]}", f"backbone={backbone}")
    assert name not in resolved("task=cola", f"method={method}").settings
    words += ("budget.match=params",) if name == "budget.params" else ()
    plan, other = resolved(*words), planning.resolve(composed(*words, f"{name}={value}", "measure=cost"))
    assert other.settings[name] == yaml.safe_load(value)
    assert other.key["hash"] != plan.key["hash"]
    assert other.key["variant"] != plan.key["variant"]


def test_positions_are_cropped_where_there_are_some_and_only_then_part_of_the_identity() -> None:
    words = ("task=cola", "method=lora", "budget=0.3M")
    default, eager = resolved(*words), resolved(*words, "train.attention=eager")
    assert default.settings["train.attention"] == "cropped"
    assert "train.attention" not in eager.settings
    asked, bert = (resolved(*words, "backbone=minilm", *more) for more in (("train.attention=cropped",), ()))
    assert asked.key == bert.key
    assert (asked.cfg.train.attention, "train.attention" in asked.settings) == ("eager", False)


# T that only the data tell

SKIPPING = ("task=cola", "method=adalora", "backbone=tiny-bert", "data.skip_invalid=true", "method.schedule=scaled")
ROWS = ("data=sample", "data.sample_rows=640", "data.sample_validation_rows=32")
COUNTED = ("t_i", "t_f", "delta_t")


def phases(plan: Plan) -> list[int]:
    return [*(plan.cfg.method[name] for name in COUNTED), plan.cfg.optim.warmup_steps]


def recorded(plan: Plan) -> list[Any]:
    """As ``phases``, of what goes into the record."""
    return [*(plan.settings[f"method.{name}"] for name in COUNTED), plan.settings["optim.warmup_steps"]]


def good(*words: str) -> list[str]:
    return [word for word in words if "skip_invalid" not in word]


def test_t_is_provisional_where_examples_are_not_rows() -> None:
    assert not resolved(*BASE).provisional
    squad = resolved("task=squad", "method=lora", "budget=0.08%")
    assert squad.provisional
    assert squad.total_steps == 54_750  # ten epochs of ceil(87,599 / 16)
    (note,) = squad.notes
    assert "T = 54,750 counts one example for each row; contexts longer than a window give several" in note
    assert "(paper: about 55,200)" in note
    skipping = resolved(*SKIPPING, *ROWS)
    assert skipping.provisional
    assert "bad rows are left out" in skipping.notes[0]
    assert resolved(*SKIPPING, *ROWS, "train.max_steps=3").notes == ()  # T is what it is


@pytest.mark.parametrize("examples", [600, 33])
def test_the_settled_plan_is_that_of_as_many_good_rows(examples: int) -> None:
    plan = counted(*SKIPPING, *ROWS)
    key, before = dict(plan.key), phases(plan)
    settled = planning.settle(plan, examples)
    other = counted(*good(*SKIPPING), "data=sample", f"data.sample_rows={examples}")
    assert (settled.total_steps, settled.steps_per_epoch) == (other.total_steps, other.steps_per_epoch)
    assert settled.total_steps != plan.total_steps
    assert phases(settled) == phases(other)
    assert (settled.method, settled.params) == (other.method, other.params)
    # the run is the same one, in the same folder
    assert settled.key == key | {"total_steps": settled.total_steps}
    assert (settled.folder, planning.unscaled(settled)) == (plan.folder, planning.unscaled(plan))
    assert recorded(settled) == phases(settled) != recorded(plan) == before
    assert settled.settings | planning.unscaled(settled) == plan.settings | planning.unscaled(plan)
    assert (plan.key, phases(plan)) == (key, before)  # not changed
    assert planning.settle(settled, examples) is settled


def test_the_identity_does_not_depend_on_a_provisional_t(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are identified by their content, so T adds nothing; the same files may hold bad rows."""
    plan = resolved(*SKIPPING, *ROWS)
    of_the_paper = [800, 3500, 10, 100]  # not scaled by a T that may change
    assert list(planning.unscaled(plan).values()) == of_the_paper
    assert recorded(plan) == phases(plan) != of_the_paper
    asked = plan.settings | planning.unscaled(plan)
    assert plan.key["hash"] == identity.digest(asked) != identity.digest(plan.settings)
    exact = resolved(*good(*SKIPPING), *ROWS)  # where rows are examples, T is known and counts
    assert recorded(exact) == list(planning.unscaled(exact).values()) == phases(exact)
    assert exact.key["hash"] == identity.digest(exact.settings)
    monkeypatch.setattr(sources, "train_rows", lambda _: 6400)
    more = resolved(*SKIPPING, *ROWS)
    assert more.total_steps != plan.total_steps
    assert recorded(more) != recorded(plan)
    assert more.key | {"total_steps": 0} == plan.key | {"total_steps": 0}
    assert (more.folder, planning.unscaled(more)) == (plan.folder, planning.unscaled(plan))
    assert resolved(*good(*SKIPPING), *ROWS).key["hash"] != exact.key["hash"]


def test_a_size_of_ones_own_is_a_budget_of_its_own() -> None:
    own = resolved("task=rte", "method=lora", "method.r=3", "data=sample")
    assert own.key["budget"] == "r3"
    assert own.folder == resolved("task=rte", "method=lora", "method.r=3", "budget=1.2M", "data=sample").folder
    assert resolved("task=rte", "method=lora", "method.r=2", "data=sample").key["budget"] == "0.3M"
    adalora = resolved("task=rte", "method=adalora", "method.init_r=5", "data=sample", "train.max_steps=5000")
    assert adalora.key["budget"] == "target_r2-init_r5"


def test_a_local_backbone_is_known_by_its_files_not_by_its_place(tmp_path: Path) -> None:
    hashes = []
    for place, content in (("here", b"weights"), ("there", b"weights"), ("else", b"others")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
        (tmp_path / place / "config.json").write_bytes(b"{}")
        (tmp_path / place / "spm.model").write_bytes(content)
        plan = resolved("task=rte", "method=lora", "data=sample", f"backbone.path={tmp_path / place}")
        assert str(tmp_path) not in json.dumps(plan.settings)
        hashes.append(plan.key["hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_steps_scale_with_the_run() -> None:
    """CoLA's 25 epochs are T = 6,700; six epochs are 1,608."""
    full = resolved("task=cola", "method=adalora")
    assert (full.total_steps, full.steps_per_epoch) == (6700, 268)
    plan = resolved("task=cola", "method=adalora", "train.epochs=6", "method.schedule=scaled")
    assert plan.total_steps == 1608
    method = plan.cfg.method
    assert (method.t_i, method.t_f, method.delta_t) == (192, 840, 2)  # 800, 3,500, 10 x 1,608 / 6,700
    assert plan.cfg.optim.warmup_steps == 24
    assert origins(plan)["method.t_i"].startswith("800 x 1608/6700, scaled")
    same = resolved("task=cola", "method=adalora", "method.schedule=scaled")
    assert [same.cfg.method[name] for name in ("t_i", "t_f", "delta_t")] == [800, 3500, 10]
    tiny = resolved("task=cola", "method=adalora", "method.schedule=scaled", "train.max_steps=3")
    assert [tiny.cfg.method[name] for name in ("t_i", "t_f", "delta_t")] == [0, 2, 1]
    assert resolved("task=cola", "method=lora", "train.epochs=6").cfg.optim.warmup_steps == 100


# Counts (issue: "the counts, method only")

COUNTS = {
    "lora_qv": [331_776, 663_552, 1_327_104],
    "lora_regu": [331_776, 663_552, 1_327_104],
    "lora_at_adalora": [331_776, 663_552, 1_327_104],
    "lora_init_r": [663_552, 995_328, 1_990_656],
    "prune_lora": [331_776, 663_552, 1_327_104],
    "svd_lora": [331_920, 663_840, 1_327_680],
    "svd_lora_init_r": [663_840, 995_760, 1_991_520],
    "bitfit": [102_912] * 3,
    "houlsby": [313_536, 608_640, 1_198_848],
    "pfeiffer": [304_320, 599_424, 1_189_632],
    "lora": [331_776, 663_552, 1_327_104],
    "adalora": [331_920, 663_840, 1_327_680],
    "full": [183_831_552] * 3,
}


@pytest.mark.parametrize("method", COUNTS)
def test_counts_on_deberta_v3_base(method: str) -> None:
    for label, expected in zip(("0.3M", "0.6M", "1.2M"), COUNTS[method], strict=True):
        plan = counted("task=sst2", f"method={method}", f"budget={label}")
        assert plan.params["method"] == expected
        assert plan.params["head"] == 592_130
        assert plan.params["total"] == expected + 592_130
        assert plan.params["backbone"] == 183_831_552
        if method in ("adalora", "prune_lora"):
            b_t, b_0 = {"0.3M": (144, 288), "0.6M": (288, 432), "1.2M": (576, 864)}[label]
            assert (plan.method["n"], plan.method["b_T"], plan.method["b_0"]) == (72, b_t, b_0)
            assert plan.params["at_init"] == expected * b_0 // b_t
        else:
            assert plan.params["at_init"] == expected


@pytest.mark.parametrize(("label", "r"), [("0.13%", 1), ("0.26%", 2), ("1.10%", 8), ("2.20%", 16)])
def test_counts_on_bart_large(label: str, r: int) -> None:
    words = ("task=xsum", f"budget={label}", "backbone=bart-large")
    lora = counted(*words, "method=lora")
    assert lora.params["method"] == 540_672 * r
    assert lora.params["backbone"] == 406_291_456
    adalora = counted(*words, "method=adalora")
    assert adalora.method["n"] == 192
    assert adalora.method["b_T"] == 192 * r
