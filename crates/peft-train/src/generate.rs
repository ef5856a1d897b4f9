//! Text from a model, one token at a time.

mod sampler;

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use peft_core::PeftModel;
use peft_models::{CausalLanguageModel, ForwardOptions};
use sampler::Sampler;
use serde::Serialize;

/// How tokens are chosen, and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// 0 always takes the likeliest token; otherwise logits are divided by it before one is drawn.
    pub temperature: f64,
    /// Draws from the likeliest tokens that together have at least this probability; 1 draws from all.
    pub top_p: f64,
    /// The seed of the draws: the n-th token takes the n-th number of a ChaCha8 generator.
    pub seed: u64,
    /// Tokens that end the text; they are not part of it.
    pub stop_ids: Vec<u32>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self { max_new_tokens: 128, temperature: 0.0, top_p: 1.0, seed: 0, stop_ids: vec![] }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model wrote a stop token.
    Stop,
    /// `max_new_tokens` were generated.
    Length,
    /// The model has no positions left.
    Context,
}

/// The tokens that follow a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Generation {
    /// The ids, without the prompt and without the token that ended them.
    pub ids: Vec<u32>,
    /// Why there are no more.
    pub finish_reason: FinishReason,
}

/// Continues the ids of a prompt. `on_token` sees each id as it is chosen. The model is left in inference mode.
///
/// # Errors
/// When the prompt is empty, has an id outside the vocabulary or fills the model's positions, an option is out of range, a
/// logit is NaN, or `on_token` fails.
pub fn generate<M: CausalLanguageModel>(
    model: &mut PeftModel<M>,
    prompt: &[u32],
    config: &GenerationConfig,
    on_token: &mut dyn FnMut(u32) -> Result<()>,
) -> Result<Generation> {
    let mut sampler = Sampler::new(config)?;
    let shape = model.base().shape();
    check_prompt(prompt, shape.vocab_size, shape.max_positions)?;
    model.eval()?;
    let model = model.base();
    let device = model.device();
    let mut cache = model.new_cache();
    let mut ids: Vec<u32> = Vec::new();
    while ids.len() < config.max_new_tokens {
        let new = ids.last().map_or(prompt, std::slice::from_ref);
        if cache.len() + new.len() > shape.max_positions {
            return Ok(Generation { ids, finish_reason: FinishReason::Context });
        }
        let input = Tensor::new(new, &device)?.unsqueeze(0)?;
        let logits = model.forward(&input, ForwardOptions::last().with_cache(&mut cache))?;
        let logits = logits.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let id = sampler.choose(&logits)?;
        if config.stop_ids.contains(&id) {
            return Ok(Generation { ids, finish_reason: FinishReason::Stop });
        }
        ids.push(id);
        on_token(id)?;
    }
    Ok(Generation { ids, finish_reason: FinishReason::Length })
}

fn check_prompt(prompt: &[u32], vocab_size: usize, max_positions: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::option("prompt", "it has no tokens"));
    }
    if prompt.len() > max_positions {
        let message = format!("{} tokens, but the model takes {max_positions}", prompt.len());
        return Err(Error::option("prompt", message));
    }
    match prompt.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab_size)) {
        Some(id) => {
            let message = format!("token id {id} is out of range, the model's vocabulary has {vocab_size} entries");
            Err(Error::option("prompt", message))
        }
        None => Ok(()),
    }
}
