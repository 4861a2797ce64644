"""The lock of a run's folder: who holds it, who may take it over, who lost it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adalora_repro.errors import InputError
from adalora_repro.records import lock
from adalora_repro.records.lock import NAME, Lock, LostLockError, held

HOLDER = """
import sys, time
from pathlib import Path
from adalora_repro.lock import Lock
Lock(Path(sys.argv[1])).take(print)
print("taken", flush=True)
sys.stdin.read()
"""
ELSEWHERE = {"host": "elsewhere", "boot": "another", "pid": 1, "started": 1, "nonce": "theirs", "beat": 7}


def unheard(line: str) -> None:
    raise AssertionError(f"watched: {line}")


def leave(folder: Path, **changes: Any) -> Path:
    """A lock file of another machine."""
    path = folder / NAME
    path.write_text(json.dumps(ELSEWHERE | changes) + "\n", encoding="utf-8")
    return path


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / NAME).read_text(encoding="utf-8"))


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def taken(folder: Path, tell: Callable[[str], None] = unheard) -> Iterator[Lock]:
    own = Lock(folder)
    try:
        own.take(tell)
        yield own
    finally:
        own.release()


@pytest.fixture(params=[None, errno.ENOTSUP, errno.ENOLCK], ids=["flock", "ENOTSUP", "ENOLCK"])
def flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With flock and on file systems without."""
    if request.param is not None:

        def refused(*_: object) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", refused)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five looks without a change are a death."""
    monkeypatch.setattr(lock, "LEASE_S", 0.005)
    monkeypatch.setattr(lock, "LOOK_S", 0.001)


@pytest.mark.usefixtures("flock")
def test_a_holder_of_this_machine_keeps_the_lock_until_it_is_killed(tmp_path: Path) -> None:
    assert not held(tmp_path)
    with holder(tmp_path) as process:
        assert content(tmp_path)["pid"] == process.pid
        assert held(tmp_path)
        assert held(tmp_path, sure=True)
        with pytest.raises(InputError, match="another process is training this run"), taken(tmp_path):
            pass
        assert content(tmp_path)["pid"] == process.pid
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # nobody has asked for its exit code yet
        assert not held(tmp_path)
        with taken(tmp_path):
            assert content(tmp_path)["pid"] == os.getpid()
            assert held(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("flock")
def test_a_later_process_with_the_holder_s_id_is_not_the_holder(tmp_path: Path) -> None:
    with taken(tmp_path):
        values = content(tmp_path)
    leave(tmp_path, **values | {"started": values["started"] - 1})
    assert not held(tmp_path)
    with taken(tmp_path):
        assert content(tmp_path)["nonce"] != values["nonce"]


@pytest.mark.usefixtures("flock", "quick")
def test_a_silent_lock_of_another_machine_is_watched_and_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path)
    looks, look, told = [0], lock.look, []

    def counted(path: Path) -> Any:
        looks[0] += path.name == NAME and content(tmp_path)["nonce"] == "theirs" if path.exists() else 0
        return look(path)

    monkeypatch.setattr(lock, "look", counted)
    with taken(tmp_path, told.append):
        assert content(tmp_path)["pid"] == os.getpid()
    assert looks == [6]
    (line,) = told
    assert line.startswith(f"{tmp_path} is locked by elsewhere: looking for up to ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("flock", "quick")
@pytest.mark.parametrize("beat", [1, 3, 5])
def test_one_beat_shows_that_a_holder_elsewhere_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beat: int
) -> None:
    leave(tmp_path)
    looks, look = [0], lock.look

    def beating(path: Path) -> Any:
        if looks[0] == beat:
            leave(tmp_path, beat=8)
        looks[0] += 1
        return look(path)

    monkeypatch.setattr(lock, "look", beating)
    with pytest.raises(InputError, match="another process is training this run"), taken(tmp_path, lambda _: None):
        pass
    assert content(tmp_path) == ELSEWHERE | {"beat": 8}


def test_flock_that_reaches_other_machines_needs_no_watching(tmp_path: Path) -> None:
    with leave(tmp_path).open("rb+") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        assert held(tmp_path, sure=True)
        with pytest.raises(InputError, match="another process is training this run"), taken(tmp_path):
            pass


@pytest.mark.usefixtures("flock")
@pytest.mark.parametrize("text", ["", "{", json.dumps(ELSEWHERE)], ids=["empty", "damaged", "elsewhere"])
def test_a_quick_look_at_a_lock_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text, encoding="utf-8")
    assert held(tmp_path)
    assert not held(tmp_path, sure=True)
    assert lock.alive(tmp_path) is None
    assert (tmp_path / NAME).read_text(encoding="utf-8") == text


def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    assert lock.alive(tmp_path) is None
    with pytest.raises(OSError, match="a named pipe, not a file"):
        lock.Lock(tmp_path).take(print)


def test_no_lock_without_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not held(tmp_path / "none")
    assert not held(tmp_path / "file")


