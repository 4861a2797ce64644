"""adalora-run: Hydra's main -> one run (or a multirun) -> exit code."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adalora_repro import __version__
from adalora_repro.cli.arguments import Parser, add_config_dir, use_config_dir
from adalora_repro.cli.hydra_errors import (
    WRONG_INPUT,
    explain,
    plan_errors,
    prepare_words,
    raising_hydra,
    unknown_choice,
)
from adalora_repro.cli.ledger import (
    ALREADY,
    DONE,
    ENDS,
    FAILED,
    INTERRUPTED,
    PLANNED,
    REFUSED,
    SKIPPED,
    Ledger,
    Outcome,
)
from adalora_repro.config import catalog, dry_run, settings_table
from adalora_repro.config.catalog import base_files, choices_of, resource
from adalora_repro.config.identity import reference
from adalora_repro.config.plan import Plan
from adalora_repro.config.resolve import already_done, count, ended_since, finished, resolve
from adalora_repro.config.schema import Config
from adalora_repro.config.sweep import Words
from adalora_repro.config.words import again, override_value
from adalora_repro.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TERMINATED,
    InputError,
    expanded,
    guarded,
    mute,
    one_of,
    tolerate_any_locale,
)
from adalora_repro.records import lock
from adalora_repro.training.distributed import launched
from adalora_repro.training.progress import ALONE_S, banner, complain, heading

#: what there is to choose; ``tuned`` follows from the task and the method
LISTS = (*(group for group in catalog.GROUPS if group != "tuned"), "sweep")


def main() -> int:
    """Console entry point; the exit codes are those of ``errors``. Of several processes only the main one prints."""
    if launched()[0] == 0:
        return _main(Ledger())
    logging.disable(logging.WARNING)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        tempfile.TemporaryDirectory() as scratch,
    ):
        if {"-m", "--multirun"} & set(sys.argv):  # the main process's Hydra writes those files
            sys.argv.append(f"hydra.sweep.dir={override_value(scratch)}")
        try:
            return _main(Ledger())
        except Exception:
            time.sleep(ALONE_S)  # see ``complain``
            raise


def one_of_many(words: Sequence[str]) -> Outcome:
    """One run of a sweep in a process of its own, by its words."""
    sys.argv = ["adalora-run", *words]
    ledger = Ledger(apart=True)
    code = _main(ledger)
    return next(iter(ledger.outcomes.values()), (ENDS.get(code, INTERRUPTED), code))


@guarded()
def _main(ledger: Ledger) -> int:
    tolerate_any_locale()
    try:
        sys.argv[1:] = again(sys.argv[1:])
        _command(sys.argv[1:], ledger)
    except InputError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        mute(sys.stdout)
    except Exception as error:  # what a run raises beyond wrong input is its own failure, not Hydra's
        if ledger.inside or not (isinstance(error, WRONG_INPUT) or not ledger.begun):
            raise
        return _refuse(explain(error))
    except KeyboardInterrupt:
        return max(EXIT_INTERRUPTED, ledger.code)
    finally:
        try:
            if summary := ledger.summary():
                print(summary)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, `head` say, has seen enough
            mute(sys.stdout)
    return ledger.code


def _command(words: Sequence[str], ledger: Ledger) -> None:
    register(words)
    if words == ["--version"]:  # Hydra has a version of its own
        print(f"adalora-run {__version__}")
    elif words == ["settings"]:
        print(settings_table.markdown())
    elif "list" in words:
        print_choices([text for text in words if text != "list"])
    else:
        prepare_words()

        def job(cfg: DictConfig) -> Outcome:
            return _job(cfg, ledger)

        vars(job)["ledger"] = ledger  # for the sweeper
        with raising_hydra():
            hydra.main(version_base="1.3", config_path=str(resource("conf")), config_name="config")(job)()


def _job(cfg: DictConfig, ledger: Ledger) -> Outcome:
    """What Hydra calls for a run, alone or of a sweep: in a sweep an error ends that run alone."""
    ledger.inside = ledger.begun = True
    many = ledger.apart or HydraConfig.get().mode == RunMode.MULTIRUN
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)  # ${…} may lead nowhere
    words: Words = tuple(typed)
    try:
        outcome = run(cfg, words, many, ledger)
    except (InputError, OmegaConfBaseException) as error:
        reason = ledger.refusals[words] = str(error) if isinstance(error, InputError) else explain(error)
        outcome = REFUSED, _refuse(reason + (f" (run: {shlex.join(words)})" if many else ""))
        if isinstance(error, InputError) and error.draft:
            print(error.draft)
    except BrokenPipeError:
        mute(sys.stdout)  # its record was written before
        outcome = DONE, EXIT_OK
    except Exception:
        if not many:
            raise
        traceback.print_exc()
        outcome = FAILED, EXIT_FAILED
    ledger.inside = False
    ledger.outcomes[words] = outcome
    if outcome[1] in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        raise KeyboardInterrupt  # or Hydra would begin the next job of a sweep
    if outcome[1] == EXIT_BAD_INPUT and launched()[1] > 1:
        raise SystemExit(EXIT_BAD_INPUT)  # perhaps in this process alone: the others would be in another job
    return outcome


def _refuse(problem: str) -> int:
    complain(f"error: {problem}")
    return EXIT_BAD_INPUT


def run(cfg: DictConfig, words: Words, many: bool, ledger: Ledger) -> Outcome:
    """One configuration -> how it ended. A finished run is recognized before torch is imported.

    Args:
        many: among other runs one that another process trains is skipped; alone it is an error.
        ledger: of this command. A run of a sweep that ended in another process since it began is not repeated.

    Raises:
        InputError: wrong input; nothing was trained.
    """
    choices = HydraConfig.get().runtime.choices
    if not many:
        refuse_launcher(cfg, choices)
    if expanded(cfg.results.dir).is_file():
        raise InputError(f"results.dir={cfg.results.dir} is not a folder")
    with plan_errors():
        plan = resolve(cfg, choices, words)
        two = cfg.measure == "cost" and reference(cfg) is not None
        beside = [resolve(_beside(cfg, words), overrides=words)] if two else []
    if cfg.dry_run:
        print(dry_run.describe(count(plan)))
        for other in beside:
            print(dry_run.describe_beside(count(other), cfg.cost))
        return PLANNED, EXIT_OK
    if cfg.measure == "cost":
        plans = [announced(each) for each in (plan, *beside)]
        from adalora_repro.training import cost

        code = cost.execute(plans)
        return ENDS.get(code, INTERRUPTED), code
    alone = launched()[1] == 1  # several processes look together, in ``execute``: each would see another moment
    if alone and not cfg.force and (score := finished(plan)):
        print(already_done(plan, score))
        return ALREADY, EXIT_OK
    if alone and many and lock.held(plan.folder, sure=True):  # in doubt ``execute`` watches its lock
        return _skipped(plan)
    if alone and many and (ended := ended_since(plan, ledger.began)) in ("ok", "failed"):  # ok: with force=true alone
        print(f"not repeated, another process ended it since this command began ({ended}): {plan.folder}")
        return (ALREADY, EXIT_OK) if ended == "ok" else (FAILED, EXIT_FAILED)
    plan = announced(plan)

    from adalora_repro.training.runner import execute

    try:
        code = execute(plan)
    except InputError:
        if alone and many and lock.held(plan.folder):  # taken since we looked
            return _skipped(plan)
        raise
    # a signal after the last step ends the command, not the run
    return ENDS.get(code, DONE if ended_since(plan, ledger.began) == "ok" else INTERRUPTED), code


def refuse_launcher(cfg: DictConfig, choices: Mapping[str, Any]) -> None:
    """Raises InputError for a single run that names a launcher."""
    if choices["hydra/launcher"] in choices_of("hydra/launcher") or cfg.launch == "detach":
        raise InputError("hydra/launcher and launch=detach are for a sweep: adalora-run -m …")


def announced(plan: Plan) -> Plan:
    """The plan, counted; says what the run is before torch is imported, and its size afterwards.

    Raises:
        InputError: an option the method does not have, or a schedule that does not fit into T; before any download.
    """
    heading(plan)
    plan = count(plan)
    banner(plan)
    return plan


def _skipped(plan: Plan) -> Outcome:
    print(f"skipped: another process is training {plan.folder}")
    return SKIPPED, EXIT_OK


def _beside(cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """The configuration of ``cost.against``: its method and optimizer as the same words compose them, the rest of cfg.

    Words for options that this method does not have, and for recipes of the other, are left out.

    Raises:
        InputError: there is no such method.
    """
    name = cfg.cost.against
    if name not in choices_of("method"):
        raise InputError(f"cost.against: {unknown_choice('method', name)}, or null to measure the method alone")
    options = {key for path in base_files("method", name) for key in catalog.section(path, "method")}
    options -= {"rank_pattern"}  # the ranks of the method that is measured
    kept = []
    for text in words:
        group, _, option = text.lstrip("+~").partition("=")[0].partition(".")
        if group not in ("method", "tuned") or option in options:
            kept.append(text)
    composed = hydra.compose("config", [*kept, f"method={name}"])
    cfg = cfg.copy()
    for node in ("method", "optim"):
        OmegaConf.update(cfg, node, composed[node], merge=False)
    return cfg


# -- what there is to choose ---------------------------------------------------------------------------------------


def print_choices(words: Sequence[str]) -> None:
    """``adalora-run list [--config-dir DIR] [GROUP …]``: every choice in one line.

    Raises:
        InputError: there is no such group, folder or option.
    """
    parser = Parser(prog="adalora-run list", description="Describes every choice in one line.", allow_abbrev=False)
    add_config_dir(parser)
    parser.add_argument("groups", metavar="GROUP", nargs="*", help=f"only these of: {', '.join(LISTS)}")
    args = parser.parse_args(words)
    use_config_dir(args.config_dir)
    for group in args.groups:
        if group not in LISTS:
            raise one_of("list", group, LISTS)
    for group in args.groups or LISTS:
        entries = catalog.entries(group).values()
        width = max(len(entry.id) for entry in entries)
        if not args.groups:
            print(f"\n{group}")
        for entry in entries:
            print(f"{entry.id:<{width}}  {entry.description}")


# -- Hydra ---------------------------------------------------------------------------------------------------------


def register(words: Sequence[str] = ("sweep",)) -> None:
    """The typed schema, the texts of ``--help``, and the files of ``sweeps/`` where a word asks for one."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=Config)
    OmegaConf.register_new_resolver("expanduser", os.path.expanduser, replace=True)
    wanted = not {"--help", "-h"}.isdisjoint(sys.argv)  # Hydra resolves the texts whenever it merges configurations
    for name, text in (("choices_help", _choices_help), ("settings_help", settings_table.help_text)):
        OmegaConf.register_new_resolver(name, text if wanted else lambda: "", replace=True)
    if any("sweep" in word for word in words):
        for path in sorted(resource("sweeps").glob("*.yaml")):
            store.store(group="sweep", name=path.stem, node=OmegaConf.load(path), package="_global_")


def _choices_help() -> str:
    return "\n".join(f"{group}: {', '.join(catalog.entries(group))}" for group in LISTS)


if __name__ == "__main__":
    sys.exit(main())
