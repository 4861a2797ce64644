"""The Python API, and adalora-model predict and export: what was trained can be used."""

import errno
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Cli, ok, only_run, refused
from task_configs import write_jsonl

import adalora_repro
from adalora_repro.cli import arguments, model
from adalora_repro.cli.python import plan_of
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputError
from adalora_repro.tasks import toy_text
from adalora_repro.training import answers

FEW = ("data.sample_rows=12", "data.sample_validation_rows=8", "train.max_steps=6", "optim.lr=1e-2")
WORDS = {
    "sst2": ("method=adalora",),
    "mnli": ("method=lora",),
    "stsb": ("method=bitfit",),
    "squad_v2": ("method=houlsby", "task.max_length=112", "task.stride=16", "budget=0.08%"),
}
CONTEXT = "The Rhine rises in the Alps. It flows into the North Sea near Rotterdam."
TEXTS = {
    "sst2": ["a fine film", "a bad film", "a film"],
    "mnli": ["A man eats.", "Somebody eats.", "A man eats.", "Nobody eats."],
    "stsb": ["A man eats.", "Somebody eats."],
    "squad_v2": ["Where does the Rhine rise?", CONTEXT],
}


@pytest.mark.parametrize("task", WORDS)
def test_a_run_answers_texts(task: str, tiny: Cli, ask: Cli, tmp_path: Path) -> None:
    ok(tiny(f"task={task}", *WORDS[task], *FEW))
    folder = only_run().folder
    said = ok(ask("predict", folder, *TEXTS[task], "--batch-size", "2"))
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert len(answers) == len(TEXTS[task]) // (1 if task == "sst2" else 2)
    for answer in answers:
        check(task, answer)
    if task == "squad_v2":  # tests/oracle/test_squad_windows.py
        return
    split = "validation_matched" if task == "mnli" else "validation"
    rows = toy_text.generate(task, split, {"train": 12, split: 8}, 0)
    said = ok(ask("predict", folder, "--file", write_jsonl(tmp_path / "rows.jsonl", rows, compress=False)))
    with gzip.open(folder / "final" / f"predictions.{split}.jsonl.gz", "rt", encoding="utf-8") as evaluated:
        for answer, row in zip(map(json.loads, said.out.splitlines()), map(json.loads, evaluated), strict=True):
            values = [answer["score"]] if task == "stsb" else list(answer["probabilities"].values())
            expected = [row["prediction"]] if task == "stsb" else torch.tensor(row["logits"]).softmax(-1).tolist()
            assert values == pytest.approx(expected, abs=1e-4)  # as they were evaluated


def check(task: str, answer: dict[str, Any]) -> None:
    if task in ("sst2", "mnli"):
        names = ["negative", "positive"] if task == "sst2" else ["entailment", "neutral", "contradiction"]
        assert list(answer["probabilities"]) == names
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["label"] == max(names, key=answer["probabilities"].__getitem__)
    elif task == "stsb":
        assert isinstance(answer["score"], float)
    elif answer["start"] is None:
        assert answer["answer"] == ""
    else:
        assert CONTEXT[answer["start"] :].startswith(answer["answer"])
        assert 0 < answer["probability"] <= 1


