"""Trains an adapter, and measures what it can do."""

import json
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from experiments import DATA, REGIMES, options, read, words, write

# The share of a run, counted from its end, that a learning rate is judged by.
JUDGED = 0.25


@dataclass(frozen=True)
class Setting:
    """A training with everything that decides its result."""

    experiment: object
    regime: str
    rate: float
    seed: int
    steps: int | None = None

    @property
    def name(self):
        return f"{self.experiment.id} {self.regime} rate {self.rate:g} seed {self.seed}"

    def options(self):
        """The options of the command."""
        found = options(self.experiment.params(), self.regime)
        if self.steps:
            found["steps"] = self.steps
        return {**found, "learning_rate": self.rate, "seed": self.seed}

    def train_config(self):
        """What a result says of the training."""
        params = self.experiment.params()
        measured = {key: params[key] for key in ("eval", "sampled", "forgetting")}
        return {"regime": self.regime, "base": params["base"], **self.options(), **measured}


@dataclass(frozen=True)
class Trained:
    """A finished training: its adapter, its metrics and what it cost."""

    adapter: Path
    record: dict

    @property
    def metrics(self):
        """The lines of the training's steps."""
        lines = (self.adapter / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["kind"] in ("train", "grpo")]

    def score(self, regime):
        """How well the end of the run went, by what it trained on alone, and under which name."""
        name, key = ("train accuracy", "strict") if regime == "grpo" else ("train loss", "loss")
        lines = self.metrics
        last = lines[-max(1, round(JUDGED * len(lines))):]
        return name, statistics.fmean(line[key] for line in last)


def train(program, setting, work):
    """Trains, unless the very same was trained before."""
    experiment = setting.experiment
    folder = work / experiment.id / f"{setting.regime}-rate{setting.rate:g}-seed{setting.seed}"
    file, adapter = folder / "training.json", folder / "adapter"
    asked = {"config": experiment.config(), **setting.train_config(), "binary": program.digest}
    if file.exists() and (record := read(file))["asked"] == asked:
        return Trained(adapter, record)
    shutil.rmtree(folder, ignore_errors=True)
    base = base_words(experiment.params())
    call = program([REGIMES[setting.regime], *base, "--config", experiment.config_file, *words(setting.options()), "--out", adapter],
                   folder / "training.log")
    record = {
        "asked": asked, "report": call.report, "seconds": call.seconds, "memory": memory_facts(call),
    }
    write(file, record)
    return Trained(adapter, record)


def memory_facts(call):
    """Mean, 99th percentile and maximum of the resident set; only the last where the system does not tell more."""
    samples = sorted(call.memory)
    percentile = samples[round(0.99 * (len(samples) - 1))] if samples else None
    return {"avg": round(statistics.fmean(samples)) if samples else None, "99th": percentile, "max": call.memory_max}


def total_parameters(program, experiment, work):
    """The numbers of the model with its adapter."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["init", *base_words(experiment.params()), "--config", experiment.config_file, "--out", Path(scratch) / "adapter"]
        return program(words, work / "init.log").report["total_parameters"]


def measure(program, params, adapter, work):
    """Accuracy on problems that were not trained on, and the loss on texts that are not the task."""
    model = base_words(params) + (["--adapter", adapter] if adapter else [])
    load = params.get("load", {})
    ask = {**load, **params["eval"]}
    greedy = program(["eval", *model, *words(ask)], work / "greedy.log")
    sampled = program(["eval", *model, *words({**ask, **params["sampled"]})], work / "sampled.log")
    texts = program(["eval", *model, *words({**load, "data": params["forgetting"]})], work / "forgetting.log")
    calls = (greedy, sampled, texts)
    return {
        "greedy": greedy.report, "sampled": sampled.report,
        "losses": losses(texts.report, DATA / params["forgetting"]), "seconds": sum(call.seconds for call in calls),
    }


def losses(report, file):
    """The mean losses per token over all texts, and over those of each kind where the file says of which they are."""
    kinds = [json.loads(line).get("kind") for line in file.read_text().splitlines()]
    found = {"all": report["loss"]}
    for kind in sorted(set(kinds) - {None}):
        rows = [row for row in report["rows"] if kinds[row["line"] - 1] == kind]
        found[kind] = sum(row["loss"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)
    return found


def base_words(params):
    """The options that name the base model; none for the embedded one."""
    return ["--base", params["base"]] if params["base"] else []
