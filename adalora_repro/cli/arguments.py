"""Programs whose command line argparse reads: wrong input is one line."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from adalora_repro.config import catalog
from adalora_repro.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    InputError,
    clean,
    guarded,
    mute,
    tolerate_any_locale,
)
from adalora_repro.records.run_record import RecordError


@guarded()
def exit_code(program: str, command: Callable[[], int]) -> int:
    """Runs a command; its exit code, or that of wrong input, of which it prints one line, or of Ctrl-C."""
    tolerate_any_locale()
    try:
        return command()
    except (InputError, RecordError) as error:
        print(f"{program}: error: {clean(str(error))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader, head say, has seen enough
        mute(sys.stdout)
        return EXIT_OK
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        mute(sys.stdout)
        where = error.filename or "standard output"
        print(f"{program}: error: {clean(f'{where}: {error.strerror}')}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class Parser(argparse.ArgumentParser):
    """Raises InputError instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def completed(parser: Parser) -> Parser:
    """The parser; while a shell completes a command line (with argcomplete), prints the choices and exits."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    return parser


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with files of your own, as adalora-run takes it")


def require_one_config_dir(words: Sequence[str]) -> None:
    """Raises InputError if several folders are named, of which Hydra would read one."""
    if sum(word.partition("=")[0] in ("--config-dir", "-cd") for word in words) > 1:
        raise InputError("--config-dir: Hydra reads one folder, the last; put your files into one")


def use_config_dir(folder: str | None) -> None:
    """Counts the files of ``folder`` among those of ``conf/``.

    Raises:
        InputError: there is no such folder.
    """
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"--config-dir: no folder '{folder}'")
    catalog.add_folder(folder)
