"""Adapters that PEFT wrote, with what they add to each weight."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

PREFIX = "base_model.model."
EMBEDDINGS = ("embed_tokens", "wte", "wpe")


@dataclass
class Factors:
    """A LoRA module as PEFT saved it: the delta is `scale * left @ right`, with a row of `left` per row of the weight."""

    left: np.ndarray
    right: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        return len(self.right)

    def scaled(self, factor: float) -> np.ndarray:
        """The left factor times a number, rounded once."""
        return (self.left.astype(np.float64) * factor).astype(np.float32)


class Case:
    """An adapter folder with `case.json`, which names its base, and `expected.safetensors`, what PEFT computed."""

    def __init__(self, root: Path, name: str):
        self.name, self.adapter = name, root / name
        about = json.loads((self.adapter / "case.json").read_text())
        self.base = root / about["base"]
        self.base_config = json.loads((self.base / "config.json").read_text())
        self.config = json.loads((self.adapter / "adapter_config.json").read_text())
        self.tensors = load_file(self.adapter / "adapter_model.safetensors")
        self.expected = load_file(self.adapter / "expected.safetensors")
        self.modules = {path: self._factors(path) for path in about["modules"]}
        self.deltas = {path: self._delta(path) for path in self.modules}

    @property
    def model_type(self) -> str:
        return self.base_config["model_type"]

    def _factors(self, path: str) -> Factors | None:
        """The factors of a LoRA; an adapter of another method has none."""
        if self.config["peft_type"] != "LORA":
            return None
        names = ("lora_embedding_A", "lora_embedding_B") if is_embedding(path) else ("lora_A.weight", "lora_B.weight")
        a, b = (self.tensors[f"{PREFIX}{path}.{name}"] for name in names)
        r = pattern(self.config["rank_pattern"], path, self.config["r"])
        alpha = pattern(self.config["alpha_pattern"], path, self.config["lora_alpha"])
        assert a.shape[0] == r == b.shape[1], path
        left, right = (a.T, b.T) if is_embedding(path) else (b, a)
        return Factors(left, right, alpha / r**0.5 if self.config["use_rslora"] else alpha / r)

    def _delta(self, path: str) -> np.ndarray:
        """What the adapter adds to a weight, outputs by inputs (for an embedding entries by dimension), in f64."""
        expected = self.expected.get(f"delta.{path}")
        if expected is not None and self.model_type == "gpt2" and not is_embedding(path):
            expected = expected.T
        factors = self.modules[path]
        if factors is None:
            return expected.astype(np.float64)
        delta = factors.scale * (factors.left.astype(np.float64) @ factors.right.astype(np.float64))
        assert expected is None or close(delta, expected), f"{self.name}: {path} is not read as PEFT reads it"
        return delta


def pattern(patterns: dict, path: str, default):
    """The value of the first pattern that a module's path ends with."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def is_embedding(path: str) -> bool:
    return path.rsplit(".", 1)[-1] in EMBEDDINGS


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two deltas are one, up to the rounding of their factors to f32."""
    return found.shape == expected.shape and np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
