"""Experiments: folders with an adapter's config and what differs from the model's training settings."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXPERIMENTS = HERE / "experiments"
DATA = HERE / "data"
DEFAULTS = "default_training_params.json"
# The longest line that a list or an object may share.
WIDTH = 140

# How an adapter is trained, and the command that does it.
REGIMES = {"sft": "train", "grpo": "grpo"}
# Settings that name files in `data/`.
FILES = {"data", "task_train", "task_eval"}
# What a folder may set, besides the options of the commands.
SETTINGS = {"base", "load", "seeds", "sft", "grpo", "eval", "sampled", "forgetting"}
# What the choice of a learning rate reads and writes.
TUNING = {"learning_rates", "learning_rate", "tried"}


@dataclass(frozen=True)
class Experiment:
    """A folder `experiments/<model>/<method>/<name>`."""

    model: str
    method: str
    name: str

    @property
    def id(self):
        return f"{self.model}/{self.method}/{self.name}"

    @property
    def folder(self):
        return EXPERIMENTS / self.model / self.method / self.name

    @property
    def config_file(self):
        return self.folder / "adapter_config.json"

    def config(self):
        return read(self.config_file)

    def params(self):
        """The model's settings with those of the folder on top."""
        params = defaults(self.model)
        for key, value in self.own().items():
            if key not in SETTINGS:
                sys.exit(f"{self.folder}/training_params.json: `{key}` is none of {', '.join(sorted(SETTINGS))}")
            params[key] = {**params.get(key, {}), **value} if isinstance(value, dict) else value
        return params

    def own(self):
        file = self.folder / "training_params.json"
        return read(file) if file.exists() else {}

    def rate(self, regime):
        """The learning rate, if one was chosen."""
        return self.own().get(regime, {}).get("learning_rate")

    def rates(self, regime):
        """The learning rates to choose from."""
        own = self.own().get(regime, {})
        if "learning_rates" not in own:
            sys.exit(f"{self.folder}/training_params.json: `{regime}` has neither `learning_rate` nor `learning_rates`")
        return own["learning_rates"]

    def keep(self, regime, rate, tried):
        """Writes down the learning rate that was chosen, and what every candidate came to."""
        own = self.own()
        own[regime] = {**own.get(regime, {}), "learning_rate": rate, "tried": tried}
        write(self.folder / "training_params.json", own)


def defaults(model):
    """The settings of a model's experiments."""
    file = EXPERIMENTS / model / DEFAULTS
    if not file.exists():
        known = ", ".join(sorted(path.name for path in EXPERIMENTS.iterdir() if path.is_dir()))
        sys.exit(f"no experiments for `{model}`; the choices are {known}")
    return read(file)


def experiments(model):
    """All experiments of a model, in the order of their paths."""
    defaults(model)
    files = sorted((EXPERIMENTS / model).glob("*/*/adapter_config.json"))
    return [Experiment(model, file.parent.parent.name, file.parent.name) for file in files]


def options(params, regime):
    """The options of a training, without learning rate and seed."""
    return {**params.get("load", {}), **{key: value for key, value in params[regime].items() if key not in TUNING}}


def words(options):
    """Options as the command line has them."""
    found = []
    for key, value in options.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            found.append(flag)
        elif value is not None and value is not False:
            found += [flag, str(DATA / value if key in FILES else value)]
    return found


def read(file):
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{file}: {error}")


def write(file, value):
    """Writes JSON beside its place and moves it there; lists and objects that fit stay on one line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(file.name + ".part")
    beside.write_text(layout(value) + "\n")
    beside.replace(file)


def layout(value, indent=0):
    """JSON with short lists and objects on one line, but for the outermost."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or (indent and len(line) + indent <= WIDTH):
        return line
    inner = indent + 2
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {layout(item, inner)}" for key, item in value.items()]
    else:
        parts = [layout(item, inner) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + "\n" + ",\n".join(" " * inner + part for part in parts) + "\n" + " " * indent + closing
