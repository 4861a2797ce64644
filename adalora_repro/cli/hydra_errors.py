"""Hydra's command line: words that it would not understand, and its errors as one line each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, NoReturn

# The one private module of Hydra: it has no public parser of its command line, and a second one would differ from it.
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import BooleanNode, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adalora_repro.config.catalog import GROUPS, add_folder, base_files, choices_of, resource
from adalora_repro.config.checks import OPTIONAL
from adalora_repro.config.schema import Config
from adalora_repro.config.words import word
from adalora_repro.errors import InputError, did_you_mean, nearest
from adalora_repro.settings import settings_of

#: errors of Hydra, its launchers and the sweeper for wrong input
WRONG_INPUT = (HydraException, OmegaConfBaseException, ValueError, ArithmeticError, OSError)
NOTHING_ON_DISK = ("hydra.output_subdir=null", "hydra.run.dir=.", "hydra/job_logging=none", "hydra/hydra_logging=none")


# -- words before Hydra reads them ---------------------------------------------------------------------------------


def prepare_words() -> None:
    """Refuses words of ``sys.argv`` that Hydra would not report, or not in one line, and rewrites words for Hydra.

    Hydra's parser answers an unknown option with a page of usage, and one after the settings with a cryptic error.

    Raises:
        InputError: names the word.
        HydraException: Hydra's grammar does not accept a word.
    """
    parser = get_args_parser()

    def refuse(problem: str) -> NoReturn:
        raise InputError(problem)

    parser.error = refuse
    args, unknown = parser.parse_known_args()
    add_folder(args.config_dir)
    if args.config_path or args.config_name:
        raise InputError("--config-path, --config-name: the configuration is this program's; --config-dir adds files")
    if args.experimental_rerun:
        raise InputError("--experimental-rerun would unpickle a file; to resume a run, repeat its command")
    if unknown:
        option = next((text for text in unknown if text.startswith("-")), None)
        if option is None:
            raise InputError(f"'{unknown[0]}' comes too late: options (-m, --cfg job) must come before the settings")
        raise InputError(f"no option '{option}'; settings are written key=value (task=sst2), --help shows them")
    check_equals_signs(args.overrides)
    overrides = [_parsed(text) for text in args.overrides]
    for override in overrides:
        _check_override(override, bool(args.multirun))
    if _is_dry_run(overrides):  # a dry run leaves nothing on disk, whatever else is typed
        last = max(index for index, text in enumerate(sys.argv) if text in args.overrides)
        sys.argv[last + 1 : last + 1] = NOTHING_ON_DISK
    if args.multirun:
        for override in overrides:
            sys.argv[sys.argv.index(override.input_line)] = _of_each_job(override)


def check_equals_signs(words: Sequence[str]) -> None:
    """Raises InputError for a word that is no ``key=value``: ``task mnli``, or ``mnli`` alone."""
    for text, following in pairwise([*words, "VALUE"]):
        if "=" in text or text.startswith("~"):
            continue
        if text in GROUPS:
            value = following if "=" not in following else text.upper()
            raise InputError(f"'{text}': settings are written key=value; write {text}={value}")
        for group in GROUPS:
            if choice := nearest(text, choices_of(group)):
                raise InputError(f"'{text}': settings are written key=value; did you mean {group}={choice}?")
        raise InputError(f"'{text}': settings are written key=value, task=sst2 for example; --help shows them")


def _parsed(text: str) -> Override:
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except HydraException:
        raise
    except ValueError:  # Python refuses numbers of more than 4300 digits
        raise InputError(f"cannot read '{text[:40]}…': whole numbers must be below 2^63") from None
    return override


def _check_override(override: Override, multirun: bool) -> None:
    """Refuses values that Hydra's grammar accepts but nothing can use.

    Raises:
        InputError: a setting removed, a list instead of a choice's name, several values for one run, or a sweep instead
            of a run.
    """
    text, key, value = override.input_line, override.get_key_element().lstrip("+~"), override.value()
    if override.is_delete() and not key.startswith(("hydra", *OPTIONAL)):
        raise InputError(f"'{text}': settings are given other values, not removed")
    if key == "sweep" and (not multirun or not override.is_add()):
        raise InputError(f"{text} stands for several runs: adalora-run -m +sweep={text.partition('=')[2]}")
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    names_a_file = key.partition("@")[0] in (*GROUPS, *OPTIONAL) or key.startswith("hydra/")
    if names_a_file and any(isinstance(each, list | dict) for each in values):
        several = "; for several runs, use -m and a list without brackets" if key in GROUPS else ""
        raise InputError(f"{text}: {key} takes the name of one file{several}")
    if override.is_sweep_override() and not multirun and not key.startswith("hydra"):
        raise InputError(f"{text[:80]} stands for several runs: add -m, adalora-run -m {text[:80]}")


def _of_each_job(override: Override) -> str:
    """A word of a sweep as Hydra should read it: an option of a choice (method.r) must reach only the single runs.

    Hydra also composes one configuration for the whole sweep, with groups at their defaults where several choices are
    typed, and the default may not have the option. There Hydra skips sweeps, even over a single value.
    """
    text, group = override.input_line, override.get_key_element().lstrip("+")
    key, _, value = text.partition("=")
    if group.partition(".")[0] not in GROUPS or "." not in group or not value or override.is_sweep_override():
        return text
    with suppress(HydraException):
        alone = _parsed(f"{key}=choice({value})")
        if list(alone.sweep_string_iterator()) == [override.get_value_element_as_str()]:
            return str(alone.input_line)
    return text


def _is_dry_run(overrides: Sequence[Override]) -> bool:
    typed = [override.value() for override in overrides if override.get_key_element().lstrip("+") == "dry_run"]
    try:
        return bool(typed) and bool(BooleanNode(typed[-1]))
    except OmegaConfBaseException:  # Hydra reports it
        return False


# -- errors of Hydra -> one line -----------------------------------------------------------------------------------


@contextmanager
def raising_hydra() -> Iterator[None]:
    """Hydra prints errors over many lines and exits with 1, unless HYDRA_FULL_ERROR lets them through."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def file_problems() -> Iterator[None]:
    """Planning reads files and folders that the user named: one with an impossible name, say, is wrong input.

    Raises:
        InputError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None


def explain(error: Exception, typed: Sequence[str] | None = None) -> str:
    """One line for an error of composing: what, where, the valid choices. Never raises.

    Args:
        typed: the words that were composed, if they differ from the command line.
    """
    text = ""
    with suppress(Exception):  # a file of --config-dir that cannot be read, for one
        text = _explained(error, sys.argv[1:] if typed is None else typed) or str(error)
    line = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    if line and isinstance(error, WRONG_INPUT):
        return line
    return f"cannot compose a configuration: {type(error).__name__}{': ' if line else ''}{line}"


def _explained(error: Exception, typed: Sequence[str]) -> str:
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        if error.filename is None:
            return text
        return f"cannot write {error.filename}: {error.strerror}; results.dir says where results go"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, text.splitlines()[0])
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        base = group.partition("/")[0]
        if base in GROUPS and group != base:  # the name has a slash: microsoft/deberta-v3-base
            return unknown_choice(base, error.missing_cfg_file.removeprefix(f"{base}/"))
        if group:
            return unknown_choice(group, choice, error.options)
    if "Config group override must be" in text:  # budget=0.5, method=null
        for group, _, choice in (text.partition("=") for text in typed):
            if group in GROUPS and choice not in choices_of(group):
                return unknown_choice(group, choice)
    if error.__cause__ is not None and type(error).__name__ == "ConfigCompositionException":
        text += f"\n{error.__cause__}"
    if match := re.search(r"full_key: ([\w.]+)", text):
        lines = [line for line in text.splitlines() if line and not line.startswith("Error merging")]
        return f"{match[1]}: {lines[0]}" if "not in" not in text else unknown_setting(match[1], typed)
    if match := re.search(r"Could not override '([\w.@/]+)'", text):
        return unknown_setting(match[1], typed)
    return re.sub(r"See https?://\S+.*", "", text)


def _unreadable(text: str, why: str) -> str:
    """For a word that Hydra's grammar does not take: letters beyond ASCII, brackets and blanks have to be in quotes."""
    key, equals, value = text.partition("=")
    hint = f"; put text with such characters in quotes: {word(key, value)}" if equals and value else ""
    return f"cannot read '{text}': {why.rpartition('Exception: ')[2]}{hint}"


