//! The logarithms of probabilities, one for each token.

use super::targets::{TokenLosses, elements};
use crate::data::Batch;
use crate::error::{Error, Result};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use peft_models::{CausalLanguageModel, Checkpointing};
use peft_nn::CrossEntropyOptions;

/// The log probability that a model gives to each token of a batch after those before it: what losses of policies (PPO, GRPO) and of
/// preferences (DPO) are functions of.
///
/// The first token of a row is predicted by nothing and has none, whatever its label; nor has one labelled
/// [`IGNORE_INDEX`](crate::data::IGNORE_INDEX). The loss is the caller's: it gives its derivative to [`backward`](Self::backward).
///
/// ```no_run
/// # use candle_core::backprop::GradStore;
/// use peft_models::{CausalLanguageModel, Checkpointing};
/// use peft_train::data::Batch;
/// use peft_train::loss::TokenLogProbs;
///
/// /// REINFORCE: the gradients of minus the sum of `advantage * log p`.
/// fn step(model: &impl CausalLanguageModel, batch: &Batch, advantages: &[f64]) -> peft_train::Result<GradStore> {
///     let tokens = TokenLogProbs::of_batch(model, batch, 1.0, Checkpointing::None)?;
///     let rows = tokens.rows().iter().zip(advantages);
///     let coefficients: Vec<f64> = rows.flat_map(|(row, advantage)| vec![-advantage; row.len()]).collect();
///     tokens.backward(&coefficients)
/// }
/// ```
#[derive(Debug, Clone)]
pub struct TokenLogProbs {
    tokens: TokenLosses,
    rows: Vec<Vec<f64>>,
    entropies: Vec<Vec<f64>>,
}

impl TokenLogProbs {
    /// Those of a model on a batch that is padded on the right, of logits divided by `temperature`. As for
    /// [`NextTokenLoss`](super::NextTokenLoss), logits exist some at a time, and `checkpointing` says what the blocks keep.
    ///
    /// # Errors
    /// When the temperature is not a finite number above zero, no token has a label, or the model fails.
    pub fn of_batch(
        model: &(impl CausalLanguageModel + ?Sized),
        batch: &Batch,
        temperature: f64,
        checkpointing: Checkpointing,
    ) -> Result<Self> {
        let scale = temperature.recip();
        if !(temperature > 0.0 && temperature.is_finite() && scale.is_finite()) {
            let message = format!("{temperature} is not a finite number above zero");
            return Err(Error::option("temperature", message));
        }
        let options = CrossEntropyOptions::default().with_logit_scale(scale).with_entropies();
        let tokens = TokenLosses::of_batch(model, batch, checkpointing, options)?;
        let log_probs: Vec<f64> = elements(tokens.losses.per_token())?.into_iter().map(|loss| -loss).collect();
        let entropies = tokens.losses.entropies().map(elements).transpose()?.unwrap_or_default();
        let (rows, entropies) = (tokens.by_row(&log_probs), tokens.by_row(&entropies));
        Ok(Self { tokens, rows, entropies })
    }

    /// The log probabilities, in nats, of the tokens of each row that have one, in their order.
    pub fn rows(&self) -> &[Vec<f64>] {
        &self.rows
    }

    /// The entropies of the distributions that these tokens were predicted by, in nats. No gradient goes through them.
    pub fn entropies(&self) -> &[Vec<f64>] {
        &self.entropies
    }

    /// Number of tokens with a log probability.
    pub fn count(&self) -> usize {
        self.tokens.losses.count()
    }

    /// The gradients of a loss from its derivatives by the log probabilities: one for each token that has one, row by row in their order.
    ///
    /// The gradients of the logits were computed along with the probabilities, for the price of a loss. A second call computes them again.
    ///
    /// # Errors
    /// When there are more or fewer coefficients than tokens, or an operator cannot compute a gradient.
    pub fn backward(&self, coefficients: &[f64]) -> Result<GradStore> {
        if coefficients.len() != self.count() {
            let message = format!("there are {} for {} tokens", coefficients.len(), self.count());
            return Err(Error::option("coefficients", message));
        }
        let mut rest = coefficients.iter();
        // A loss is minus a log probability.
        let of_losses: Vec<f64> = self
            .tokens
            .counted()
            .map(|counted| if counted { -rest.next().copied().unwrap_or(0.0) } else { 0.0 })
            .collect();
        let losses = self.tokens.losses.per_token();
        let grad = Tensor::from_vec(of_losses, losses.shape(), losses.device())?.to_dtype(losses.dtype())?;
        Ok(peft_nn::backward_with(losses, &grad)?)
    }
}
