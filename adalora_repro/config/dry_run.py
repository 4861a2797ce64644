"""The dry run as text: one run in full, or one line for each run of a sweep and the total."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from adalora_repro.config.estimate import Measured, estimates
from adalora_repro.config.origins import origins
from adalora_repro.config.plan import Plan
from adalora_repro.config.resolve import count, finished
from adalora_repro.config.words import key_of, override_value
from adalora_repro.errors import InputError

#: entries of the method's plan (``BaseMethod.plan``), and their meaning
METHOD_ROWS = {
    "n": "adapted matrices",
    "r": "rank of every matrix",
    "d": "width of every adapter",
    "wider": "of them have one more",
    "b_0": "initial budget, triplets",
    "b_T": "final budget, triplets",
    "alpha_over_r": "scaling alpha/r, r the rank at the start",
    "gamma": "weight of the orthogonality penalty R",
    "mask_events": "masks until the set is fixed at T - t_f",
}
KEPT = {
    "adapter": "save: what was trained, in the run's folder model/",
    "merged": "save: the whole model, in the run's folder model/",
    "none": "save: no model",
}
Rows = list[tuple[str, str, str]]


def describe(plan: Plan) -> str:
    """A counted plan as text."""
    key = plan.key
    head = (
        f"plan: task={key['task']} method={key['method']} budget={key['budget']} backbone={key['backbone']} "
        f"protocol={key['protocol']} data={key['data']} seed={key['seed']}"
    )
    settings = [(name, _short(OmegaConf.select(plan.cfg, name)), origin) for name, origin in origins(plan).items()]
    sections = {
        "trainable parameters": _parameter_rows(plan),
        "steps": _step_rows(plan),
        "hours, estimated from measured steps": _hour_rows(plan),
        "settings and where they come from": settings,
    }
    lines = [head, ""]
    for title, rows in sections.items():
        lines += [title, *_table(rows), ""] if rows else []
    return "\n".join([*lines, f"folder: {plan.folder}", *(f"note: {note}" for note in plan.notes)])


def describe_beside(plan: Plan, cost: DictConfig) -> str:
    """What ``measure=cost`` adds to the dry run of the method measured: the one beside it."""
    return (
        f"beside: {plan.key['method']} {plan.key['budget']}, {plan.params['at_init']:,} parameters; "
        f"{cost.warmup_steps} + {cost.steps} steps of each on the same batches"
    )


def _parameter_rows(plan: Plan) -> Rows:
    params, method = plan.params, plan.method
    share = f"{params['method'] / params['backbone']:.3%} of the backbone's {params['backbone']:,}"
    rows = [("method", f"{params['method']:,}", share)]
    if params["at_init"] != params["method"]:
        rows = [
            ("method, initial budget", f"{params['at_init']:,}", "what the optimizer trains until pruned"),
            ("method, final budget", f"{params['method']:,}", f"{share}; mean, the exact count follows from the ranks"),
        ]
    if "params" in method:
        rows.append(("matched to", f"{method['params']:,}", _matched_text(plan)))
    gib = plan.memory / 2**30
    kept = {"none": 0, "adapter": params["total"], "merged": params["backbone"] + params["head"]}[plan.keeps]
    return [
        *rows,
        ("head", f"{params['head']:,}", "the task head; trained by every method, not part of the budget"),
        ("total", f"{params['total']:,}", ""),
        ("memory", f"{gib:.2f} GiB", "weights, gradients and AdamW's averages, without activations"),
        ("kept on disk", f"{kept * 4 / 1e6:,.1f} MB", KEPT[plan.keeps]),  # fp32
    ]


def _matched_text(plan: Plan) -> str:
    """How near the count is to the number it was matched to."""
    method, slack = plan.method, plan.method["params"] - plan.params["method"]
    if slack < 0:
        return f"{-slack:,} more: the rank from which AdaLoRA starts"
    text = f"never above; slack {slack:,} ({slack / method['params']:.2%})"
    if "params_min" not in method:
        return text
    low, high = method["params_min"], method["params_max"]
    return f"{text} in the mean; {low:,} to {high:,} stay at the end"


def _step_rows(plan: Plan) -> Rows:
    method, total = plan.method, plan.total_steps
    epochs = total / plan.steps_per_epoch
    rows = [("T", f"{total:,}", f"{epochs:g} epochs of {plan.steps_per_epoch:,} optimizer steps")]
    if plan.cfg.data.holdout is not None:
        text = f"rows of the train split, evaluated and never trained on; {plan.train_rows:,} remain for training"
        rows.append(("held out", f"{plan.cfg.data.holdout:,}", text))
    if "t_f" in method:
        t_i, final = method["t_i"], total - method["t_f"]
        rows += [
            ("warm-up", f"0 … {t_i - 1:,}" if t_i else "none", f"t_i = {t_i:,}, all b_0 triplets"),
            ("pruning", f"{t_i:,} … {final - 1:,}", f"a mask every delta_t = {method['delta_t']} steps"),
            ("final phase", f"{final:,} … {total - 1:,}", f"t_f = {method['t_f']:,}, b_T triplets"),
        ]
    rows += [(name, f"{method[name]:,g}", text) for name, text in METHOD_ROWS.items() if name in method]
    if plan.cfg.measure == "score":
        per_epoch = plan.steps_per_epoch / plan.eval_steps
        every = f"every {plan.eval_steps:,} steps, {per_epoch:.2g} an epoch, and at the end"
        rows.append(("evaluations", f"{math.ceil(total / plan.eval_steps):,}", every))
    return rows


def _hour_rows(plan: Plan) -> Rows:
    """Of each device on which such steps were measured; a measurement of cost is itself one."""
    if plan.cfg.measure == "cost":
        return []
    words = [word for word in plan.overrides if key_of(word) != "dry_run"]
    how = f"to measure steps here: {shlex.join(['adalora-run', *words, 'measure=cost'])}"
    rows = [(one.device, f"about {_hours(one.hours(plan.total_steps))}", str(one)) for one in estimates(plan)]
    return rows or [("no estimate", "", how)]


def _short(value: Any) -> str:
    """Ranks of a hundred matrices are not for a line."""
    return f"of {len(value)} matrices" if isinstance(value, DictConfig) else override_value(value)


def _table(rows: Rows) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {text}".rstrip() for name, value, text in rows]


# -- a sweep -------------------------------------------------------------------------------------------------------


@dataclass
class SweepPlan:
    """The dry run of a sweep: ``line`` for each run, then ``total``.

    The model of a variant is built and its measurements are read once, whatever its learning rates and seeds.
    """

    runs: int = 0
    done: int = 0
    unusable: int = 0  # a record in the run's folder cannot be read
    later: int = 0  # runs of stages whose learning rates are not chosen yet
    hours: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # device -> of the runs to do
    measured: dict[Measured, None] = field(default_factory=dict)  # where ``hours`` come from, in order
    _counted: dict[str, tuple[Plan, list[Measured]]] = field(default_factory=dict)  # of a variant

    def line(self, plan: Plan) -> str:
        """One run: T, trainable parameters, whether it is finished, and the hours it may take.

        Raises:
            InputError: the plan does not fit the method or the backbone.
        """
        variant = str(plan.key["variant"])
        if variant not in self._counted:
            counted = count(plan)
            self._counted[variant] = counted, estimates(counted) if plan.cfg.measure == "score" else []
        params = self._counted[variant][0].params
        self.runs += 1
        size = f"{params['method']:,} trainable parameters and a head of {params['head']:,}"
        return f"T {plan.total_steps:,}, {size}, {self._state(plan)}"

    def total(self) -> str:
        """The sum of all runs, of the hours for each device, and a line for each record that they come from."""
        left = self.runs - self.done - self.unusable
        text = f"total: {self.runs} run{'s' * (self.runs != 1)}, {self.done} done, {left} to do"
        text += f", {self.unusable} cannot run" * bool(self.unusable)
        text += f", and {self.later} of later stages, whose learning rates are not chosen yet" * bool(self.later)
        if not self.hours:
            return f"{text}; no time estimate: no comparable steps were measured (measure=cost measures them)"
        for device, hours in self.hours.items():
            some = "" if len(hours) == left else f" for the {len(hours)} of them with a measurement"
            text += f"; about {_hours(sum(hours))} on {device}{some}"
        sources = (f"on {one.device}: {one}" for one in self.measured)
        return "\n".join([f"{text}; one after the other", *sources])

    def _state(self, plan: Plan) -> str:
        try:
            score = None if plan.cfg.force or plan.cfg.measure == "cost" else finished(plan)
        except InputError as error:
            self.unusable += 1
            return f"cannot run: {error}"
        if score:
            self.done += 1
            return f"done ({score})"
        text = "to do"
        for one in self._counted[str(plan.key["variant"])][1]:
            self.hours[one.device].append(one.hours(plan.total_steps))
            self.measured[one] = None
            text += f", about {_hours(one.hours(plan.total_steps))} on {one.device}"
        return text


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 0.95 else f"{max(1, round(60 * hours))} min"
