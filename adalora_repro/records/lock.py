"""The lease on a run's folder: two processes never train the same run, and the lease of a dead one is taken over.

``filelock.SoftFileLease`` writes the file ``.lock``, renews it from a thread, and judges other leases: that of a dead
process on this host is taken over at once. A lease of another host is watched, and taken over when it has not been
renewed for ``LEASE_S``. Only this host's clock is read, so clocks that differ do no harm.
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
LEASE_S = 60.0  # three renewals: a busy file system may delay one
LOOK_S = 1.0  # between two checks of a lease that is watched
Seen = tuple[int, int] | None  # inode and modification time of a lease's file


class LostFolderError(RuntimeError):
    """The folder no longer belongs to this process: it was removed or taken over. Nothing may be written to it."""


class Lock:
    """The lease on ``folder``, for one holder: ``take``, then ``check`` before each write, at the end ``release``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / NAME
        self._lease = _lease(self._path)

    def take(self, say: Callable[[str], None]) -> None:
        """Takes the lease; also from a dead holder.

        Args:
            say: is given a line before another host's lease is watched.

        Raises:
            InputError: its holder is alive.
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
                say(f"{self._folder} is locked by {host}: watching up to {LEASE_S:.0f} s if it is alive")
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
        if self._lease.compromise is not None:  # otherwise it is only unreadable for a moment
            raise LostFolderError(f"{self._path} cannot be renewed")

    def release(self) -> None:
        """Gives the lease back; one that was never held, or was taken over, stays as it is."""
        with suppress(OSError):  # a file that stays counts as a dead holder's
            self._lease.release()


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(path, lease_duration=LEASE_S, thread_local=False)


def _acquired(lease: SoftFileLease) -> bool:
    """Tries once; takes over a lease whose holder filelock can prove dead."""
    try:
        lease.acquire(timeout=0)
    except (Timeout, LeaseSettingsMismatch):
        return False
    return True


def _seen(path: Path) -> Seen:
    """Changes when a lease is renewed; None without a file."""
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state.st_ino, state.st_mtime_ns


def _remove(path: Path, judged: Seen) -> None:
    """Removes the file if it is the one that was judged; any other is put back."""
    aside = path.with_name(f"{NAME}.{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if _seen(aside) != judged:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def alive(folder: Path) -> bool | None:
    """Whether a process is training in the run's folder; None: unknown, it may be on another host.

    filelock judges a holder (its host, its PID namespace, its start time) only when it acquires a lease, so it is given
    a copy: nothing in the folder changes.
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
    """Whether the run's folder is in use.

    Args:
        sure: the answer where ``alive`` does not know: False if set, True otherwise.
    """
    living = alive(folder)
    return not sure if living is None else living
