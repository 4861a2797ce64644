"""The lease on a run's folder: two processes never train the same run, and the lease of a dead one is taken over.

``filelock.SoftFileLease`` writes the file ``.lock``, renews it from a thread, and takes over the lease of a process of
this host that is dead. A lease of another host is watched, and taken over when it has not been renewed for ``LEASE_S``.
Only this host's clock is read, so clocks that differ do no harm.
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

NAME = ".lock"
LEASE_S = 60.0  # three renewals: a busy file system may delay one
LOOK_S = 1.0  # between two checks of a lease that is watched


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
        if _acquired(self._lease):
            return
        first, living = seen(self._path), alive(self._folder)
        if living is None:
            host = self._lease.owner.hostname if self._lease.owner else "an unknown host"
            say(f"{self._folder} is locked by {host}: watching up to {LEASE_S:.0f} s if it is alive")
            for _ in range(1 + round(LEASE_S / LOOK_S)):
                time.sleep(LOOK_S)
                if seen(self._path) != first:
                    break
        if not living and first is not None and seen(self._path) == first:
            _remove(self._path, first)  # filelock itself leaves it where two names cannot be exchanged (NFS)
        if not _acquired(self._lease):
            raise InputError(f"{self._folder}: another process is training this run")

    def check(self) -> None:
        """Raises LostFolderError unless the lease is still this process's."""
        owner = self._lease.owner
        if owner is not None and owner.token == self._lease.token:
            return
        if owner is not None:
            raise LostFolderError(f"another process took over {self._folder}")
        if seen(self._path) is None:
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
    with suppress(Timeout, LeaseSettingsMismatch):
        lease.acquire(timeout=0)
    return lease.is_locked


def seen(path: Path) -> tuple[int, int] | None:
    """Changes when a lease is renewed; None without a file."""
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state.st_ino, state.st_mtime_ns


def _remove(path: Path, judged: tuple[int, int]) -> None:
    """Removes the file if it is the one that was judged; any other is put back."""
    aside = path.with_name(f"{NAME}.{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if seen(aside) != judged:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def alive(folder: Path) -> bool | None:
    """Whether a process is training in the run's folder; None: unknown, it may be on another host.

    filelock judges a holder (its host, its PID namespace, its start time) only when it acquires a lease, so it is given
    a copy: nothing in the folder changes.
    """
    if seen(folder / NAME) is None:
        return False
    with suppress(OSError), tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / NAME
        copied.write_bytes((folder / NAME).read_bytes())
        lease, own = _lease(copied), _lease(Path(scratch) / "own")
        with own.acquire(timeout=0):
            here = own.owner
        if lease.owner is None or here is None or lease.owner.hostname != here.hostname:
            return None
        taken = _acquired(lease)
        lease.release()
        return not taken
    return None


def held(folder: Path, sure: bool = False) -> bool:
    """Whether the run's folder is in use.

    Args:
        sure: the answer where ``alive`` does not know: False if set, True otherwise.
    """
    living = alive(folder)
    return not sure if living is None else living
