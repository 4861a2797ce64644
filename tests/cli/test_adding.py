"""docs/adding.md: its files and commands, and what completes a command line."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, Cli, ok, only_run

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK

PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
FILES = re.findall(r"`(my_\w+/[\w/.]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^PYTHONPATH=\. adalora-run (.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def written(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """``cli`` in a folder with the page's files, which can be imported."""
    for name, text in FILES:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    return cli


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_its_plan(command: str, written: Cli) -> None:
    done = ok(written(*shlex.split(command)))
    assert (
        "method=lora_fa" if "-m" not in command else "rte lora_fa"
    ) in done.out or "experiment/mine.yaml" in done.out


def test_a_method_of_another_folder_trains_and_is_reported(written: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    ok(written("--config-dir=my_conf", "task=rte", "method=lora_fa", "budget=0.3M", *TINY))
    run = only_run()
    assert run.record.key["method"] == "lora_fa"
    assert run.record.params["method"] == 2 * 2 * (4 * 32 + 64 + 32)  # B alone: layers, rank, d_out
    assert (run.folder / "model" / "adapter_config.json").exists()
    capsys.readouterr()
    assert report.main(["table1", "--only-filled", "--format", "csv", "--config-dir", "my_conf"]) == EXIT_OK
    assert "LoRA-FA" in capsys.readouterr().out
    assert report.main(["table1", "--config-dir", "nowhere"]) == EXIT_BAD_INPUT


@pytest.mark.parametrize(
    ("module", "line", "choice"),
    [("report", "adalora-report clai", "claims"), ("model", "adalora-model pre", "predict")],
)
def test_a_shell_completes(module: str, line: str, choice: str, tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    out = tmp_path / "completions"
    more = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    more |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_SHELL": "bash"}
    program = f"import sys; sys.argv = [{module!r}]; from adalora_repro.cli.{module} import main; main()"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **more}, check=True, capture_output=True)
    assert out.read_text(encoding="utf-8").split() == [choice]
