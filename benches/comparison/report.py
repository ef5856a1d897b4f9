#!/usr/bin/env python3
"""Makes results.md and results.svg of the result files of every model."""

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import ablation
import plot
from experiments import HERE, REGIMES, defaults, read

NAMES = {"sft": "SFT", "grpo": "GRPO"}
METHODS = {"TINYLORA": "TinyLoRA", "LORA": "LoRA", "LORA_XS": "LoRA-XS", "VERA": "VeRA", "IA3": "IA3"}
DRAWN = "test accuracy sampled"
FORGETTING = ("forgetting", "forgetting right", "forgetting wrong")
MISSING = "–"


@dataclass
class Row:
    """The results of an experiment: for each regime one for each seed."""

    name: str
    config: dict
    runs: dict = field(default_factory=lambda: {regime: [] for regime in REGIMES})

    @property
    def some(self):
        return next(run for runs in self.runs.values() for run in runs)

    @property
    def trained(self):
        return self.some["train_info"]["num_trainable_params"]

    @property
    def title(self):
        """The method and those of its options that were varied."""
        config, method = self.config, METHODS.get(self.config["peft_type"], self.config["peft_type"])
        parts = [f"{key} {config[key]}" for key in ("r", "u") if config.get(key) is not None]
        if config.get("weight_tying"):
            parts.append("tied" if config["weight_tying"] == 1 else f"tying {config['weight_tying']:g}")
        return " ".join([method, *parts, f"on {self.modules}"])

    @property
    def modules(self):
        targets = self.config.get("target_modules")
        if isinstance(targets, list):
            return ", ".join(name.removesuffix("_proj") for name in targets)
        return {None: "default modules", "all-linear": "all"}.get(targets, targets)

    def last(self, regime, key):
        """A number of the last line of metrics, for each seed."""
        return [run["train_info"]["metrics"][-1][key] for run in self.runs[regime] if key in run["train_info"]["metrics"][-1]]

    def facts(self, regime, key):
        return [run["train_info"][key] for run in self.runs[regime] if run["train_info"][key] is not None]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR", help="the result files [default: results]")
    write_all(parser.parse_args().results)


def write_all(results):
    """Writes the report of every model that has results."""
    for folder in sorted(path.parent for path in results.glob("*/base.json")):
        base, rows = load(folder)
        if rows:
            (folder / "results.md").write_text(text(folder, base, rows))
            (folder / "results.svg").write_text(plot.picture(base, rows))
            print(f"wrote {folder}/results.md and results.svg")


def load(folder):
    """The untouched model's result, and rows with the fewest trained numbers first."""
    rows = {}
    for regime in REGIMES:
        for file in sorted((folder / regime).glob("*.json")):
            run = read(file)
            info = run["run_info"]
            row = rows.setdefault(info["experiment_name"], Row(info["experiment_name"].split("/", 1)[1], info["peft_config"]))
            row.runs[regime].append(run)
    return read(folder / "base.json"), sorted(rows.values(), key=lambda row: (row.trained, row.name))


