"""The ablation grid: TinyLoRA's options against each other, in short runs.

The numbers that are trained, and how far a step moves the model, differ by orders of magnitude over the grid, so no single learning
rate serves all of it. The rate of a cell is `factor / (u * sqrt(modules * groups))`: Adam's first step moves each of `groups * u`
numbers by the rate, whatever its gradient, and gradients of a shared number grow like the root of the modules that share it. The
factor is chosen from a few for each cell, at its first projection seed, by the accuracy on problems of the training.
"""

import statistics
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import sqrt
from pathlib import Path

from experiments import EXPERIMENTS, Experiment, defaults, read, write
from program import ProgramFailed
from results import accuracies
from training import Setting, measure, train

CELL = ("u", "r", "weight_tying")


def grid(model):
    """The grid of a model; none if it has none."""
    file = EXPERIMENTS / model / "ablation.json"
    return {"model": model, **read(file)} if file.exists() else None


@dataclass(frozen=True)
class Point:
    """A point of the grid, in the place of an experiment."""

    model: str
    values: tuple
    origin: Experiment
    configs: Path

    @property
    def id(self):
        return f"{self.model}/ablation/" + "-".join(f"{key}{value:g}" for key, value in self.values)

    @property
    def config_file(self):
        return self.configs / f"{self.id.rsplit('/', 1)[1]}.json"

    def config(self):
        return {**self.origin.config(), **dict(self.values)}

    def params(self):
        return defaults(self.model)


class Ablation:
    """The runs of a grid, and where their outcome goes."""

    def __init__(self, grid, program, work, file, steps):
        self.grid, self.program, self.work, self.file = grid, program, work, file
        self.steps = steps or grid["steps"]
        self.origin = Experiment(grid["model"], *grid["config"].split("/"))
        self.settings = {**grid, "steps": self.steps, "adapter": self.origin.config()}

    def run(self, side_by_side):
        """Goes through the grid unless its outcome is there; how many of its cells failed."""
        if self.file.exists() and read(self.file)["settings"] == self.settings:
            return 0
        values = self.grid["values"]
        cells = list(product(*(values[key] for key in CELL)))
        first, *others = values["projection_seed"]
        tries = [self.setting(cell, first, self.rate(cell, factor)) for cell in cells for factor in self.grid["rate_factors"]]
        scores = dict(zip(tries, side_by_side("learning rates of the grid", self.score, tries)))
        chosen, failures = [], 0
        for cell in cells:
            scored = [(scores[s], s.rate) for s in tries if cell_of(s) == cell and scores[s] is not None]
            if not scored:
                failures += 1
                continue
            rate = max(scored)[1]
            chosen += [self.setting(cell, seed, rate) for seed in (first, *others)]
        rows = [row for row in side_by_side("grid", self.row, chosen) if row]
        failures += len(chosen) - len(rows)
        if not failures:
            write(self.file, {"settings": self.settings, "rows": rows})
        return failures

    def point(self, cell, seed):
        point = Point(self.grid["model"], (*zip(CELL, cell), ("projection_seed", seed)), self.origin, self.work / "ablation-configs")
        if not point.config_file.exists() or read(point.config_file) != point.config():
            write(point.config_file, point.config())
        return point

    def setting(self, cell, seed, rate):
        return Setting(self.point(cell, seed), self.grid["regime"], rate, self.grid["seed"], self.steps)

    def rate(self, cell, factor):
        """The learning rate of a cell with a factor."""
        u, _, tying = cell
        return float(f"{factor / (u * sqrt(self.modules * groups(self.modules, tying))):.3g}")

    @cached_property
    def modules(self):
        """Modules that the grid's adapters have."""
        words = ["init", "--config", self.origin.config_file, "--out", self.work / "ablation-configs" / "init"]
        return len(self.program(words, self.work / "ablation-configs" / "init.log").report["modules"])

    def score(self, setting):
        try:
            return train(self.program, setting, self.work).score(setting.regime)[1]
        except ProgramFailed as error:
            print(f"{setting.name}: {error}")
            return None

    def row(self, setting):
        """What a point came to."""
        try:
            trained = train(self.program, setting, self.work)
            measured = measure(self.program, setting.experiment.params(), trained.adapter, trained.adapter.parent)
        except ProgramFailed as error:
            print(f"{setting.name}: {error}")
            return None
        shares = accuracies(measured)
        return {**dict(setting.experiment.values), "learning_rate": setting.rate,
                "trained": trained.record["report"]["trainable_parameters"],
                **{key: shares[key] for key in ("test accuracy", "test accuracy sampled")}}


def cell_of(setting):
    return tuple(value for key, value in setting.experiment.values if key in CELL)


def groups(modules, tying):
    """Vectors that so many modules share."""
    return max(1, round(modules * (1.0 - tying)))


def table(outcome):
    """The outcome as lines of a table: one for each rank and degree of sharing, a column for each u."""
    values, rows = outcome["settings"]["values"], outcome["rows"]
    lines = ["| r | weight_tying | " + " | ".join(f"u = {u}" for u in values["u"]) + " |", "|" + "---|" * (2 + len(values["u"]))]
    for r, tying in product(values["r"], values["weight_tying"]):
        cells = []
        for u in values["u"]:
            found = [row for row in rows if (row["u"], row["r"], row["weight_tying"]) == (u, r, tying)]
            shares = [100 * row["test accuracy sampled"] for row in found]
            cells.append(f"{statistics.fmean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f}), {found[0]['trained']:,}")
        lines.append(f"| {r} | {tying:g} | " + " | ".join(cells) + " |")
    return lines
