"""Command lines read with argparse: their complaints are one line, like every other wrong input."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from adalora_repro.config import catalog
from adalora_repro.errors import InputError


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


def use_config_dir(folder: str | None) -> None:
    """Counts the files of ``folder`` among those of ``conf/``.

    Raises:
        InputError: there is no such folder.
    """
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"--config-dir: no folder '{folder}'")
    catalog.add_folder(folder)
