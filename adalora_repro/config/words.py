"""Writes command-line words, ``key=value``, that a shell passes on and Hydra reads back as exactly that value.

Two grammars apply to such a word: the shell's, and inside it Hydra's grammar of overrides, in which a comma separates
the values of a sweep, brackets begin a list, and ``null``, ``true`` and ``1e3`` are not text. Standard library only:
reports print commands and do not import Hydra.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from adalora_repro.errors import InputError

#: text that Hydra reads without quotes, unless it is ``_is_literal``, which Hydra would read as another type
UNQUOTED = re.compile(r"[\w/.%@+-]+", re.ASCII)


def word(key: str, *values: str | float | None) -> str:
    """One word for a POSIX shell; several values are a sweep over them, for ``adalora-run -m``.

    Text is read back as text; numbers, truth values and None keep their type.
    """
    return shlex.quote(f"{key}={','.join(map(override_value, values))}")


def override_value(value: str | float | None) -> str:
    """The value in Hydra's grammar alone, without the shell's quotes.

    Text that Hydra could read as something else is put in double quotes. Inside them a backslash is special to Hydra
    before a quote, and to OmegaConf before ``${``, which begins an interpolation.
    """
    if value is None:
        return "null"
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    if UNQUOTED.fullmatch(value) and not _is_literal(value):
        return value
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r'(\\*)("|\Z)', lambda match: 2 * match[1] + match[2].replace('"', r"\""), value)
    return f'"{value}"'


def _is_literal(text: str) -> bool:
    """Whether Hydra may read the text as null, a truth value or a number."""
    try:
        float(text)
    except ValueError:
        return text.lower() in ("null", "true", "false")
    return True


def lr_text(lr: float) -> str:
    """5e-4, 1.2e-3: as the paper and the configuration write learning rates."""
    mantissa, _, exponent = f"{lr:.6e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


COMMAND = "# adalora-run "  # the first line of a run's config.yaml, from which ``--config`` starts it again


def command_line(words: Sequence[str]) -> str:
    """The comment that says how a run was started."""
    return COMMAND + shlex.join(" ".join(word.splitlines()) for word in words)


def started_with(config: Path) -> list[str]:
    """The words with which the run with this ``config.yaml`` was started, without force=true: it has started over.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
        ValueError: there is no command in it.
    """
    first = config.read_text(encoding="utf-8").partition("\n")[0]
    if not first.startswith(COMMAND):
        raise ValueError(f"'{config}' does not begin with '{COMMAND}…', as the config.yaml of a run does")
    return [word for word in shlex.split(first.removeprefix(COMMAND)) if key_of(word) != "force"]


def again(words: Sequence[str]) -> list[str]:
    """Replaces ``--config FILE`` by the words with which that run was started; words typed beside it win.

    Raises:
        InputError: there is no such file, or no command in it.
    """
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in words:
        return words
    position = words.index("--config")
    if position + 1 == len(words):
        raise InputError("--config: name the config.yaml of a run")
    path, own = Path(words[position + 1]), words[:position] + words[position + 2 :]
    try:
        started = started_with(path)
    except OSError as error:
        raise InputError(f"--config: cannot read '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"--config: '{path}' is not text in UTF-8") from None
    except ValueError as error:
        raise InputError(f"--config: {error}") from None
    typed = {*map(key_of, own)}
    kept = [word for word in started if key_of(word) not in typed]
    first_setting = next((i for i, word in enumerate(own) if "=" in word and not word.startswith("-")), len(own))
    return [*own[:first_setting], *kept, *own[first_setting:]]  # options, -m say, come before settings


def key_of(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
