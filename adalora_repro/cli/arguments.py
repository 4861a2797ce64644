"""Command lines read with argparse: their complaints are one line, like every other wrong input."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

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
