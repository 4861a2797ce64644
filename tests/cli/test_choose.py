"""adalora-report choose: the learning rate of each cell, and the file that keeps it."""

import re
from pathlib import Path

import pytest
from fake_records import make, save
from omegaconf import OmegaConf
from programs import copy_project, printed

from adalora_repro.cli import report
from adalora_repro.config import catalog
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.records.selection import RULE

ODD = 10**-2.5  # as many digits as a float has
LORA = {2e-4: (0.2, 0.3), 1e-3: (0.4, 0.5), 5e-3: (0.1,)}
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that may be written to; in its folder, results/ of a few runs."""
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "resource", lambda name: tmp_path / name)
    for lr, scores in LORA.items():
        for seed, score in enumerate(scores):
            save(Path("results"), make(score, lr=lr, seed=seed))
    save(Path("results"), make(0.7, lr=2e-4, budget="1.2M"))
    save(Path("results"), make(0.8, lr=ODD, budget="1.2M"))
    save(Path("results"), make(0.5, lr=1e-3, method="full", budget="full"))
    save(Path("results"), make(0.4, lr=1e-4, method="full", budget="full"))
    save(Path("results"), make(0.6, lr=5e-4, method="adalora"))
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.yaml")}


def test_choose_prints_each_cell_with_its_runs(project: Path, capsys: Captured) -> None:
    before = tree(project / "conf")
    assert report.main(["choose", "table1"]) == EXIT_OK
    lines = re.sub("\n  (?=[a-z])", " ", capsys.readouterr().out).splitlines()
    assert lines[0].endswith("Backbone minilm; data local; protocol paper")
    assert RULE in " ".join(lines)
    cells = {line.partition(":")[0]: line for line in lines if line.startswith("cola ")}
    assert list(cells) == ["cola full", "cola lora 1.2M", "cola lora 0.3M", "cola adalora 0.3M"]
    start = "lr 1e-3, matthews_correlation 45.00, 2 seeds"
    assert cells["cola lora 0.3M"] == f"cola lora 0.3M: {start}; 3 tried, 2e-4 to 5e-3"
    assert cells["cola lora 1.2M"].endswith("1 seed; 2 tried, 2e-4 to 3.162278e-3; edge of its grid: widen it")
    assert cells["cola full"].endswith("edge of its grid: widen it")
    assert cells["cola adalora 0.3M"].endswith("1 seed; the only one tried")
    place = lines.index(cells["cola lora 0.3M"])
    runs = [line.split() for line in lines[place + 1 : place + 3]]
    assert [words[:3] for words in runs] == [["40.00", "seed", "0"], ["50.00", "seed", "1"]]
    assert all(Path(words[3]).is_file() for words in runs)
    assert tree(project / "conf") == before  # only on request


def test_written_choices_compose_and_say_where_they_come_from(project: Path, capsys: Captured) -> None:
    before = tree(project / "conf")
    assert report.main(["choose", "table1", "--write"]) == EXIT_OK
    out = capsys.readouterr().out
    after = tree(project / "conf")
    new = sorted(set(after) - set(before))
    assert new == [f"tuned/lr/cola_{name}_minilm.yaml" for name in ("full", "lora_0.3M", "lora_1.2M")]
    assert all(after[name] == before[name] for name in before)  # the recipes of the paper too
    assert "not written: cola adalora 0.3M: the only one tried" in out
    text = after["tuned/lr/cola_lora_0.3M_minilm.yaml"].decode()
    assert OmegaConf.to_container(OmegaConf.create(text)) == {"optim": {"lr": 1e-3}}
    for part in ("data=local", "setting v1 (100 steps)", "among 2e-4, 1e-3, 5e-3:", "mean of 2 seeds"):
        assert part in text
    shown = re.findall(r"# from (\d+\.\d+)  (\S+)$", text, re.M)
    assert [score for score, _ in shown] == ["40.00", "50.00"]
    assert all(Path(path).is_file() for _, path in shown)
    assert RULE in " ".join(line.removeprefix("# ") for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 140
    assert "edge of its grid" in after["tuned/lr/cola_full_minilm.yaml"].decode()

    composed = {
        "method=lora budget=1.2M backbone=minilm": ODD,
        "method=lora budget=0.6M backbone=minilm": 5e-4,  # of each budget its own
        "method=full budget=1.2M backbone=minilm": 1e-3,  # of full the only one
        "method=adalora backbone=minilm": 5e-4,  # the paper's
        "method=lora budget=0.3M backbone=tiny-bert": 5e-4,  # not for another backbone
    }
    commands = [["run", "--cfg", "job", "task=cola", *words.split()] for words in composed]
    for configuration, lr in zip(printed(project, commands), composed.values(), strict=True):
        assert OmegaConf.create(configuration).optim.lr == lr


def test_a_later_choice_replaces_the_file_that_it_wrote(project: Path, capsys: Captured) -> None:
    assert report.main(["choose", "table1", "--write"]) == EXIT_OK
    before = tree(project / "conf")
    assert report.main(["choose", "table1", "--write"]) == EXIT_OK
    assert tree(project / "conf") == before
    for seed in (0, 1):
        save(Path("results"), make(0.9, lr=5e-3, seed=seed))
    capsys.readouterr()
    assert report.main(["choose", "--write"]) == EXIT_OK
    path = project / "conf" / "tuned" / "lr" / "cola_lora_0.3M_minilm.yaml"
    assert capsys.readouterr().out.count(f"wrote {path}: optim.lr 5e-3") == 1  # though two tables have the cell
    text = path.read_text(encoding="utf-8")
    assert "  lr: 5.0e-3  # chosen among 3; edge of its grid: widen it\n" in text
    assert len(re.findall("# from .*metrics.json", text)) == 2


def test_a_file_written_otherwise_is_left_alone(project: Path, capsys: Captured) -> None:
    path = project / "conf" / "tuned" / "lr" / "cola_lora_0.3M_minilm.yaml"
    path.parent.mkdir()
    path.write_text("optim:\n  lr: 1.0e-3\n", encoding="utf-8")
    assert report.main(["choose", "table1", "--write"]) == EXIT_BAD_INPUT
    assert f"--write: '{path}' was not written by choose --write: left alone" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "optim:\n  lr: 1.0e-3\n"
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_kept_is_refused(project: Path, capsys: Captured) -> None:
    assert report.main(["choose", "--write", "--protocol", "released"]) == EXIT_BAD_INPUT
    assert "conf/script" in capsys.readouterr().err
    save(Path("results"), make(0.5, lr=1e-3, budget="r3"))
    save(Path("results"), make(0.6, lr=2e-3, budget="r3"))
    (project / "conf" / "tuned" / "lr").write_text("a file where the folder should be", encoding="utf-8")
    assert report.main(["choose", "table1", "--write"]) == EXIT_BAD_INPUT
    assert "--write: cannot write to" in capsys.readouterr().err
    (project / "conf" / "tuned" / "lr").unlink()
    assert report.main(["choose", "table1", "--write"]) == EXIT_OK
    assert "not written: cola lora r3" in capsys.readouterr().out
