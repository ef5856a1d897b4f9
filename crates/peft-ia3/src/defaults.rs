//! The modules that PEFT's IA3 adapts when a config names none, by `model_type`.

use peft_core::ModuleNames;

/// What IA3 usually adapts in an architecture.
pub(crate) struct Usual {
    targets: &'static [&'static str],
    feedforward: &'static [&'static str],
}

impl Usual {
    /// The usual modules of an architecture, if PEFT knows it.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        let (targets, feedforward): (&[&str], &[&str]) = match model_type {
            "llama" | "mistral" => (&["k_proj", "v_proj", "down_proj"], &["down_proj"]),
            "llama4" | "gemma" | "gemma2" | "gemma3_text" | "qwen2" | "qwen3" => {
                (&["q_proj", "v_proj", "down_proj"], &["down_proj"])
            }
            "mixtral" => (&["k_proj", "v_proj", "w2"], &["w2"]),
            "phi" | "bart" => (&["q_proj", "v_proj", "fc2"], &["fc2"]),
            "opt" => (&["q_proj", "k_proj", "fc2"], &["fc2"]),
            "gptj" => (&["q_proj", "v_proj", "fc_out"], &["fc_out"]),
            "gpt_neo" => (&["q_proj", "v_proj", "c_proj"], &["c_proj"]),
            "gpt2" | "gpt_bigcode" => (&["c_attn", "mlp.c_proj"], &["mlp.c_proj"]),
            "bloom" => (&["query_key_value", "mlp.dense_4h_to_h"], &["mlp.dense_4h_to_h"]),
            "gpt_neox" | "falcon" | "RefinedWeb" | "RefinedWebModel" => {
                (&["query_key_value", "dense_4h_to_h"], &["dense_4h_to_h"])
            }
            "bert" | "roberta" => (&["key", "value", "output.dense"], &["output.dense"]),
            "deberta-v2" => (&["key_proj", "value_proj", "output.dense"], &["output.dense"]),
            "deberta" => (&["in_proj", "output.dense"], &["output.dense"]),
            "t5" => (&["k", "v", "wo"], &["wo"]),
            "mt5" => (&["k", "v", "wi_1"], &[]),
            _ => return None,
        };
        Some(Self { targets, feedforward })
    }

    /// The value of `target_modules`.
    pub(crate) fn targets(&self) -> ModuleNames {
        ModuleNames::list(self.targets.iter().copied())
    }

    /// The value of `feedforward_modules`.
    pub(crate) fn feedforward(&self) -> &'static [&'static str] {
        self.feedforward
    }
}
