"""The lease on a run's folder: who has it, who may take it over, who lost it. How filelock judges is its own affair."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import SoftFileLease

from adalora_repro.errors import InputError
from adalora_repro.records import lock
from adalora_repro.records.lock import NAME, Lock, LostFolderError, held

HOLDER = """
import sys
from pathlib import Path
from adalora_repro.records.lock import Lock
lease = Lock(Path(sys.argv[1]))
lease.take(print)
print("taken", flush=True)
sys.stdin.read()
"""
HELD = "another process is training this run"


def silent(line: str) -> None:
    raise AssertionError(f"watched: {line}")


def leave(folder: Path, host: str = "elsewhere", pid: int = 1) -> Path:
    """The lease of a process on another host, as filelock writes it."""
    path = folder / NAME
    lines = ["filelock/2", f"pid={pid}", f"host={host}", "mode=lease", "token=theirs", f"duration={lock.LEASE_S!r}"]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lease."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdout.readline() == "taken\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def taken(folder: Path, say: Callable[[str], None] = silent) -> Iterator[Lock]:
    own = Lock(folder)
    try:
        own.take(say)
        yield own
    finally:
        own.release()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few looks without a change are a death."""
    monkeypatch.setattr(lock, "LEASE_S", 0.05)
    monkeypatch.setattr(lock, "LOOK_S", 0.01)


@pytest.mark.parametrize("exchange", [True, False], ids=["local", "without an exchange of names, as on NFS"])
def test_a_holder_of_this_host_keeps_the_lease_until_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    with holder(tmp_path) as process:
        assert held(tmp_path)
        assert held(tmp_path, sure=True)
        with pytest.raises(InputError, match=HELD), taken(tmp_path):
            pass
        process.kill()
        process.wait()
        assert not held(tmp_path)
        if not exchange:
            acquired, refusals = lock._acquired, [False]

            def left(lease: SoftFileLease) -> bool:
                """filelock leaves the dead one's file where it is."""
                return refusals.pop() if refusals and lease.lock_file == str(tmp_path / NAME) else acquired(lease)

            monkeypatch.setattr(lock, "_acquired", left)
        with taken(tmp_path) as own:
            own.check()
            assert held(tmp_path, sure=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_silent_lease_of_another_host_is_watched_and_taken_over(tmp_path: Path) -> None:
    leave(tmp_path)
    said: list[str] = []
    with taken(tmp_path, said.append) as own:
        own.check()
    (line,) = said
    assert line.startswith(f"{tmp_path} is locked by elsewhere: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("look", [1, 3])
def test_one_renewal_shows_that_a_holder_elsewhere_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    path, looks = leave(tmp_path), [0]

    def renewed(seconds: float) -> None:
        looks[0] += 1
        if looks[0] == look:
            os.utime(path, ns=(1, 1))

    monkeypatch.setattr(lock.time, "sleep", renewed)
    monkeypatch.setattr(lock, "_remove", None)  # not even for a moment: its holder would miss it
    with pytest.raises(InputError, match=HELD), taken(tmp_path, lambda _: None):
        pass
    assert "token=theirs" in path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("text", ["", "{", '{"host": "a", "pid": 1}'], ids=["empty", "damaged", "an older version's"])
def test_a_file_that_names_no_holder_is_taken_over_when_it_stays_so(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text, encoding="utf-8")
    assert held(tmp_path)
    assert not held(tmp_path, sure=True)
    assert lock.alive(tmp_path) is None
    said: list[str] = []
    with taken(tmp_path, said.append) as own:
        own.check()
    assert "is locked by an unknown host" in said[0]


def test_a_look_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lock.alive(tmp_path) is False
    path = leave(tmp_path)
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert lock.alive(tmp_path) is None
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert lock.alive(tmp_path) is None
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "file").touch()
    assert not held(tmp_path / "none")
    assert not held(tmp_path / "file")


@pytest.mark.parametrize("what", ["lease", "folder", "both", "taken"])
def test_who_lost_the_folder_learns_it_before_it_writes(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with taken(folder) as own:
        own.check()
        if what == "lease":
            (folder / NAME).unlink()
        else:
            shutil.rmtree(folder)
        if what in ("both", "taken"):
            folder.mkdir()
        if what == "taken":
            leave(folder)
        for _ in range(2):
            with pytest.raises(LostFolderError, match="took over" if what == "taken" else "was removed"):
                own.check()
    assert (folder / NAME).exists() == (what == "taken")
    assert folder.exists() == (what != "folder")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dead", ["here", "elsewhere"])
def test_of_many_take_overs_one_wins(tmp_path: Path, dead: str) -> None:
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        leave(folder)
        if dead == "here":
            with taken(tmp_path):
                text = (tmp_path / NAME).read_text(encoding="utf-8")
            lines = [line for line in text.splitlines() if not line.startswith(("pid=", "start="))]
            (folder / NAME).write_text("\n".join([*lines, f"pid={2**31 - 1}", ""]), encoding="utf-8")
        locks = [Lock(folder) for _ in range(4)]
        barrier = threading.Barrier(len(locks))
        winners: list[Lock] = []

        def take(own: Lock, barrier: threading.Barrier = barrier, winners: list[Lock] = winners) -> None:
            barrier.wait()
            try:
                own.take(lambda _: None)
                winners.append(own)
            except InputError:
                pass

        threads = [threading.Thread(target=take, args=(own,)) for own in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        owners = []
        for own in winners:
            try:
                own.check()
            except LostFolderError:
                continue
            owners.append(own)
        assert len(owners) == 1
        for own in locks:
            own.release()
        assert list(folder.iterdir()) == []
