# SPDX-License-Identifier: GPL-2.0
"""Figures, their lines, the table at the end, and the bars."""

import json
from dataclasses import dataclass

from bench import rows


def ratio(above, below):
    return above / below if above is not None and below else None


def number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def decimals(value):
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


class Figures:
    """What was measured: {(row, size): {subject: value}}."""

    def __init__(self, values=None):
        self.values = values or {}

    @classmethod
    def read(cls, path):
        with open(path) as file:
            found = json.load(file)
        return cls({(entry["row"], entry["size"]): entry["figures"] for entry in found["rows"]})

    def write(self, path, about):
        entries = [{"row": row, "size": size, "unit": rows.by_name(row).unit, "figures": self.values[row, size]} for row, size in self.keys()]
        with open(path, "w") as file:
            json.dump({"about": about, "rows": entries, "bars": [verdict.entry() for verdict in verdicts(self)]}, file, indent=1)
            file.write("\n")

    def keys(self):
        """In the order of the rows, the sizes of each one together."""
        order = [(row.name, size.name) for row in rows.ROWS for size in rows.SIZES]
        return [key for key in order if key in self.values]

    def add(self, row, size, subject, value):
        self.values.setdefault((row, size), {})[subject] = value

    def of(self, row, size, subject):
        return self.values.get((row, size), {}).get(subject)

    def ratios(self, row, size):
        """rust/c and rust/linear."""
        rust = self.of(row, size, "rust")
        return ratio(rust, self.of(row, size, "c")), ratio(rust, self.of(row, size, "linear"))

    def line(self, row, size):
        """The figures of a row as others read them."""
        found = self.values[row, size]
        fields = [f"{subject}={number(found.get(subject))}" for subject in rows.SUBJECTS]
        to_c, to_linear = self.ratios(row, size)
        return " ".join(["BENCH", row, size, *fields, f"rust/c={decimals(to_c)}", f"rust/linear={decimals(to_linear)}"])

    def table(self):
        """All figures for people to read."""
        out = []
        widths = (26, 7, 9, 9, 9, 9, 7, 11)
        head = ("row", "size", "null_blk", "linear", "c", "rust", "rust/c", "rust/linear")

        def line(cells):
            return "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(zip(cells, widths)))

        out.append(line(head))
        last = None
        for row, size in self.keys():
            found = self.values[row, size]
            shown = [number(found.get(subject)) for subject in rows.SUBJECTS]
            out.append(line([row if row != last else "", size, *shown, *map(decimals, self.ratios(row, size))]))
            last = row
        return out


@dataclass
class Verdict:
    """A bar and what became of it; `value` is None if it was not measured."""

    bar: rows.Bar
    value: float

    @property
    def met(self):
        return self.value is not None and self.bar.met(self.value)

    def entry(self):
        bar = self.bar
        value = None if self.value is None else round(self.value, 4)
        return {"row": bar.row, "size": bar.size, "figure": bar.name, "at least" if bar.least else "at most": bar.limit, "is": value, "met": self.met}

    def line(self):
        outcome = "not measured" if self.value is None else f"{self.value:9.4f}  {'ok' if self.met else 'MISSED'}"
        return f"{self.bar.row:26}  {self.bar.size:7}  {self.bar.name:17} {'>=' if self.bar.least else '<='} {self.bar.limit:<5} {outcome}"


def text(figures):
    """The table and the bars, those that were measured."""
    bars = [verdict.line() for verdict in verdicts(figures) if verdict.value is not None]
    return "\n".join([*figures.table(), "", *bars, ""])


def verdicts(figures):
    found = []
    for bar in rows.BARS:
        value = figures.of(bar.row, bar.size, "rust")
        if bar.to:
            value = ratio(value, figures.of(bar.to_row or bar.row, bar.size, bar.to))
        found.append(Verdict(bar, value))
    return found
