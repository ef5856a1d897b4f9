"""The `candle-peft` binary, one method per command."""

import json
import subprocess
from pathlib import Path

from reference import Evaluation, Generation, without_end


class CandlePeft:
    """Runs the binary on one base model."""

    name = "candle-peft"

    def __init__(self, binary, base, end):
        """`end` is the id of the token that ends a text."""
        self.binary, self.base, self.end = str(binary), base, end

    def evaluate(self, data, adapter=None, base=None):
        """`eval`."""
        out = self._run("eval", "--base", base or self.base, *_option("--adapter", adapter), "--data", data)
        rows = out["rows"]
        return Evaluation(out["loss"], out["tokens"], [row["loss"] for row in rows], [row["tokens"] for row in rows])

    def init(self, settings, out, method="tinylora"):
        """`init`: writes a fresh adapter."""
        self._run("init", "--base", self.base, *_settings(settings, method), "--out", out)

    def train(self, data, out, steps, batch_size, learning_rate, settings=None, adapter=None, method="tinylora"):
        """`train` in file order, without weight decay, at a constant rate. Returns the loss before each step."""
        start = _option("--adapter", adapter) if adapter else _settings(settings, method)
        self._run("train", "--base", self.base, *start, "--data", data, "--out", out, "--steps", steps,
                  "--batch-size", batch_size, "--learning-rate", learning_rate, "--optimizer", "adamw",
                  "--weight-decay", 0, "--schedule", "constant", "--no-shuffle")
        with open(Path(out) / "metrics.jsonl") as file:
            lines = [json.loads(line) for line in file]
        return [line["loss"] for line in lines if line["kind"] == "train"]

    def rewrite(self, adapter, out, data):
        """Reads a checkpoint and writes it again: a training step at rate 0 changes no value."""
        self.train(data, out, steps=1, batch_size=1, learning_rate=0, adapter=adapter)

    def generate(self, prompt, chat, count, adapter=None):
        """`generate`, greedily."""
        out = self._run("generate", "--base", self.base, *_option("--adapter", adapter), "--prompt", prompt,
                        *(["--chat"] if chat else []), "--max-new-tokens", count, "--temperature", 0)
        return Generation(out["prompt_tokens"], without_end(out["tokens"], self.end), out["text"])

    def merge(self, adapter, out):
        """`merge`: writes a model folder."""
        self._run("merge", "--base", self.base, "--adapter", adapter, "--out", out)

    def convert(self, adapter, out, needs_base=False):
        """`convert`: writes the adapter as a LoRA."""
        base = ["--base", self.base] if needs_base else []
        self._run("convert", "--adapter", adapter, "--to", "lora", "--out", out, *base)

    def _run(self, *arguments):
        """Runs a command with `--json` and returns its object."""
        command = [self.binary, *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\nexit code {done.returncode}: {done.stderr.strip()[-2000:]}")
        return json.loads(done.stdout)


def _option(name, value):
    return [] if value is None else [name, value]


def _settings(settings, method):
    """Fields of the adapter's configuration, as `--set name=value`."""
    arguments = ["--method", method]
    for name, value in settings.items():
        arguments += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return arguments
