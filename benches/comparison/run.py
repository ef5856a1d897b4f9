#!/usr/bin/env python3
"""Trains adapters of different methods on one task, supervised and by reinforcement learning, and measures what became of them.

`run.py --all` chooses learning rates where none was chosen, trains every experiment of the embedded model with every seed, goes
through the ablation grid and writes results.md, results.svg and ablation.md. What has a result already is left out. Needs Python
and a built `candle-peft`, nothing else.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import ablation
import report
import results
from experiments import HERE, REGIMES, defaults, experiments, write
from program import Program, ProgramFailed, find
from training import Setting, measure, total_parameters, train

RESULTS = HERE / "results"
TEMPORARY = HERE / "temporary_results"
CANCELLED = HERE / "cancelled_results"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="METHOD/NAME", help="experiments, such as lora/r8 or 'tinylora/*'")
    parser.add_argument("--all", action="store_true", help="all experiments of the model, and the ablation grid where it has one")
    parser.add_argument("--model", default="tiny-llama", help="whose experiments [default: tiny-llama]")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES), help="how to train [default: either]")
    parser.add_argument("--jobs", type=int, default=1, help="how many programs run side by side [default: 1]")
    parser.add_argument("--threads", type=int, default=1, help="threads of each; no result depends on it [default: 1]")
    parser.add_argument("--binary", metavar="FILE", help="candle-peft [default: the one that cargo built, else the one on PATH]")
    parser.add_argument("--work", type=Path, default=HERE / "work", metavar="DIR", help="adapters and logs [default: work]")
    parser.add_argument("--steps", type=int, metavar="N",
                        help="a trial of N steps: its results go to temporary_results, and no learning rate is kept")
    args = parser.parse_args()
    if not args.experiments and not args.all:
        parser.error("name experiments, or all of them with --all")
    return args


def main():
    args = arguments()
    suite = Suite(args)
    chosen = suite.chosen(args.experiments or ["*/*"])
    suite.base()
    suite.tune(chosen)
    suite.train(chosen)
    if args.all:
        suite.ablate()
    report.write_all(suite.results)
    if suite.failures:
        sys.exit(f"{suite.failures} of the runs failed; see {CANCELLED}")


class Suite:
    """The runs of one model."""

    def __init__(self, args):
        self.model, self.regimes, self.jobs, self.steps = args.model, args.regimes, args.jobs, args.steps
        self.program = Program(find(args.binary), args.threads)
        self.work = args.work / "trial" if args.steps else args.work
        self.results = TEMPORARY if args.steps else RESULTS
        self.params = defaults(args.model)
        self.rates, self.failures = {}, 0

    def chosen(self, patterns):
        """The experiments that any pattern means; every pattern must mean one."""
        found = experiments(self.model)
        for pattern in patterns:
            if not any(fnmatch(f"{e.method}/{e.name}", pattern) for e in found):
                sys.exit(f"no experiment `{pattern}`; the choices are {', '.join(f'{e.method}/{e.name}' for e in found)}")
        return [e for e in found if any(fnmatch(f"{e.method}/{e.name}", pattern) for pattern in patterns)]

    def base(self):
        """Measures the untouched model."""
        file = results.base_place(self.results, self.model)
        self.before = measure(self.program, self.params, None, self.work / self.model / "base")
        if not results.is_current(file, results.base_config(self.params), None):
            write(file, results.of_base(self.model, self.params, self.before, self.program))

    def tune(self, chosen):
        """Chooses learning rates where none was chosen, with the first seed, by what the runs trained on alone."""
        open_choices = []
        for experiment in chosen:
            for regime in self.regimes:
                if experiment.rate(regime) is None:
                    open_choices.append((experiment, regime))
                else:
                    self.rates[experiment, regime] = experiment.rate(regime)
        seed = self.params["seeds"][0]
        settings = [Setting(e, regime, rate, seed, self.steps) for e, regime in open_choices for rate in e.rates(regime)]
        outcomes = dict(zip(settings, self.side_by_side("learning rates", self.outcome, settings)))
        for experiment, regime in open_choices:
            tried = [outcomes[setting] for setting in settings if (setting.experiment, setting.regime) == (experiment, regime)]
            rate = best(tried)
            if rate is None:
                self.failures += 1
                print(f"{experiment.id} {regime}: no learning rate works")
                continue
            self.rates[experiment, regime] = rate
            if not self.steps:
                experiment.keep(regime, rate, tried)

    def outcome(self, setting):
        """What a learning rate comes to."""
        try:
            name, score = train(self.program, setting, self.work).score(setting.regime)
        except ProgramFailed as error:
            return {"learning_rate": setting.rate, "failed": str(error)}
        return {"learning_rate": setting.rate, name: round(score, 6)}

    def train(self, chosen):
        """Trains and measures what has no result yet."""
        settings = [Setting(e, regime, self.rates[e, regime], seed, self.steps)
                    for e in chosen for regime in self.regimes if (e, regime) in self.rates for seed in e.params()["seeds"]]
        missing = [s for s in settings
                   if not results.is_current(results.place(self.results, s), s.train_config(), s.experiment.config())]
        print(f"{len(settings) - len(missing)} results are there, {len(missing)} are to be made")
        sized = list(dict.fromkeys(setting.experiment for setting in missing))
        self.totals = dict(zip(sized, self.side_by_side("sizes", self.size, sized)))
        self.failures += self.side_by_side("runs", self.result, missing).count(False)

    def size(self, experiment):
        """The numbers of the model with an adapter."""
        return total_parameters(self.program, experiment, self.work / experiment.id)

    def result(self, setting):
        """Trains, measures and writes the result; whether that worked."""
        try:
            trained = train(self.program, setting, self.work)
            measured = measure(self.program, setting.experiment.params(), trained.adapter, trained.adapter.parent)
        except ProgramFailed as error:
            print(f"{setting.name}: {error}")
            write(results.place(CANCELLED, setting), results.of_failure(setting, error, self.program))
            return False
        found = results.of_run(setting, trained, self.totals[setting.experiment], measured, self.before, self.program)
        write(results.place(self.results, setting), found)
        return True

    def ablate(self):
        """Goes through the ablation grid, if the model has one."""
        grid = ablation.grid(self.model)
        if grid:
            rows = ablation.Ablation(grid, self.program, self.work, self.results / self.model / "ablation.json", self.steps)
            self.failures += rows.run(self.side_by_side)

    def side_by_side(self, title, work, items):
        """Works on the items with so many programs at a time, and tells how far it is."""
        found, live = [], sys.stderr.isatty()
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for done, outcome in enumerate(pool.map(work, items), 1):
                    found.append(outcome)
                    if live or done % 20 == 0 or done == len(items):
                        end = "\r" if live and done < len(items) else "\n"
                        print(f"{title}: {done} of {len(items)}", end=end, flush=True, file=sys.stderr)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return found


def best(tried):
    """The learning rate with the highest accuracy or the lowest loss; none if all of them failed."""
    scored = [({"train accuracy": 1.0, "train loss": -1.0}[name] * row[name], row["learning_rate"])
              for row in tried for name in row if name.startswith("train ")]
    return max(scored)[1] if scored else None


if __name__ == "__main__":
    main()
