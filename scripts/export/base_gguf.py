"""A base model as an f32 GGUF file with a made-up vocabulary: enough to compute logits with llama.cpp."""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf_format import ARCHITECTURES, reordered
from safetensors.numpy import load_file


def write(folder: Path, out: Path) -> None:
    """Converts a folder with `config.json` and `model.safetensors`."""
    config = json.loads((folder / "config.json").read_text())
    model_type = config["model_type"]
    architecture = ARCHITECTURES.get(model_type, model_type)
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    writer = gguf.GGUFWriter(out, architecture)
    blocks = _shape(writer, config)
    _vocabulary(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(number, blocks)
    for name, tensor in load_file(folder / "model.safetensors").items():
        path, kind = name.rsplit(".", 1)
        tensor = tensor.astype(np.float32)
        if kind == "weight" and tensor.ndim == 2:
            tensor = tensor.T if ".c_" in path else reordered(tensor, path, config)
        if model_type.startswith("gemma") and "norm" in path:
            # Gemma's norms multiply with one plus their weight.
            tensor = tensor + 1
        writer.add_tensor(f"{names.get_name(path)}.{kind}", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shape(writer: gguf.GGUFWriter, config: dict) -> int:
    if config["model_type"] == "gpt2":
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return config["n_layer"]
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        writer.add_sliding_window(config["sliding_window"])
    return config["num_hidden_layers"]


def _vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Token ids are all that is used; three of them have the parts that a vocabulary must have."""
    special = ["<unk>", "<s>", "</s>"]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(special + [f"t{id}" for id in range(len(special), size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (size - len(special)))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
