//! How tokens are chosen, and when a text ends.

use crate::error::{Error, Result};
use peft_nn::Sampling;

/// How tokens are chosen, and when to stop.
///
/// A token is chosen in the order of transformers' logits processors: `repetition_penalty`, `temperature`, `top_k`, `top_p`,
/// `min_p`, and a draw from what is left. With a temperature of 0 the likeliest token is taken after the penalty, and no other
/// option counts.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// 0 always takes the likeliest token; otherwise logits are divided by it before one is drawn.
    pub temperature: f64,
    /// Draws from so many of the likeliest tokens, and those as likely as the last of them; `None` draws from all.
    pub top_k: Option<usize>,
    /// Draws from the likeliest tokens that together have at least this probability; 1 draws from all.
    pub top_p: f64,
    /// Draws from the tokens that have at least this share of the likeliest token's probability; 0 draws from all.
    pub min_p: f64,
    /// Divides the positive logits of tokens that were seen, in the prompt too, and multiplies the negative ones (Keskar et al.
    /// 2019, arXiv:1909.05858); 1 changes nothing.
    pub repetition_penalty: f64,
    /// The seed of the draws: token `n` of a sample takes number `n` of a ChaCha8 generator with the request's stream.
    pub seed: u64,
    /// Tokens that end the text; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// How many samples are generated side by side. It changes speed and memory, never a result.
    pub max_rows: usize,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop_ids: vec![],
            max_rows: 64,
        }
    }
}

impl GenerationConfig {
    /// The part of it that chooses tokens.
    pub fn sampling(&self) -> Sampling {
        let mut sampling = Sampling::default();
        sampling.repetition_penalty = self.repetition_penalty;
        sampling.temperature = self.temperature;
        (sampling.top_k, sampling.top_p, sampling.min_p) = (self.top_k, self.top_p, self.min_p);
        sampling
    }

    /// Holds every option to its range.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the first that is out of range.
    pub fn check(&self) -> Result<()> {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty, max_rows, .. } = *self;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::option("temperature", format!("{temperature} is not a number of at least 0")));
        }
        if top_k == Some(0) {
            return Err(Error::option("top_k", "0 leaves no token to draw from; it is at least 1, or none"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::option("top_p", format!("{top_p} is not in (0, 1]")));
        }
        if !(0.0..=1.0).contains(&min_p) {
            return Err(Error::option("min_p", format!("{min_p} is not in [0, 1]")));
        }
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            return Err(Error::option("repetition_penalty", format!("{repetition_penalty} is not a number above 0")));
        }
        if max_rows == 0 {
            return Err(Error::option("max_rows", "0 samples at a time; it is at least 1"));
        }
        Ok(())
    }
}
