"""The lock of a run's folder: it dies with its holder, on file systems without flock too.

The file ``.lock`` names its holder and is renewed every ``BEAT_S``. Who else wants the folder decides by it:

- a holder on this machine lives if its process does;
- one on another machine lives if flock says so, or if the file changes while it is watched; it is gone when nothing
  changed at so many looks in a row as fill ``LEASE_S``. No clock is read, so none can be wrong.

The file appears whole (a link to a complete one, atomic on NFS too) and is renewed in place, through the holder's own
handle: a holder whose lock was taken while it was suspended writes to a file without a name, never to the other's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adalora_repro.errors import InputError
from adalora_repro.records.file_kinds import not_a_file

NAME = ".lock"
BEAT_S = 15.0
LEASE_S = 60.0  # four beats: one that a busy file system delays is no death
LARGEST = 1 << 16  # bytes of a lock file that are read; ours have about 200
LOOK_S = 1.0  # between two looks at a lock that is watched
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # of a file system without hard links


class LostLockError(RuntimeError):
    """Another process has the folder now: nothing may be written there any more."""


@dataclass(frozen=True)
class Found:
    """A lock file at one moment.

    Attributes:
        content: as read; it changes with every beat.
        holder: what is in it; None for a file that is not (yet) a lock of this program.
        flocked: whether flock says that its holder lives; False says nothing.
    """

    content: bytes
    holder: dict[str, Any] | None
    flocked: bool

    @property
    def alive(self) -> bool | None:
        """Whether the holder lives; None where only watching can tell."""
        here = _here()
        if self.holder is not None and here["boot"] and all(self.holder[name] == here[name] for name in here):
            return _lives(self.holder["pid"], self.holder["started"])
        return True if self.flocked else None

    @property
    def host(self) -> str:
        return self.holder["host"] if self.holder is not None else "an unknown host"


class Lock:
    """The lock of ``folder``, for one holder: ``take``, then ``check`` before each write, at the end ``release``."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._nonce = secrets.token_hex(8)
        self._beat = 0
        self._handle: int | None = None
        self._lost = self._removed = False
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def take(self, tell: Callable[[str], None]) -> None:
        """Takes the lock, that of a dead holder too.

        Args:
            tell: is given a line before another machine's lock is watched.

        Raises:
            InputError: its holder lives.
            OSError: the folder cannot be written.
        """
        looks = 0
        before: Found | None = None
        while True:
            found = look(self._path)
            if found is None:
                if self._make():
                    break
                continue
            alive = found.alive
            if alive is None and before is not None:
                looks += 1
                alive = True if found.content != before.content else False if looks * LOOK_S >= LEASE_S else None
            if alive:
                raise InputError(f"{self._path.parent}: another process is training this run")
            if alive is False:
                _remove(self._path, found.content)
                continue
            if before is None:
                tell(
                    f"{self._path.parent} is locked by {found.host}: looking for up to {LEASE_S:.0f} s whether that "
                    "process lives"
                )
            before = found
            self._ended.wait(LOOK_S)
        self._thread.start()

    def check(self) -> bool:
        """Whether the lock had been removed since the last call, and with it perhaps the folder: both are there again.

        Raises:
            LostLockError: another process has it.
        """
        with self._mutex:
            self._keep()
            removed, self._removed = self._removed, False
        return removed

    def _keep(self) -> None:
        while not self._lost:
            found = look(self._path)
            if found is not None:
                self._lost = not self._is_mine(found)
                break
            self._removed = True
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._make():
                break
        if self._lost:
            raise LostLockError(f"another process took over {self._path.parent}")

    def release(self) -> None:
        """Gives the lock back; one that was never had, or is another's by now, stays as it is."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._handle is None:
            return
        with suppress(OSError):  # what stays is a dead holder's
            found = look(self._path)
            if found is not None and self._is_mine(found):
                _remove(self._path, found.content)
        os.close(self._handle)
        self._handle = None

    def _is_mine(self, found: Found) -> bool:
        return found.holder is not None and found.holder["nonce"] == self._nonce

    def _make(self) -> bool:
        """Makes the file; False where there is one."""
        complete = self._path.with_name(f"{NAME}.{self._nonce}")
        handle = self._written(complete)
        try:
            os.link(complete, self._path)
            made = True
        except FileExistsError:  # NFS says so too when only the answer to a first try was lost
            made = os.fstat(handle).st_nlink > 1
        except OSError as error:
            os.close(handle)
            if error.errno not in NO_LINKS:
                raise
            try:
                handle, made = self._written(self._path), True
            except FileExistsError:
                return False
        finally:
            complete.unlink(missing_ok=True)
        old, self._handle = (self._handle, handle) if made else (handle, self._handle)
        if old is not None:
            os.close(old)
        return made

    def _written(self, path: Path) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
        try:
            with suppress(OSError):  # no locks on this file system
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(handle)
        except BaseException:
            os.close(handle)
            path.unlink(missing_ok=True)
            raise
        return handle

    def _write(self, handle: int) -> None:
        pid = os.getpid()
        process = _process(pid)
        holder = _here() | {"pid": pid, "started": process and process[1], "nonce": self._nonce, "beat": self._beat}
        content = json.dumps(holder, allow_nan=False).encode() + b"\n"
        os.pwrite(handle, content, 0)  # never shorter than before: only the beat changes
        os.fsync(handle)

    def _renew(self) -> None:
        """The thread: a beat now and then. What it finds wrong ``check`` tells the run."""
        while not self._ended.wait(BEAT_S):
            with self._mutex, suppress(OSError, LostLockError):
                if self._path.parent.exists():  # a folder that is gone is made again where something is written
                    self._keep()
                    assert self._handle is not None
                    self._beat += 1
                    self._write(self._handle)


def look(path: Path) -> Found | None:
    """The lock file as it is; None without one.

    Raises:
        OSError: it cannot be read.
    """
    try:
        if kind := not_a_file(path.stat().st_mode):
            raise OSError(errno.EINVAL, f"{kind}, not a file", str(path))
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    flocked = False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            flocked = True
        except OSError:  # no locks on this file system
            pass
        content = file.read(LARGEST)
    return Found(content, _parse(content), flocked)


def alive(folder: Path) -> bool | None:
    """Whether a process trains in the run's folder: a quick look. None where only watching can tell."""
    try:
        found = look(folder / NAME)
    except OSError:
        return None
    return False if found is None else found.alive


