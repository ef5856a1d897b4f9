"""Saved adapters, compared file by file."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

# The writing library, and a flag that is true in every saved adapter but those of PEFT's own conversion.
FREE_FIELDS = {"peft_version", "inference_mode"}


def tensors(folder):
    """The tensors of an adapter by name."""
    return load_file(Path(folder) / "adapter_model.safetensors")


def layout(folder):
    """The name, shape and dtype of every tensor."""
    return {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors(folder).items()}


def changed(ours, theirs):
    """The names of tensors that both folders have, with different values."""
    ours, theirs = tensors(ours), tensors(theirs)
    return sorted(name for name in ours.keys() & theirs.keys() if not _same(ours[name], theirs[name]))


def config(folder):
    """The fields of `adapter_config.json`; the order of target modules has no meaning."""
    fields = json.loads((Path(folder) / "adapter_config.json").read_text())
    fields = {name: value for name, value in fields.items() if name not in FREE_FIELDS}
    if isinstance(fields["target_modules"], list):
        fields["target_modules"] = sorted(fields["target_modules"])
    return fields


def _same(ours, theirs):
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
