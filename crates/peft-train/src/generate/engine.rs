//! Generation of many texts.

use super::random::Draws;
use super::sampler::choose;
use super::stop::StopStrings;
use super::{FinishReason, Generation, GenerationConfig, Request};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use candle_core::{DType, Device, Tensor};
use peft_models::{CausalLanguageModel, ForwardOptions, ModelShape};

/// Generates texts with a model, many at a time.
///
/// It holds no model: each call takes one. Tokens and their log-probabilities follow from model, config and request alone.
#[derive(Debug)]
pub struct Generator {
    config: GenerationConfig,
    stop_strings: Option<StopStrings>,
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
        Ok(Self { config, stop_strings: None })
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
        let mut results = vec![];
        for (index, request) in requests.iter().enumerate() {
            let samples = (0..request.samples)
                .map(|sample| self.one(model, request, sample, &mut |id| on_token(index, sample, id)));
            results.push(samples.collect::<Result<_>>()?);
        }
        Ok(results)
    }

    fn one<M: CausalLanguageModel>(
        &self,
        model: &M,
        request: &Request<'_>,
        sample: usize,
        on_token: &mut dyn FnMut(u32) -> Result<()>,
    ) -> Result<Generation> {
        let (config, shape, device) = (&self.config, model.shape(), model.device());
        let mut cache = model.new_cache();
        let mut draws = Draws::new(config.seed, request.stream, sample);
        let mut watch = self.stop_strings.as_ref().map(StopStrings::watch);
        let mut seen = request.prompt.to_vec();
        let mut generation = Generation::with_capacity(config.max_new_tokens.min(shape.max_positions));
        while generation.ids.len() < config.max_new_tokens {
            let new = &seen[cache.len()..];
            if cache.len() + new.len() > shape.max_positions {
                generation.finish_reason = FinishReason::Context;
                break;
            }
            let input = Tensor::new(new, &device)?.unsqueeze(0)?;
            let logits = model.forward(&input, ForwardOptions::last().with_cache(&mut cache))?;
            let logits = logits.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            let sampled = choose(config, &logits, &seen, draws.uniform(generation.ids.len()))?;
            generation.ids.push(sampled.id);
            generation.log_probs.push(sampled.log_prob);
            generation.entropies.push(sampled.entropy);
            if config.stop_ids.contains(&sampled.id) {
                (generation.finish_reason, generation.ends_with_stop_id) = (FinishReason::Stop, true);
                break;
            }
            seen.push(sampled.id);
            on_token(sampled.id)?;
            if let Some(watch) = &mut watch
                && watch.ends_with(sampled.id)?
            {
                generation.finish_reason = FinishReason::Stop;
                break;
            }
        }
        Ok(generation)
    }
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
