//! Text from a model: one prompt as it is written, or samples of many prompts at a time.

mod batch;
mod config;
mod engine;
mod generation;
mod random;
mod stop;

pub use config::GenerationConfig;
pub use engine::Generator;
pub use generation::{FinishReason, Generation, Request};

use crate::error::Result;
use peft_core::PeftModel;
use peft_models::CausalLanguageModel;

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
    let mut generator = Generator::new(config.clone())?;
    model.eval()?;
    let request = Request { prompt, samples: 1, stream: 0 };
    let samples = generator.generate_with(model.base(), &[request], &mut |_, _, id| on_token(id))?;
    // One request with one sample.
    Ok(samples.into_iter().flatten().next().unwrap_or_else(|| Generation::with_capacity(0)))
}
