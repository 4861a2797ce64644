"""Nothing that moves a cursor or turns a line round gets to the terminal; everything else gets there as it is."""

import io
import os
import pty
import sys
import unicodedata
from pathlib import Path

import pytest
from fake_records import make, save
from hypothesis import given
from hypothesis import strategies as st

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_BAD_INPUT, CleanStream, clean, first_line, guarded, one_line, raw
from adalora_repro.records.run_record import RECORD_NAME
from adalora_repro.training import progress

EVIL = "\x1b]0;title\x07 \x1b[2J \u202egnp.exe \u2066 \x9b31m \ud800 \x7f \ufeff"
HARMLESS = "± σ, 0.3M ‖PᵀP − I‖² 漢字 é ½ \u00a0…"


@given(st.text())
def test_what_is_clean_is_one_line_of_printing_characters(text: str) -> None:
    line = clean(text)
    assert not any(unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" for c in line)
    assert clean(line) == line
    if text.isprintable():
        assert line == text


def test_lines_are_joined_by_blanks() -> None:
    assert clean("one\ntwo\t\r\nthree") == "one two three"


@given(st.lists(st.text().filter(lambda text: "\x1b[" not in text)))
def test_a_stream_keeps_lines_and_tabs_alone(texts: list[str]) -> None:
    out = io.StringIO(newline="")
    CleanStream(out).writelines(texts)
    for kept, text in zip(out.getvalue(), "".join(texts), strict=True):
        category = unicodedata.category(text)
        harmless = text in "\n\t" or (category[0] != "C" and category not in ("Zl", "Zp"))
        assert kept == (text if harmless else "?")


def test_a_stream_leaves_colours_out() -> None:
    out = io.StringIO()
    CleanStream(out).write("\x1b[1;31mred\x1b[0m \x1b[2J")
    assert out.getvalue() == "red ?[2J"


def test_inside_the_guard_whatever_is_printed_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    out = sys.stdout
    with guarded():
        print(EVIL, HARMLESS)
        print("bar\rbar\x1b[A", EVIL, file=sys.stderr)
        with guarded():  # one program called by the other
            assert not isinstance(raw(sys.stdout), CleanStream)
    assert sys.stdout is out
    printed, errors = capsys.readouterr()
    assert HARMLESS in printed
    assert not set(printed) & set(EVIL) - set("; []gnp.exetitle0J231m")
    assert errors.startswith("bar\rbar\x1b[A ?")  # what progress bars of libraries need
    assert errors.count("\x1b") == 1


def test_an_error_that_nobody_caught_is_printed_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.excepthook
    try:
        with pytest.raises(ValueError, match="title"), guarded():
            raise ValueError(EVIL)
        sys.excepthook(ValueError, ValueError(EVIL), None)
    finally:
        sys.excepthook = before
    assert "\x1b" not in (err := capsys.readouterr().err)
    assert "ValueError: ?]0;title?" in err


def test_an_error_in_one_line() -> None:
    assert one_line(ValueError("a\nb\x1b")) == "ValueError: a b?"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 1000))) == 200


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n a\x1b \nb")) == "a?"
    assert first_line(KeyError()) == "KeyError"
    assert first_line("loss is nan\nTraceback") == "loss is nan"
    assert first_line("") == ""
    assert len(first_line("x" * 1000)) == 200


def test_lines_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say(f"note: {EVIL}")
    progress.complain(f"error: {EVIL}\nmore")
    bar = progress.Progress(EVIL, 0, 2)
    bar.line(1, EVIL)
    bar.close()
    err = capsys.readouterr().err
    assert not any(unicodedata.category(c) in ("Cc", "Cf") and c != "\n" for c in err)
    assert len(err.splitlines()) == 3


def test_reports_print_no_name_or_error_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = EVIL.replace("\ud800", "")
    results = Path("results")
    save(results, make(0.5, method=evil, backbone="deberta-v3-base", data="hub"))
    failed = make(0.5, seed=1, backbone="deberta-v3-base", data="hub", status="failed", error=f"{evil}\n", final=None)
    save(results, failed)
    damaged = results / "runs" / evil / RECORD_NAME
    damaged.parent.mkdir()
    damaged.write_text("{", encoding="utf-8")
    for words in (["table1"], ["status"], ["choose"], ["table1", "--format", "csv"], ["compare", evil, evil]):
        report.main(words)
    assert report.main(["table1", "--backbone", evil]) == EXIT_BAD_INPUT
    assert report.main([evil]) == EXIT_BAD_INPUT
    out, err = capsys.readouterr()
    assert "gnp.exe" in out
    assert "gnp.exe" in err
    assert not any(unicodedata.category(c) in ("Cc", "Cf") and c != "\n" for c in out + err)


def test_who_closes_the_harmless_stream_leaves_the_one_behind_open() -> None:
    behind = io.StringIO()
    stream = CleanStream(behind)
    stream.close()
    stream.write("still open")
    assert behind.getvalue() == "still open"


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a logout, for a run in the background."""
    near, far = pty.openpty()
    with open(far, "w", buffering=1, encoding="utf-8") as terminal:
        os.close(near)
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, terminal)
        with guarded():
            for stream in (sys.stdout, sys.stderr):
                print("step 1", file=stream, flush=True)


def test_progress_that_nobody_reads_ends_nothing_and_a_result_does(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = os.pipe()
    os.close(near)
    with open(far, "w", buffering=1, encoding="utf-8") as pipe:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, pipe)
        with guarded():
            with pytest.raises(BrokenPipeError):
                print("a result", flush=True)
            print("step 1", file=sys.stderr, flush=True)


def test_a_closed_stream_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """``>&-`` in a shell."""
    monkeypatch.setattr(sys, "stdout", None)
    with guarded():
        print("lost")