@pytest.mark.usefixtures("quick")
def test_an_empty_file_is_taken_over_when_it_stays_so(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    told: list[str] = []
    with taken(tmp_path, told.append) as own:
        own.check()
    assert "is locked by an unknown host" in told[0]


def test_who_lost_the_lock_is_told_ever_after_and_leaves_it_alone(tmp_path: Path) -> None:
    with taken(tmp_path) as own:
        assert own.check() is False
        (tmp_path / NAME).unlink()
        leave(tmp_path)
        for _ in range(2):
            with pytest.raises(LostLockError, match="another process took over"):
                own.check()
        (tmp_path / NAME).unlink()
        with pytest.raises(LostLockError):
            own.check()
        leave(tmp_path)
    assert content(tmp_path) == ELSEWHERE


@pytest.mark.parametrize("what", ["lock", "folder"])
def test_a_removed_lock_is_put_back(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with taken(folder) as own:
        before = content(folder)
        (folder / NAME).unlink()
        if what == "folder":
            folder.rmdir()
            folder.parent.rmdir()
        assert own.check() is True
        assert own.check() is False
        assert content(folder) == before
        with (folder / NAME).open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert list(folder.iterdir()) == []


def test_a_lock_is_renewed_and_put_back_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.001)
    written = threading.Semaphore(0)
    write = Lock._write

    def told(self: Lock, handle: int) -> None:
        write(self, handle)
        written.release()

    monkeypatch.setattr(Lock, "_write", told)
    with taken(tmp_path) as own:
        for _ in range(4):
            written.acquire()
        assert content(tmp_path)["beat"] >= 2
        (tmp_path / NAME).unlink()
        for _ in range(20):  # those before the file was gone may still count
            written.acquire()
        assert content(tmp_path)["beat"] >= 3
        assert own.check() is True
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_not_made_again_by_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is left to the run, which puts back the other files too."""
    folder = tmp_path / "run"
    folder.mkdir()
    with taken(folder) as own:
        (folder / NAME).unlink()
        folder.rmdir()
        rounds = iter([False, False, True])
        monkeypatch.setattr(own._ended, "wait", lambda _: next(rounds))
        own._renew()
        assert not folder.exists()
        assert own.check() is True


@pytest.mark.usefixtures("flock", "quick")
@pytest.mark.parametrize("dead", ["here", "elsewhere"])
def test_of_many_take_overs_one_wins(tmp_path: Path, dead: str) -> None:
    here = {**lock._here(), "pid": os.getpid(), "started": 0}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(25):
            folder = tmp_path / str(number)
            folder.mkdir()
            leave(folder, **(here if dead == "here" else {}))
            locks = [Lock(folder) for _ in range(6)]
            barrier = threading.Barrier(len(locks))
            refused: list[Lock] = []

            def take(own: Lock, barrier: threading.Barrier = barrier, refused: list[Lock] = refused) -> None:
                barrier.wait()
                try:
                    own.take(lambda _: None)
                except InputError:
                    refused.append(own)

            threads = [threading.Thread(target=take, args=(own,)) for own in locks]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            owners = []
            for own in locks:
                if own not in refused:
                    try:
                        own.check()
                    except LostLockError:
                        continue
                    owners.append(own)
            assert len(owners) == 1
            assert content(folder)["nonce"] == owners[0]._nonce
            for own in locks:
                own.release()
            assert list(folder.iterdir()) == []
    finally:
        sys.setswitchinterval(before)


def test_a_lock_that_was_taken_meanwhile_is_put_back(tmp_path: Path) -> None:
    path = leave(tmp_path, beat=8)
    lock._remove(path, json.dumps(ELSEWHERE).encode() + b"\n")
    assert content(tmp_path)["beat"] == 8
    assert list(tmp_path.iterdir()) == [path]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    leave(tmp_path, **{**lock._here(), "pid": os.getpid(), "started": 0})
    with taken(tmp_path) as own:
        own.check()
        with pytest.raises(InputError), taken(tmp_path):
            pass
        (tmp_path / NAME).unlink()
        assert own.check() is True
        lock._remove(tmp_path / NAME, b"another's")
        assert own.check() is False
    assert list(tmp_path.iterdir()) == []


def test_a_link_whose_answer_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS: the client asks again and learns that the file exists."""
    link = os.link

    def repeated(*paths: Any) -> None:
        link(*paths)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", repeated)
    with taken(tmp_path) as own:
        own.check()


def test_a_full_disk_leaves_no_half_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"), taken(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


VALUES = st.sampled_from([None, True, -1, 0, 1, 2**80, 1.5, "", "x", [], {}])


@given(
    st.binary()
    | st.dictionaries(st.sampled_from(sorted(ELSEWHERE)), VALUES).map(
        lambda values: json.dumps(ELSEWHERE | lock._here() | values).encode()
    )
)
def test_any_file_is_a_lock_or_none(text: bytes) -> None:
    found = lock.Found(text, lock._parse(text), flocked=False)
    assert found.alive in (None, False, True)
    assert found.host