def test_export_is_loaded_without_the_run(tiny: Cli, ask: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny("task=sst2", "method=adalora", "method.targets=[q,v]", *FEW).code == EXIT_OK
    folder = only_run().folder
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nbase_model: tiny-bert\nlibrary_name: peft\n")
    assert "adalora-run backbone=tiny-bert" in card
    assert " 'method.targets=[q,v]'" in card  # for a shell
    assert "num_labels=2, dtype='float32')" in card
    record = json.loads((folder / "model" / "record.json").read_text(encoding="utf-8"))
    assert record["key"] == only_run().record.key
    whole = tmp_path / "whole"
    assert ask("export", folder, "--to", whole, "--as", "merged").code == EXIT_OK
    assert ask("predict", whole, "a film").out == ask("predict", folder, "a film").out
    tokens = transformers.AutoTokenizer.from_pretrained(whole)("a film", return_tensors="pt")
    card = (whole / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nbase_model: tiny-bert\nlibrary_name: transformers\n")
    names: dict[str, Any] = {"transformers": transformers, "FOLDER": whole}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    plain = names["model"]
    assert plain.config.id2label == {0: "negative", 1: "positive"}
    theirs = plain(**tokens).logits
    ours = adalora_repro.load(folder)[0](**tokens).logits
    assert torch.allclose(theirs, ours, atol=1e-5)
    folder = folder.absolute()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for there in (whole, "."):
        again = ask("export", folder, "--to", there)
        assert (again.code, again.err) == (
            EXIT_BAD_INPUT,
            f"adalora-model: error: --to: '{there}' already exists; name a new folder\n",
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give texts, or --file FILE"),
        (("one", "--file", "-"), "give texts, or --file FILE"),
        (("one",), "1 text, but each row has 2: premise, hypothesis"),
        (("one", " "), "text 1: no text 'hypothesis'"),
        (("one", "two", "--batch-size", "0"), "--batch-size 0 must be 1 or more"),
        (("--file", "missing.jsonl"), "missing.jsonl: cannot be read ([Errno 2] No such file"),
        (("--file", "rows.jsonl"), "rows.jsonl:2: not JSON"),
    ],
)
def test_wrong_input_is_one_line(words: tuple[str, ...], message: str, tiny: Cli, ask: Cli) -> None:
    Path("rows.jsonl").write_text('{"premise": "a", "hypothesis": "b"}\n{"premise"\n', encoding="utf-8")
    Path("model").mkdir()
    task = "task: {name: mnli, text_columns: [premise, hypothesis]}"
    Path("model/run.yaml").write_text(f"{task}\nmethod: {{name: lora}}\nbackbone: {{name: own}}\n", encoding="utf-8")
    said = ask("predict", ".", *words)
    assert (said.code, said.err.count("\n")) == (EXIT_BAD_INPUT, 1)
    assert message in said.err


def test_save_none_keeps_nothing_and_the_plan_says_what_is_kept(tiny: Cli, ask: Cli) -> None:
    assert "kept on disk" in tiny("task=sst2", "method=adalora", "dry_run=true").out
    assert "save: no model" in tiny("task=sst2", "method=full", "dry_run=true").out
    assert tiny("task=sst2", "method=lora", "save=none", *FEW).code == EXIT_OK
    folder = only_run().folder
    assert not (folder / "model").exists()
    assert "keeps no model" in ask("predict", folder, "a film").err
    assert tiny("task=sst2", "method=lora", *FEW).out.startswith("already done")  # save is no part of the identity


def test_runs_from_python(tiny: Cli, tmp_path: Path) -> None:
    words = ["task=sst2", "method=lora", "backbone=tiny-bert", "data=sample", "train.device=cpu", *FEW]
    words += ["train.batch_size=4", f"results.dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"]
    record = adalora_repro.run(*words)
    assert (record.status, record.key["method"]) == ("ok", "lora")
    assert adalora_repro.run(*words) == record  # finished: read, not trained again
    (row,) = adalora_repro.frame(tmp_path / "runs").query("checkpoint == 'final'").to_dict("records")
    loaded, tokenizer = adalora_repro.load(Path(row["record"]).parent)
    assert loaded(**tokenizer("a film", return_tensors="pt")).logits.shape == (1, 2)
    with pytest.raises(InputError, match=r"each word is a text of its own"):
        adalora_repro.run(["task=sst2"])
    with pytest.raises(InputError, match=r"each setting is a word of its own"):
        adalora_repro.run("task=sst2 method=lora")
    with pytest.raises(InputError, match=r"did you mean sst2"):
        adalora_repro.run("task=sst3")
    with pytest.raises(InputError, match=r"optim\.lr"):
        adalora_repro.run(*words, "optim.lr=-1")
    for word, message in {
        **dict.fromkeys(("dry_run=true", "measure=cost"), "run trains"),
        **dict.fromkeys(("+sweep=lr", "seed=0,1"), "makes several runs"),
        **dict.fromkeys(("launch=detach", "hydra/launcher=slurm"), "are for a sweep"),
        "-m": "settings are written key=value",
        "+optim.rate=1": "no setting 'optim.rate'",
        "optim.lr=${nope}": "'nope' not found",
    }.items():
        with pytest.raises(InputError, match=message):
            adalora_repro.run(*words, word, "seed=1")


def test_a_method_of_a_folder_of_one_s_own_from_python(tiny: Cli) -> None:
    Path("own/method").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [lora, _self_]\nmethod: {name: mine, alpha: 7.0}\n"
    Path("own/method/mine.yaml").write_text(text, encoding="utf-8")
    plan = plan_of("--config-dir=own", "task=sst2", "method=mine", "backbone=tiny-bert", "data=sample")
    assert (plan.key["method"], plan.cfg.method.alpha) == ("mine", 7)
    with pytest.raises(InputError, match="Hydra reads one folder"):
        plan_of("--config-dir=own", "--config-dir=other", "task=sst2")


def test_a_run_whose_folder_was_removed_is_one_error(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adalora_repro.training.runner.execute", lambda plan: EXIT_FAILED)
    with pytest.raises(RuntimeError, match=r"^results/runs/.*: exit code 1; standard error says why$"):
        adalora_repro.run("task=sst2", "method=lora", "backbone=tiny-bert", "data=sample")


def test_a_runs_own_config_runs_again(tiny: Cli, cli: Cli) -> None:
    head = "task.head={num_labels: 2, problem_type: single_label_classification}"
    ok(tiny("task=sst2", "method=lora", head, 'results.dir="two  blanks"', "force=true", *FEW))
    run = only_run("two  blanks")
    config = run.folder / "config.yaml"
    first = config.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# adalora-run backbone=tiny-bert ")
    assert cli("--config", str(config)).out.startswith(f"already done: {run.folder}")
    ok(cli(f"--config={config}", "results.dir=elsewhere", "seed=1"))
    record = only_run("elsewhere").record
    assert record.settings | {"seed": 0} == run.record.settings
    ok(cli("-m", "--config", str(config), "seed=1,2", "dry_run=true"))
    other = cli("--config", str(config), "method=bitfit", "dry_run=true")
    assert (other.code, "method=bitfit" in other.out) == (EXIT_OK, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config",), "--config: name the config.yaml of a run"),
        (("--config", "missing.yaml"), "cannot read 'missing.yaml': "),
        (("--config=own.yaml",), "'own.yaml' does not begin with '# adalora-run …'"),
    ],
)
def test_a_wrong_config_is_one_line(words: tuple[str, ...], message: str, cli: Cli) -> None:
    Path("own.yaml").write_text("task: {name: cola}\n", encoding="utf-8")
    assert message in refused(cli(*words))


def test_answers_are_exact_though_a_terminal_is_protected() -> None:
    answer = {"answer": "a\u200db\u2028c\x1b[31m\U000e0001é漢"}
    line = model.json_line(answer)
    assert line.isprintable()
    assert json.loads(line) == answer
    assert "é漢" in line


def test_a_closed_reader_a_closed_input_a_full_disk_and_ctrl_c_are_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for error, code in ((BrokenPipeError(), EXIT_OK), (KeyboardInterrupt(), 130), (full, EXIT_BAD_INPUT)):
        with monkeypatch.context() as patch:
            patch.setattr(model, "run_predict", raising(error))
            patch.setattr(arguments, "mute", lambda _: None)
            assert model.main(["predict", "RUN", "a"]) == code
    assert capsys.readouterr().err == "adalora-model: error: standard output: No space left on device\n"
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        answers.read_rows("-", ["sentence"])


def raising(error: BaseException) -> Callable[..., int]:
    def run(_: object) -> int:
        raise error

    return run
