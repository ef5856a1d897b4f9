//! The architectures that can be exported, and the names of their modules.

use std::fmt;

/// An architecture of base models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama, and models that share its `model_type`, such as SmolLM2.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3 without experts.
    Qwen3,
    /// The first Gemma.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// GPT-2.
    Gpt2,
}

/// A linear layer that every block of an architecture has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BlockModule {
    /// Its path below the block, in transformers and in MLX-LM.
    pub(crate) name: &'static str,
    /// Its name below the block in llama.cpp.
    pub(crate) gguf: &'static str,
}

/// Where an adapted module is in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A linear layer of a block.
    Block { index: usize, module: &'static BlockModule },
    /// The embedding of token ids.
    Tokens,
    /// The embedding of positions.
    Positions,
    /// The output head.
    Head,
}

const DECODER: &[BlockModule] = &[
    BlockModule { name: "self_attn.q_proj", gguf: "attn_q" },
    BlockModule { name: "self_attn.k_proj", gguf: "attn_k" },
    BlockModule { name: "self_attn.v_proj", gguf: "attn_v" },
    BlockModule { name: "self_attn.o_proj", gguf: "attn_output" },
    BlockModule { name: "mlp.gate_proj", gguf: "ffn_gate" },
    BlockModule { name: "mlp.up_proj", gguf: "ffn_up" },
    BlockModule { name: "mlp.down_proj", gguf: "ffn_down" },
];

const GPT2: &[BlockModule] = &[
    BlockModule { name: "attn.c_attn", gguf: "attn_qkv" },
    BlockModule { name: "attn.c_proj", gguf: "attn_output" },
    BlockModule { name: "mlp.c_fc", gguf: "ffn_up" },
    BlockModule { name: "mlp.c_proj", gguf: "ffn_down" },
];

/// The output head, in transformers and in MLX-LM.
pub(crate) const HEAD: &str = "lm_head";

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Gemma, Self::Gemma2, Self::Gpt2];

    /// The `model_type` of its configs.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gpt2 => "gpt2",
        }
    }

    /// The `general.architecture` of its GGUF files.
    pub fn gguf_name(self) -> &'static str {
        match self {
            Self::Mistral => "llama",
            other => other.model_type(),
        }
    }

    /// Whether the output head is the embedding's weight when the config does not say.
    pub(crate) fn ties_by_default(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gpt2)
    }

    /// What a module's path says about its place; `None` when the architecture has no such module.
    pub(crate) fn place(self, path: &str) -> Option<Place> {
        if path == HEAD {
            return Some(Place::Head);
        }
        let gpt2 = self == Self::Gpt2;
        let (rest, list, tokens) = match gpt2 {
            true => (path.strip_prefix("transformer.")?, "h.", "wte"),
            false => (path.strip_prefix("model.")?, "layers.", "embed_tokens"),
        };
        if rest == tokens {
            return Some(Place::Tokens);
        }
        if gpt2 && rest == "wpe" {
            return Some(Place::Positions);
        }
        let (index, name) = rest.strip_prefix(list)?.split_once('.')?;
        let module = self.block_modules().iter().find(|module| module.name == name)?;
        Some(Place::Block { index: index.parse().ok()?, module })
    }

    /// The names of the modules that an adapter may adapt, for an error message.
    pub(crate) fn module_names(self) -> String {
        let ends: &[&str] = if self == Self::Gpt2 { &["wte", "wpe", HEAD] } else { &["embed_tokens", HEAD] };
        let names = self.block_modules().iter().map(|module| module.name);
        names.chain(ends.iter().copied()).collect::<Vec<_>>().join(", ")
    }

    fn block_modules(self) -> &'static [BlockModule] {
        if self == Self::Gpt2 { GPT2 } else { DECODER }
    }
}

/// The `model_type`.
impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}
