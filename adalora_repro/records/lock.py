"""The lease on a run's folder: two processes never train the same run, and a dead one's lease does not stay.

``filelock.SoftFileLease`` writes the file ``.lock``, renews it from a thread, and judges another's: that of a dead
process of this host is taken over at once. One of another host is watched, and taken over when nothing renewed it for
``LEASE_S``. No clock is read but this host's own, so none can be wrong.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from adalora_repro.errors import InputError
from adalora_repro.records.validation import not_a_file

NAME = ".lock"
LEASE_S = 60.0  # three renewals: one that a busy file system delays is no death
LOOK_S = 1.0  # between two looks at a lease that is watched
Seen = tuple[int, int] | None  # inode and time of change of a lease's file


class LostFolderError(RuntimeError):
    """The folder is not this process's any more: it was removed, or another process has it. Nothing may be written."""


class Lock:
    """The lease on ``folder``, for one holder: ``take``, then ``check`` before each write, at the end ``release``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / NAME
        self._lease = _lease(self._path)

    def take(self, say: Callable[[str], None]) -> None:
        """Takes the lease, that of a dead holder too.

        Args:
            say: is given a line before another host's lease is watched.

        Raises:
            InputError: its holder lives.
            OSError: the folder cannot be written.
        """
        looks = 0
        first: Seen = None
        while not _acquired(self._lease):
            now = _seen(self._path)
            if now is None:
                continue
            verdict = alive(self._folder) if first is None else None
            if verdict or (first is not None and now != first):
                raise InputError(f"{self._folder}: another process is training this run")
            if verdict is False or looks * LOOK_S > LEASE_S:
                _remove(self._path, now)  # filelock itself leaves it where two names cannot be exchanged (NFS)
                first = None
                continue
            if first is None:
                owner = self._lease.owner
                host = "an unknown host" if owner is None else owner.hostname
                say(f"{self._folder} is locked by {host}: looking for up to {LEASE_S:.0f} s whether that process lives")
                first, looks = now, 0
            looks += 1
            time.sleep(LOOK_S)

    def check(self) -> None:
        """Raises LostFolderError unless the lease is still this process's."""
        owner = self._lease.owner
        if owner is not None and owner.token == self._lease.token:
            return
        if owner is not None:
            raise LostFolderError(f"another process took over {self._folder}")
        if _seen(self._path) is None:
            what = self._path if self._folder.exists() else self._folder
            raise LostFolderError(f"{what} was removed while the run was training")
        if self._lease.compromise is not None:  # otherwise it cannot be read for a moment
            raise LostFolderError(f"{self._path} cannot be renewed")

    def release(self) -> None:
        """Gives the lease back; one that was never had, or is another's by now, stays as it is."""
        with suppress(OSError):  # what stays is a dead holder's
            self._lease.release()


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(path, lease_duration=LEASE_S, thread_local=False)


def _acquired(lease: SoftFileLease) -> bool:
    """One try, which takes over what filelock can prove to be a dead holder's."""
    try:
        lease.acquire(timeout=0)
    except (Timeout, LeaseSettingsMismatch):
        return False
    return True


def _seen(path: Path) -> Seen:
    """What changes when a lease is renewed; None without a file."""
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state.st_ino, state.st_mtime_ns


def _remove(path: Path, judged: Seen) -> None:
    """Takes the file away if it is the one that was judged; any other is put back."""
    aside = path.with_name(f"{NAME}.{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if _seen(aside) != judged:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def alive(folder: Path) -> bool | None:
    """Whether a process trains in the run's folder, as far as one look tells; None: it may be on another host.

    filelock judges a holder (its host, its PID namespace, when it was started) only where it acquires, so it is given a
    copy: a look changes nothing in the folder.
    """
    path = folder / NAME
    try:
        if not_a_file(path.stat().st_mode):
            return None
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / NAME
        copied.write_bytes(content)
        lease, own = _lease(copied), _lease(Path(scratch) / "own")
        holder = lease.owner
        with own.acquire(timeout=0):
            here = own.owner
        if holder is None or here is None or holder.hostname != here.hostname:
            return None
        acquired = _acquired(lease)
        lease.release()
        return not acquired


def held(folder: Path, sure: bool = False) -> bool:
    """The same, with an answer in any case.

    Args:
        sure: count only what is certain. A lease of another host may be a dead holder's; it counts otherwise.
    """
    living = alive(folder)
    return not sure if living is None else living