def held(folder: Path, sure: bool = False) -> bool:
    """The same, with an answer in any case.

    Args:
        sure: count only what is certain. A lock of another machine may be a dead holder's; it counts otherwise.
    """
    found = alive(folder)
    return not sure if found is None else found


def _remove(path: Path, content: bytes) -> None:
    """Takes the file away if it still has this content; any other is put back."""
    aside = path.with_name(f"{NAME}.{secrets.token_hex(8)}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if aside.read_bytes() != content:
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
        except OSError:
            if not path.exists():
                os.rename(aside, path)
    aside.unlink(missing_ok=True)


def _parse(content: bytes) -> dict[str, Any] | None:
    kinds = {"host": str, "boot": str | None, "pid": int, "started": int | None, "nonce": str, "beat": int}
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not all(isinstance(values.get(name), kind) for name, kind in kinds.items()):
        return None
    return {name: values.get(name) for name in kinds} if values["pid"] > 0 and values["host"] else None


def _here() -> dict[str, str | None]:
    """Two processes for which this is the same mean the same process by an id."""
    boot = None
    with suppress(OSError):
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        boot = f"{booted} {os.readlink('/proc/self/ns/pid')}"
    return {"host": socket.gethostname(), "boot": boot}


def _lives(pid: int, started: int | None) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    process = _process(pid)
    if process is None:
        return True
    return process[0] not in "ZX" and started in (None, process[1])


def _process(pid: int) -> tuple[str, int] | None:
    """A process's state and when it was started (ticks since boot): what tells it from a later one with its id."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])