def unknown_choice(group: str, choice: str, options: Sequence[str] | None = None) -> str:
    """The line for a choice that a group does not have.

    Args:
        options: Hydra's list, which includes files of installed packages.
    """
    valid = sorted({*choices_of(group), *(options or ())})
    hint = did_you_mean(choice, valid)
    if group == "budget" and (number := _number_of_parameters(choice)) and nearest(choice, valid) != choice:
        hint = f" (for this number of parameters: budget.match=params budget.params={number})"
    if group == "backbone" and "/" in choice:
        same = [name for name in valid if choice in map(str, _values(base_files(group, name), "hub"))]
        named = f"on the hub this is backbone={same[0]}; " if same else ""
        hint = f" ({named}a model in a folder: backbone.path=DIR with the backbone of its architecture)"
    return f"unknown {group} '{choice}'{hint}; valid: {', '.join(valid) or 'none'}"


def _number_of_parameters(label: str) -> int | None:
    """0.5M -> 500000, 80k -> 80000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM])", label)
    return round(float(match[1]) * {"k": 1e3, "m": 1e6}[match[2].lower()]) if match else None


def _values(paths: Sequence[Any], key: str) -> list[Any]:
    return [value for path in paths if (value := OmegaConf.select(OmegaConf.load(path), key)) is not None]


def unknown_setting(key: str, typed: Sequence[str]) -> str:
    """The line for a setting that does not exist: the nearest one, and those beside it."""
    parent, _, name = key.rpartition(".")
    group, of = parent.partition(".")[0], ""
    valid = [path.rpartition(".")[2] for path in settings_of(Config) if path.rpartition(".")[0] == parent]
    if not parent:
        valid += [group for group in GROUPS if group not in valid]
        paths = [*settings_of(Config), *(f"method.{option}" for option in _options_of(typed, "method"))]
        if meant := dict.fromkeys(path for path in paths if path.endswith(f".{name}")):
            return f"no setting '{key}' (did you mean {' or '.join(meant)}?); valid: {', '.join(valid)}"
    elif parent == "hydra.launcher":
        path = resource("conf") / "hydra" / "launcher" / "slurm.yaml"
        valid = [str(option) for option in OmegaConf.load(path) if option not in ("defaults", "_target_")]
    elif group in GROUPS and (parent == "method" or not valid):  # an open node: each file has its own options
        choice = _choice(typed, group)
        valid, of = _options_of(typed, parent), f" for {group}={choice}" if choice else ""
    hint = did_you_mean(name, valid, f"{parent}." if parent else "")
    names = ", ".join(f"{parent}.{name}" if parent else name for name in valid)
    return f"no setting '{key}'{of}{hint}; valid: {names or 'none'}"


def _choice(typed: Sequence[str], group: str) -> str:
    """The file of a group that these words choose, or the default one."""
    chosen = [text.partition("=")[2] for text in typed if text.startswith(f"{group}=")]
    defaults = OmegaConf.load(resource("conf") / "config.yaml").defaults
    return [*(str(entry[group]) for entry in defaults if group in entry), *chosen][-1]


def _options_of(typed: Sequence[str], parent: str) -> list[str]:
    """The keys below ``parent`` in the chosen file of its group and in those it builds on."""
    group = parent.partition(".")[0]
    files = [OmegaConf.load(path) for path in base_files(group, _choice(typed, group))]
    nodes = [OmegaConf.select(file, parent) or OmegaConf.select(file, parent.partition(".")[2]) for file in files]
    return list(dict.fromkeys(str(name) for node in nodes for name in node or () if name != "defaults"))
