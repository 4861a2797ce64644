"""Which of the paper's printed accuracies can be means of counts: ``adalora-report check-paper``, docs/paper-check.md.

The accuracy of one run on N rows is k / N, the mean of n runs k / (n N), k an integer. A printed mean is possible where
some k rounds to it (the GRIM test, Brown and Heathers 2017). All CSV files of ``tables/paper`` are read, whether a
report is made of them or not. Integers and fractions only: no rounding error decides.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files

from adalora_repro.reports.base import Report, Spec, number, paper_rows
from adalora_repro.reports.render import escape_markdown, pad

#: columns that are shares of right answers: name and rows of the validation set (conf/task: rows)
COUNTED = {
    "mnli_m": ("MNLI-m accuracy", 9815),
    "mnli_mm": ("MNLI-mm accuracy", 9832),
    "sst2_acc": ("SST-2 accuracy", 872),
    "qqp_acc": ("QQP accuracy", 40430),
    "qnli_acc": ("QNLI accuracy", 5463),
    "rte_acc": ("RTE accuracy", 277),
    "mrpc_acc": ("MRPC accuracy", 408),
    "squad_em": ("SQuAD 1.1 EM", 10570),
    "squad_v2_em": ("SQuAD 2.0 EM", 11873),
}
UNCOUNTED = (
    "Matthews correlation (CoLA)",
    "F1 (QQP, SQuAD)",
    "correlations (STS-B)",
    "ROUGE (Table 3)",
    "the average of MNLI-m and -mm in Table 5, where any figure is possible",
)
RUNS = (5, 3, 1)
Rule = Callable[[Fraction], int]  # from a mean, in units of the last printed place, to the integer printed
ROUNDED: tuple[Rule, ...] = (lambda x: math.floor(x + Fraction(1, 2)), round)  # halves up, halves to even
LOW, HIGH = 50, 100  # percent: where shares of possible figures are counted
TELLING = 0.9

INTRODUCTION = """\
# Are the paper's figures possible?

Written by `adalora-report check-paper --overwrite --out docs/paper-check.md` from the CSV files in
`adalora_repro/reports/tables/paper`.

The accuracy of one run on N examples is k/N. A mean of n runs is k/(nN), with an integer k, and a printed figure is
possible as such a mean where some k rounds to it. The paper says of Table 1: "We report mean of 5 runs using different
random seeds". Of the other tables it gives no number of runs; pruned LoRA in Table 4 has "the same importance score,
budget scheduler and training setups as Section 4.1", Table 14 "the same training configuration as Section 4.1". It does
not speak of medians. The median of five runs (of any odd number), the best run and a single run are all k/N: what is
said here of one run holds for them.

