//! The modules that PEFT's LoRA adapts when a config names none, by `model_type`.

use super::ModuleNames;

/// The usual targets of an architecture: LoRA's and TinyLoRA's, and those of methods that have no table of their own.
pub fn lora_targets(model_type: &str) -> Option<ModuleNames> {
    let names: &[&str] = match model_type {
        "llama" | "llama4" | "qwen2" | "qwen3" | "mistral" | "mixtral" | "stablelm" | "gemma" | "gemma2"
        | "gemma3_text" | "opt" | "gptj" | "gpt_neo" | "bart" => &["q_proj", "v_proj"],
        "gemma4" => return Some(ModuleNames::Pattern(r".*language_model\..*\.(q_proj|v_proj)".into())),
        "phi" => &["q_proj", "v_proj", "fc1", "fc2"],
        "gpt2" | "gpt_bigcode" => &["c_attn"],
        "gpt_neox" | "bloom" | "falcon" | "RefinedWeb" | "RefinedWebModel" | "chatglm" => &["query_key_value"],
        "bert" | "roberta" | "xlm-roberta" | "electra" | "layoutlm" => &["query", "value"],
        "deberta-v2" => &["query_proj", "value_proj"],
        "deberta" => &["in_proj"],
        "t5" | "mt5" => &["q", "v"],
        "blip-2" => &["q", "v", "q_proj", "v_proj"],
        "mpt" => &["Wqkv"],
        "btlm" => &["c_proj", "c_attn"],
        "codegen" => &["qkv_proj"],
        "nemotron_h" => &["q_proj", "k_proj", "v_proj", "o_proj"],
        "rwkv" => &["key", "value", "receptance", "output"],
        "rwkv7" => &["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
        _ => return None,
    };
    Some(ModuleNames::list(names.iter().copied()))
}
