#!/usr/bin/env python3
"""Makes a tiny random model of every architecture that can be exported, with a LoRA by PEFT, as cases for check.py and
engines.py: a folder `base_<model_type>` and a folder `lora_<model_type>` each. Needs torch, transformers and PEFT.
"""

import argparse
import json
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
DECODER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ENDS = ["embed_tokens", "lm_head"]

# The class of the config, what it has besides the sizes, and the adapted modules.
ARCHITECTURES = {
    "llama": (transformers.LlamaConfig, {}, DECODER + ENDS),
    "mistral": (transformers.MistralConfig, dict(sliding_window=None), DECODER + ENDS),
    "qwen2": (transformers.Qwen2Config, {}, DECODER + ENDS),
    "qwen3": (transformers.Qwen3Config, {}, DECODER + ENDS),
    "gemma": (transformers.GemmaConfig, dict(head_dim=16), DECODER),
    "gemma2": (transformers.Gemma2Config, dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=64), DECODER),
    "gpt2": (
        transformers.GPT2Config,
        dict(n_positions=64, n_embd=32, n_layer=2, n_head=4),
        ["c_attn", "c_proj", "c_fc"],
    ),
}


def make(model_type: str, out: Path) -> None:
    kind, changes, targets = ARCHITECTURES[model_type]
    sizes = dict(vocab_size=64, bos_token_id=1, eos_token_id=2) if model_type == "gpt2" else SIZES
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**(sizes | changes)), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that a wrong order of rows or a missing bias shows.
            parameter.normal_(0.0, 0.25).add_(1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0)
    base = out / f"base_{model_type}"
    model.save_pretrained(base)
    ids = torch.randint(3, 64, (2, 7))
    base_logits = model(ids).logits

    # Blocks and kinds of modules have different ranks, and modules different scales.
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, use_rslora=True,
        rank_pattern={r"1\..*(o_proj|c_proj|down_proj)": 3, "q_proj": 5}, alpha_pattern={"v_proj": 2},
        fan_in_fan_out=model_type == "gpt2",
    )
    adapted = peft.get_peft_model(model, config).eval()
    modules = [name.removeprefix("base_model.model.") for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2)
    adapter = out / f"lora_{model_type}"
    adapted.save_pretrained(adapter)
    expected = {"input_ids": ids, "base_logits": base_logits, "adapted_logits": adapted(ids).logits}
    save_file({key: value.detach().contiguous() for key, value in expected.items()}, adapter / "expected.safetensors")
    about = {"base": base.name, "modules": modules}
    (adapter / "case.json").write_text(json.dumps(about, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder for the cases")
    args = parser.parse_args()
    for model_type in ARCHITECTURES:
        make(model_type, args.out)


if __name__ == "__main__":
    main()