What the test can find depends on N. The share of possible figures is taken over all that could be printed from 50 to
100 percent: where it is 100%, the test finds nothing. An impossible figure can come from another number of runs, other
examples (N here is the whole validation set), a mean of figures that were rounded before, or a slip; the test does not
say which.
"""


@dataclass(frozen=True)
class Printed:
    """One figure of the paper, ``text`` as printed."""

    table: int
    row: str
    column: str
    text: str

    @property
    def total(self) -> int:
        return COUNTED[self.column][1]

    @property
    def name(self) -> str:
        return COUNTED[self.column][0]

    @property
    def cut_off(self) -> bool:
        """Possible as a mean of five whose further places were dropped."""
        return self.by(5, math.floor)

    @property
    def decimals(self) -> int:
        return decimals_of(self.text)

    def possible(self, runs: int) -> bool:
        """A mean of ``runs`` runs by either rule of rounding halves."""
        return any(self.by(runs, rule) for rule in ROUNDED)

    def by(self, runs: int, rule: Rule) -> bool:
        return reachable(self.text, runs * self.total, rule)


def decimals_of(text: str) -> int:
    return len(text.partition(".")[2])


def reachable(text: str, count: int, rule: Rule) -> bool:
    """Some integer k of ``count`` is printed as ``text``, in percent, when ``rule`` rounds."""
    units = 10 ** decimals_of(text)
    target = int(Decimal(text) * units)
    low, high = (Fraction(target + step, 100 * units) * count for step in (-1, 1))
    return any(rule(Fraction(100 * units * k, count)) == target for k in range(math.floor(low), math.ceil(high) + 1))


@functools.cache
def possible_share(count: int, decimals: int) -> Fraction:
    """The share of figures from ``LOW`` up to ``HIGH`` percent that some k / ``count`` is printed as."""
    units = 10**decimals
    if count >= 100 * units:  # no step is larger than one of the last place
        return Fraction(1)
    start = LOW * count // 100
    found = {rule(Fraction(100 * units * k, count)) for rule in ROUNDED for k in range(start, count + 1)}
    return Fraction(len({x for x in found if LOW * units <= x < HIGH * units}), (HIGH - LOW) * units)


def nearest(text: str, count: int) -> Fraction:
    """The k / ``count`` in percent that is nearest to ``text``."""
    return Fraction(100 * round(Fraction(text) * count / 100), count)


def printed_figures() -> Iterator[Printed]:
    """Every counted figure of the paper's tables, by table."""
    names = [path.name for path in (files("adalora_repro.reports.tables") / "paper").iterdir()]
    tables = [(int(found[1]), name) for name in names if (found := re.fullmatch(r"table(\d+)_.*\.csv", name))]
    for table, name in sorted(tables):
        for row in paper_rows(name):
            for column in COUNTED:
                if row.get(column):
                    yield Printed(table, row_name(row), column, row[column])


def row_name(row: dict[str, str]) -> str:
    method = row.get("method") or row["variant"]
    return method if row["budget"] == method else f"{method} {row['budget']}"


def check_paper(specs: Iterable[Spec]) -> str:
    """The page: what is possible by table and column, the figures that are not, and the tables' own averages."""
    groups: dict[tuple[int, str], list[Printed]] = defaultdict(list)
    for figure in printed_figures():
        groups[figure.table, figure.column].append(figure)
    order = sorted(groups, key=lambda key: (key[0], list(COUNTED).index(key[1])))
    sections = [
        INTRODUCTION,
        *possible_section([groups[key] for key in order]),
        *impossible_section([figure for key in order for figure in groups[key]]),
        *single_section([groups[key] for key in order]),
        *average_section(specs),
        "## Not checked\n",
        paragraph(f"No shares of counted answers: {'; '.join(UNCOUNTED)}."),
    ]
    return "\n".join(sections)


def possible_section(groups: Sequence[Sequence[Printed]]) -> list[str]:
    """By table and column: how many figures are possible, of all and of the printed ones."""
    heading = ["table", "column", "N", "step, 5 runs", "step, 1 run"]
    heading += [f"share possible, {runs}" for runs in RUNS]
    heading += ["cells", *(f"possible, {runs}" for runs in RUNS), "cut off, 5"]
    rows = []
    for group in groups:
        first = group[0]
        row = [str(first.table), first.name, f"{first.total:,}"]
        row += [f"{100 / (runs * first.total):.4f}" for runs in (5, 1)]
        row += [f"{float(possible_share(runs * first.total, first.decimals)):.1%}" for runs in RUNS]
        found = [sum(figure.possible(runs) for figure in group) for runs in RUNS]
        rows.append([*row, *map(str, [len(group), *found, sum(figure.cut_off for figure in group)])])
    split = sum(len({figure.by(5, rule) for rule in ROUNDED}) > 1 for group in groups for figure in group)
    return [
        "## Cells that can be means of 5, 3 or 1 runs\n",
        paragraph(
            "step: 100/(nN), in points. share possible: of all figures that could be printed. possible: printed "
            "figures that are. cut off: printed figures that are possible as means of five whose further places were "
            f"dropped. Figures for which it matters how a half is rounded: {split or 'none'}."
        ),
        table_text(heading, rows),
    ]