def text(folder, base, rows):
    """The report of a model."""
    model, seeds = folder.name, len(defaults(folder.name)["seeds"])
    before, system = base["train_info"]["metrics"][-1], base["meta_info"]["system_info"]
    steps = sorted({run["run_info"]["train_config"]["steps"] for row in rows for runs in row.runs.values() for run in runs})
    lines = [
        f"# Results: {model}", "",
        "Made by `report.py` of the files beside this one. What they show and what they do not: [README](../../README.md).", "",
        "![Accuracy and forgetting of every adapter, supervised and by reinforcement learning](results.svg)", "",
        f"{', '.join(map(str, steps))} steps, {seeds} seeds; means, and in parentheses the lowest and the highest seed. The untouched "
        f"model: {100 * before['test accuracy']:.1f} % of the likeliest answers are right, "
        f"{100 * before['test accuracy sampled']:.1f} % of those drawn at temperature 1.", "",
        "## Accuracy in percent", "",
        "The lift is the mean under GRPO less the mean under SFT, of drawn answers.", "", *accuracy_table(rows, seeds), "",
        "## Forgetting", "",
        "Mean loss per token on texts that are not the task, in nats, after less before.", "", *forgetting_table(rows, seeds), "",
        "## Cost", "",
        f"{system['processor'] or system['machine']}, threads of each run: {system['threads']}. Seconds are those of the training's "
        "steps; memory is the most that its process had resident. Tokens are those with a loss under SFT and those generated under "
        "GRPO, so their rates do not compare.", "", *cost_table(rows),
    ]
    if (folder / "ablation.json").exists():
        outcome = read(folder / "ablation.json")
        settings = outcome["settings"]
        lines += ["", "## TinyLoRA's options", "",
                  f"{settings['steps']} steps of {NAMES[settings['regime']]} on all linear layers: percent of drawn answers that are "
                  f"right, the mean over {len(settings['values']['projection_seed'])} projection seeds with the lowest and the highest, "
                  "and how many numbers are trained.", "", *ablation.table(outcome)]
    return "\n".join(lines) + "\n"


def accuracy_table(rows, seeds):
    yield from head("adapter", "numbers trained", "likeliest: SFT", "GRPO", "drawn: SFT", "GRPO", "lift")
    for row in rows:
        cells = [span(row.last(regime, key), seeds, 100, 1) for key in ("test accuracy", DRAWN) for regime in REGIMES]
        drawn = [row.last(regime, DRAWN) for regime in REGIMES]
        lift = f"{100 * (statistics.fmean(drawn[1]) - statistics.fmean(drawn[0])):+.1f}" if all(drawn) else MISSING
        yield line(row.title, f"{row.trained:,}", *cells, lift)


def forgetting_table(rows, seeds):
    kinds = [key for key in FORGETTING if any(row.last(regime, key) for row in rows for regime in REGIMES)]
    titles = [key.removeprefix("forgetting").strip() or "all" for key in kinds]
    yield from head("adapter", *(f"{title} texts: {NAMES[regime]}" for title in titles for regime in REGIMES))
    for row in rows:
        yield line(row.title, *(span(row.last(regime, key), seeds, 1, 3) for key in kinds for regime in REGIMES))


def cost_table(rows):
    yield from head("adapter", "file, bytes", "seconds: SFT", "GRPO", "tokens/s: SFT", "GRPO", "memory, MB: SFT", "GRPO",
                    "learning rate: SFT", "GRPO")
    for row in rows:
        seconds = [mean(row.facts(regime, "train_time"), 1) for regime in REGIMES]
        tokens = [mean(token_rates(row.runs[regime]), 0) for regime in REGIMES]
        memory = [mean([value / 1e6 for value in row.facts(regime, "accelerator_memory_max")], 0) for regime in REGIMES]
        rates = [{f"{run['run_info']['train_config']['learning_rate']:g}" for run in row.runs[regime]} for regime in REGIMES]
        rates = [", ".join(sorted(found)) or MISSING for found in rates]
        yield line(row.title, f"{row.some['train_info']['file_size']:,}", *seconds, *tokens, *memory, *rates)


def head(*titles):
    return [line(*titles), "|---" * len(titles) + "|"]


def line(*cells):
    return f"| {' | '.join(cells)} |"


def token_rates(runs):
    """Tokens per second of each run."""
    return [run["train_info"]["metrics"][-1]["train total tokens"] / run["train_info"]["train_time"] for run in runs]


def span(values, seeds, scale, digits):
    """The mean with the lowest and the highest; how many there are where some are missing."""
    if not values:
        return MISSING
    values = [scale * value for value in values]
    missing = "" if len(values) == seeds else f", {len(values)} of {seeds} seeds"
    return f"{statistics.fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f}{missing})"


def mean(values, digits):
    return f"{statistics.fmean(values):,.{digits}f}" if values else MISSING


if __name__ == "__main__":
    main()
