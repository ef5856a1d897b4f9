//! Generation of many texts, side by side.

use super::batch::{Batch, NewTokens};
use super::stop::StopStrings;
use super::{Generation, GenerationConfig, Request};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use candle_core::Tensor;
use peft_models::{CausalLanguageModel, ForwardOptions, KvCache, ModelShape};
use peft_nn::Sampling;

/// Tokens of prompts that one pass takes, unless a single prompt is longer: what a pass needs in memory grows with them.
const PROMPT_TOKENS: usize = 1024;

/// Generates texts with a model, many at a time.
///
/// It holds no model: each call takes one, live adapters or merged ones. A prompt is computed once for all of its samples; a sample that
/// ends makes room for the next one. Tokens, log-probabilities and entropies follow from model, config, prompt, stream and the sample's
/// number alone, to the last bit: neither the other requests nor `max_rows` nor the number of threads changes them.
///
/// The pass is inference and builds no graph. Dropout is what the model's mode says: call [`PeftModel::eval`](peft_core::PeftModel::eval)
/// before.
#[derive(Debug)]
pub struct Generator {
    config: GenerationConfig,
    sampling: Sampling,
    stop_strings: Option<StopStrings>,
    /// Its memory is used again.
    cache: Option<(ModelShape, KvCache)>,
}

/// Sees each token of a text as it is chosen, with the indices of its request and sample.
pub(super) type OnToken<'a> = dyn FnMut(usize, usize, u32) -> Result<()> + 'a;

impl Generator {
    /// A generator with this config.
    ///
    /// # Errors
    /// When an option is out of range.
    pub fn new(config: GenerationConfig) -> Result<Self> {
        config.check()?;
        let sampling = config.sampling();
        Ok(Self { config, sampling, stop_strings: None, cache: None })
    }

    /// Ends texts that contain one of these strings, wherever the borders of tokens are. The string stays in the text.
    ///
    /// # Errors
    /// When a string is empty.
    pub fn with_stop_strings(mut self, tokenizer: &Tokenizer, strings: Vec<String>) -> Result<Self> {
        self.stop_strings = StopStrings::new(tokenizer, strings)?;
        Ok(self)
    }

    /// The config.
    pub fn config(&self) -> &GenerationConfig {
        &self.config
    }

    /// The samples of each request, in order.
    ///
    /// # Errors
    /// When a prompt is empty, has an id outside the vocabulary or fills the model's positions, a logit is NaN, or the model fails.
    pub fn generate<M: CausalLanguageModel>(
        &mut self,
        model: &M,
        requests: &[Request<'_>],
    ) -> Result<Vec<Vec<Generation>>> {
        self.generate_with(model, requests, &mut |_, _, _| Ok(()))
    }

    /// As [`Generator::generate`]. `on_token` sees each token of a text as it is chosen, with the indices of its request and
    /// sample; a stop token it does not see.
    ///
    /// # Errors
    /// As [`Generator::generate`], and when `on_token` fails.
    pub fn generate_with<M: CausalLanguageModel>(
        &mut self,
        model: &M,
        requests: &[Request<'_>],
        on_token: &mut OnToken<'_>,
    ) -> Result<Vec<Vec<Generation>>> {
        let shape = model.shape();
        for request in requests {
            check_prompt(request.prompt, shape)?;
        }
        // Of a model of other sizes the memory would not do.
        let (_, cache) = match &mut self.cache {
            Some((held, cache)) if *held == shape => (held, cache),
            other => {
                let (held, cache) = other.insert((shape, model.new_cache()));
                (held, cache)
            }
        };
        cache.reset();
        let Self { config, sampling, stop_strings, .. } = self;
        let batch = Batch::new(config, sampling, stop_strings.as_ref(), shape.max_positions, requests, cache);
        run(batch, model, on_token)
    }
}

fn run<M: CausalLanguageModel>(
    mut batch: Batch<'_>,
    model: &M,
    on_token: &mut OnToken<'_>,
) -> Result<Vec<Vec<Generation>>> {
    let device = model.device();
    while let Some(NewTokens { ids, extensions }) = batch.new_tokens(PROMPT_TOKENS) {
        let tokens = ids.len();
        let input = Tensor::from_vec(ids, (1, tokens), &device)?;
        let cache = &mut *batch.cache;
        // On a thread of the pool, for which the loops of the operators need not wait.
        let pass =
            |_: &rayon::Scope<'_>| model.forward(&input, ForwardOptions::last().with_sequences(cache, &extensions));
        let logits = rayon::scope(pass)?.squeeze(0)?;
        batch.take(&logits, on_token)?;
        batch.begin_samples(on_token)?;
    }
    Ok(batch.into_results())
}

fn check_prompt(prompt: &[u32], shape: ModelShape) -> Result<()> {
    let ModelShape { vocab_size, max_positions, .. } = shape;
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