def impossible_section(figures: Sequence[Printed]) -> list[str]:
    """Figures that no mean of five gives, and what the nearest one is."""
    heading = ["column", "row", "printed", "nearest", "beyond rounding", "3 runs", "1 run", "cut off"]
    rows = []
    for figure in figures:
        if not figure.possible(5):
            near = nearest(figure.text, 5 * figure.total)
            gap = abs(near - Fraction(figure.text)) - Fraction(1, 2 * 10**figure.decimals)
            row = [f"Table {figure.table}, {figure.name}", escape_markdown(figure.row), figure.text]
            row += [f"{float(near):.4f}", f"{float(gap):.4f}"]
            rows.append([*row, *map(yes, (figure.possible(3), figure.possible(1), figure.cut_off))])
    return [
        "## Cells that no mean of five runs is printed as\n",
        paragraph(
            "nearest: the mean of five closest to what is printed. beyond rounding: points between the two that "
            "rounding does not explain; a mean of figures rounded to two decimals before can be 0.005 further off."
        ),
        table_text(heading, rows),
    ]


def single_section(groups: Sequence[Sequence[Printed]]) -> list[str]:
    """Cells that are k / N: more than means of five give by chance speak for one run, a best run or a median."""
    heading = ["table", "column", "possible with 5", "of these with 1", "expected", "chance"]
    rows = []
    for group in groups:
        first = group[0]
        five = [figure for figure in group if figure.possible(5)]
        shares = [possible_share(runs * first.total, first.decimals) for runs in (1, 5)]
        share = float(shares[0] / shares[1])
        if five and share <= TELLING:
            single = sum(figure.possible(1) for figure in five)
            row = [str(first.table), first.name, str(len(five)), str(single)]
            rows.append([*row, f"{share * len(five):.1f}", f"{at_least(single, len(five), share):.1g}"])
    return [
        "## Cells that one run can give\n",
        paragraph(
            "Of the figures that are possible as means of five some are k/N too: about every fifth where steps are "
            "coarse, if the sum of five counts is a multiple of five one time in five. expected: so many of these "
            "cells. chance: of as many as there are or more, cells taken as independent (binomial). A small one says "
            "that means of five runs would hardly look like this; it does not tell single runs from best ones and "
            f"medians. Tables 1, 4, 5 and 14 share figures. Columns where more than {TELLING:.0%} of the figures "
            "possible with five are k/N anyway are left out."
        ),
        table_text(heading, rows),
    ]


def at_least(found: int, cells: int, share: float) -> float:
    """P(X >= found), X binomial (cells, share)."""
    return sum(math.comb(cells, k) * share**k * (1 - share) ** (cells - k) for k in range(found, cells + 1))


def average_section(specs: Iterable[Spec]) -> list[str]:
    """The tables' own averages, made again from their cells."""
    lines = []
    for spec in specs:
        if spec.average is None:
            continue
        wrong, rows = [], paper_rows(spec.paper_file)
        for row in rows:
            cells = {name: number(row[name]) for column in spec.columns for name in column.paper}
            printed, made = row[spec.average_column], spec.average({k: v for k, v in cells.items() if v is not None})
            if f"{made:.{spec.decimals}f}" != printed:
                within = abs(made - float(printed)) <= 10**-spec.decimals + 1e-9
                wrong.append([escape_markdown(row_name(row)), printed, f"{made:.4f}", yes(within)])
        lines.append(f"## Averages of {spec.paper_file.partition('_')[0].replace('table', 'Table ')}\n")
        lines.append(
            paragraph(
                f"Made again from the printed cells: {len(rows) - len(wrong)} of {len(rows)} round to what is printed. "
                "Rounding of the cells and of the average explains a difference of up to one in the last place."
            )
        )
        lines.append(table_text(["row", "printed", "from the cells", "explained by rounding"], wrong))
    return lines


def paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def yes(value: bool) -> str:
    return "yes" if value else "no"


def table_text(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A padded pipe table, or "None." where there is no row."""
    if not rows:
        return "None.\n"
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
    return "".join(f"{pad(row, widths)}\n" for row in [heading, ["-" * width for width in widths], *rows])


REPORT = Report(
    "check-paper",
    "the paper's figures as means of counts",
    add_arguments=lambda parser: None,
    make=lambda request: (check_paper(request.specs.values()), []),
    reads="nothing",
)
