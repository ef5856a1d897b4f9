"""The outcome of the checks: a table for people and a JSON file for programs."""

import json
import math
from dataclasses import asdict, dataclass


@dataclass
class Row:
    """One comparison. It passes where `difference` is at most `limit`."""

    check: str
    ours: str
    reference: str
    difference: float
    limit: float
    note: str = ""

    @property
    def passed(self):
        # A NaN compares as a failure.
        return self.difference <= self.limit


class Report:
    """Collects rows, and prints each one as soon as it is known."""

    COLUMNS = "{:<58} {:>16} {:>16} {:>11} {:>9}  {}"

    def __init__(self):
        self.rows = []
        self._say(self.COLUMNS.format("check", "ours", "reference", "difference", "limit", "result"))

    def number(self, check, ours, reference, limit, note=""):
        """Two numbers that may differ by `limit`."""
        difference = abs(ours - reference) if math.isfinite(ours) else math.nan
        self._add(Row(check, f"{ours:.6f}", f"{reference:.6f}", difference, limit, note))

    def numbers(self, check, ours, reference, limit, note=""):
        """Two sequences; the largest difference counts, and a different length fails."""
        if len(ours) != len(reference):
            self.equal(f"{check}: count", len(ours), len(reference))
            return
        differences = [abs(a - b) if math.isfinite(a) else math.inf for a, b in zip(ours, reference)]
        worst = max(range(len(differences)), key=differences.__getitem__)
        where = f"largest at {worst + 1} of {len(differences)}"
        shown = f"{ours[worst]:.6f}", f"{reference[worst]:.6f}"
        self._add(Row(check, *shown, differences[worst], limit, f"{where}; {note}" if note else where))

    def equal(self, check, ours, reference):
        """Two values that must be the same; of dicts, the entries that differ are told."""
        shown = _short(ours), _short(reference)
        if ours == reference:
            self._add(Row(check, *shown, 0.0, 0.0))
            return
        if isinstance(ours, dict) and isinstance(reference, dict):
            ours, reference = _only_in(ours, reference), _only_in(reference, ours)
        self._add(Row(check, *shown, math.inf, 0.0, f"ours {ours!r}, reference {reference!r}"))

    def at_least(self, check, value, bound, note=""):
        """A number of the reference without which other checks would show nothing."""
        self._add(Row(check, "", f"{value:.6f}", max(0.0, bound - value), 0.0, note or f"at least {bound}"))

    def failed(self, check, error):
        """A check that could not be finished."""
        self._add(Row(check, "error", "", math.inf, 0.0, str(error)))

    @property
    def failures(self):
        return [row for row in self.rows if not row.passed]

    def write(self, path, **facts):
        """Writes every row, and `facts` about the run, as JSON."""
        rows = [{**asdict(row), "passed": row.passed} for row in self.rows]
        for row in rows:
            # JSON has neither infinity nor NaN.
            row["difference"] = row["difference"] if math.isfinite(row["difference"]) else None
        with open(path, "w") as file:
            json.dump({**facts, "passed": not self.failures, "checks": rows}, file, indent=1)

    def _add(self, row):
        self.rows.append(row)
        result = ("pass" if row.passed else "FAIL") + (f"  ({row.note})" if row.note else "")
        limit = f"{row.limit:.0e}" if row.limit else "0"
        self._say(self.COLUMNS.format(row.check, row.ours, row.reference, f"{row.difference:.2e}", limit, result))

    @staticmethod
    def _say(line):
        print(line, flush=True)


def _only_in(some, others):
    return {key: value for key, value in some.items() if key not in others or others[key] != value}


def _short(value):
    text = f"{len(value)} items" if isinstance(value, (list, tuple, set, dict)) else str(value).replace("\n", "\\n")
    return text if len(text) <= 16 else text[:13] + "..."
