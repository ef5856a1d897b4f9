"""Checks of an MLX adapter folder against the definitions of mlx-lm 0.32 (tuner/utils.py, tuner/lora.py); needs no mlx."""

import json
from pathlib import Path

import numpy as np
from cases import Case, close, is_embedding
from safetensors import safe_open
from safetensors.numpy import load_file


def mlx_path(path: str) -> str:
    """The name in mlx-lm of a module of transformers: its GPT-2 puts all of the model below `model`."""
    return path.replace("transformer.", "model.", 1)


def shapes(case: Case) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every layer that mlx-lm can adapt, by its path there; entries and dimension of embeddings."""
    found = {}
    with safe_open(case.base / "model.safetensors", "numpy") as file:
        for name in file.keys():
            shape = file.get_slice(name).get_shape()
            path = name.removesuffix(".weight")
            if len(shape) != 2:
                continue
            transposed = case.model_type == "gpt2" and not is_embedding(path)
            found[mlx_path(path)] = tuple(reversed(shape)) if transposed else tuple(shape)
    return found


def adapted(layers: dict, block_count: int, config: dict) -> set[str]:
    """The layers that `linear_to_lora_layers` adapts: keys below the last `num_layers` blocks, and keys that are full paths."""
    keys = set(config["lora_parameters"]["keys"])
    blocks = set(range(block_count)[-max(config["num_layers"], 0) :])
    chosen = set()
    for path in layers:
        parts = path.split(".")
        in_block = len(parts) > 3 and parts[1] in ("layers", "h") and int(parts[2]) in blocks
        if path in keys or (in_block and ".".join(parts[3:]) in keys):
            chosen.add(path)
    return chosen


def check(case: Case, folder: Path, expect) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapters.safetensors")
    parameters = config["lora_parameters"]
    rank, scale = parameters["rank"], parameters["scale"]
    expect("it is a LoRA", config["fine_tune_type"] == "lora" and parameters["dropout"] == 0.0)

    layers = shapes(case)
    block_count = case.base_config.get("num_hidden_layers", case.base_config.get("n_layer"))
    chosen = adapted(layers, block_count, config)
    names = {f"{path}.{factor}" for path in chosen for factor in ("lora_a", "lora_b")}
    expect("its tensors are those of the adapted layers", set(tensors) == names)
    sources = {mlx_path(path): path for path in case.modules}
    expect("every module of the adapter is adapted", set(sources) <= chosen)
    for path in sorted(chosen):
        a, b = (tensors.get(f"{path}.{factor}", np.empty((0, 0), np.float32)) for factor in ("lora_a", "lora_b"))
        rows, cols = layers[path]
        embedding = is_embedding(path)
        shape_a, shape_b = ((rows, rank), (rank, cols)) if embedding else ((cols, rank), (rank, rows))
        fits = a.shape == shape_a and b.shape == shape_b and a.dtype == b.dtype == np.float32
        expect(f"{path} has the shapes of a LoRA layer", fits)
        if not fits:
            continue
        # An embedding is `lora_a[ids] lora_b`, a linear layer `(x lora_a) lora_b`.
        left, right = (a, b) if embedding else (b.T, a.T)
        delta = scale * (left.astype(np.float64) @ right.astype(np.float64))
        source = sources.get(path)
        if source is None:
            expect(f"{path} is left as it is", not delta.any())
            continue
        expect(f"{path} has PEFT's delta", close(delta, case.deltas[source]))
        factors = case.modules[source]
        if factors is not None:
            r = factors.rank
            same = np.array_equal(left[:, :r], factors.scaled(factors.scale / scale))
            expect(f"{path} has PEFT's factors", same and np.array_equal(right[:r], factors.right))
            expect(f"{path} is padded with zeros", not left[:, r:].any() and not right[r:].any())
