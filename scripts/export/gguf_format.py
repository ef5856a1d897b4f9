"""Checks of a GGUF adapter with the `gguf` package's reader and tensor names, and the conditions of llama-adapter.cpp."""

from pathlib import Path

import gguf
import numpy as np
from cases import Case, close, is_embedding

# What `general.architecture` is for a `model_type`, where they differ.
ARCHITECTURES = {"mistral": "llama"}


def tensor_names(case: Case, architecture: str) -> dict[str, str]:
    """The name of each adapted weight in llama.cpp, by the module's path in transformers."""
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    blocks = case.base_config.get("num_hidden_layers", case.base_config.get("n_layer"))
    names = gguf.get_tensor_name_map(number, blocks)
    return {path: f"{names.get_name(path)}.weight" for path in case.modules}


def reordered(rows: np.ndarray, path: str, config: dict) -> np.ndarray:
    """The rows of a query or key weight as llama.cpp's converter orders them for Llama and Mistral."""
    if config["model_type"] not in ("llama", "mistral") or not path.endswith(("q_proj", "k_proj")):
        return rows
    heads = config["num_attention_heads"]
    if path.endswith("k_proj"):
        heads = config.get("num_key_value_heads") or heads
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def check(case: Case, file: Path, expect) -> None:
    reader = gguf.GGUFReader(file)
    values = {key: field.contents() for key, field in reader.fields.items()}
    architecture = ARCHITECTURES.get(case.model_type, case.model_type)
    expect("it is an adapter", values.get("general.type") == "adapter" and values.get("adapter.type") == "lora")
    expect("it names the base's architecture", values.get("general.architecture") == architecture)
    expect("it has the adapter's name", values.get("general.name") == case.name)
    alpha = values.get("adapter.lora.alpha", 0.0)
    kind = reader.get_field("adapter.lora.alpha").types
    expect("alpha is an f32 above zero", kind == [gguf.GGUFValueType.FLOAT32] and alpha > 0)

    names = tensor_names(case, architecture)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    expected = {f"{name}.{factor}" for name in names.values() for factor in ("lora_a", "lora_b")}
    expect("its tensors are those of the adapted weights", set(tensors) == expected)
    f32 = gguf.GGMLQuantizationType.F32
    expect("all tensors are f32", all(tensor.tensor_type == f32 for tensor in reader.tensors))
    for path, name in names.items():
        a, b = (tensors.get(f"{name}.{factor}") for factor in ("lora_a", "lora_b"))
        if a is None or b is None:
            expect(f"{path} has both factors", False)
            continue
        a, b = np.array(a.data), np.array(b.data)
        delta, rank = case.deltas[path], b.shape[1]
        # Arrays have the dimensions of GGUF in reverse.
        rows, cols = delta.shape
        shapes = [(rows, rank), (cols, rank)] if is_embedding(path) else [(rank, cols), (rows, rank)]
        fits = [a.shape, b.shape] == shapes
        expect(f"{path} has the shapes that llama.cpp asks for", fits)
        if not fits:
            continue
        left, right = (a, b.T) if is_embedding(path) else (b, a)
        found = alpha / rank * (left.astype(np.float64) @ right.astype(np.float64))
        expect(f"{path} has PEFT's delta", close(found, reordered(delta, path, case.base_config)))
        factors = case.modules[path]
        if factors is not None:
            scaled = reordered(factors.scaled(factors.scale * factors.rank / alpha), path, case.base_config)
            expect(f"{path} has PEFT's factors", np.array_equal(left, scaled) and np.array_equal(right, factors.right))
