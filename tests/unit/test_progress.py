"""What a run says where no terminal is: its lines, the time left, and a line now and then while nothing happens."""

import queue
import time

import pytest

from adalora_repro.errors import duration
from adalora_repro.training import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (247, "4 min"), (5_300, "88 min"), (12_000, "3 h 20 min"), (90_000, "25 h 0 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_name_the_step_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = progress.Progress("cola lora 0.3M", 100, 1_100)
    now[0] = 60.0
    bar.line(350, "loss 0.5000")
    bar.line(100, "accuracy 0.5")  # before the first step there is no pace
    bar.close()
    assert capsys.readouterr().err == "step 350/1,100  loss 0.5000  3 min left\nstep 100/1,100  accuracy 0.5\n"


def test_every_line_of_a_sweep_s_run_says_which_run_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.prefixed("[3/12] cola lora 0.3M lr 1e-3 seed 0"):
        with progress.stage("tokenizing"):
            pass
        bar = progress.Progress("cola", 0, 2)
        bar.line(1, "loss 0.5")
        bar.close()
        progress.complain("error: x")
    progress.say("after")
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("[3/12] cola lora 0.3M lr 1e-3 seed 0 ") for line in lines)
    assert last == "after"


def test_a_run_in_a_pipe_is_never_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a stage, between steps that take long and in an evaluation. Nothing is printed beside other lines."""
    monkeypatch.setattr(progress, "LINE_S", 0.01)
    lines: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(progress, "say", lines.put)

    def next_line(beginning: str) -> bool:
        """Waits for as long as it takes; lines of before are passed over."""
        return any(lines.get(timeout=60).startswith(beginning) for _ in range(10_000))

    with progress.stage("tokenizing"):
        assert next_line("tokenizing")
        assert next_line("tokenizing: 0 s so far")
    bar = progress.Progress("cola", 0, 2_000)
    bar.update(1_000)
    assert next_line("step 1,000/2,000  0 s left")
    bar.evaluating("validation", 3, 9)
    assert next_line("evaluating validation 3/9 batches")
    bar.close()
    count = lines.qsize()
    time.sleep(0.05)
    assert lines.qsize() == count
