//! Log-probabilities of completions, computed with each prompt once for all completions of it.

use crate::error::{Error, Result};
use crate::loss::{elements, head_losses};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use peft_models::{CausalLanguageModel, Checkpointing, ForwardOptions};
use peft_nn::{CrossEntropy, CrossEntropyOptions, Packing, embedding};

/// A completion of a prompt, as token ids.
#[derive(Debug, Clone, Copy)]
pub(super) struct Continuation<'a> {
    /// Which prompt it is: those of the same one that follow each other share it.
    pub(super) place: usize,
    pub(super) prompt: &'a [u32],
    /// At least one.
    pub(super) ids: &'a [u32],
}

/// The logarithms of the probabilities of completions' tokens under `softmax(logits / temperature)`.
#[derive(Debug)]
pub(super) struct CompletionLogProbs {
    losses: CrossEntropy,
    /// Tokens of each completion.
    lengths: Vec<usize>,
}

impl CompletionLogProbs {
    /// Those of completions, tracked if the model is in training mode.
    ///
    /// # Errors
    /// When there are none, one is empty, a prompt is, or the model fails.
    pub(super) fn of(
        model: &(impl CausalLanguageModel + ?Sized),
        completions: &[Continuation<'_>],
        temperature: f64,
        checkpointing: Checkpointing,
    ) -> Result<Self> {
        let row = Row::new(completions)?;
        let device = model.device();
        let input = Tensor::new(row.ids.as_slice(), &device)?.unsqueeze(0)?;
        let options = ForwardOptions::all().with_packing(row.packing).with_checkpointing(checkpointing);
        let hidden = model.hidden(&input, options)?.squeeze(0)?;
        let hidden = embedding(&Tensor::new(row.predictors, &device)?, &hidden)?;
        let options = CrossEntropyOptions::default().with_logit_scale(1.0 / temperature);
        let losses = head_losses(model.head(), &hidden, &Tensor::new(row.labels, &device)?, options)?;
        Ok(Self { losses, lengths: completions.iter().map(|completion| completion.ids.len()).collect() })
    }

    /// The values, completion by completion.
    pub(super) fn values(&self) -> Result<Vec<Vec<f64>>> {
        let losses = elements(self.losses.per_token())?;
        let mut rest = losses.as_slice();
        let of_completion = |length: &usize| {
            let (of_completion, after) = rest.split_at((*length).min(rest.len()));
            rest = after;
            of_completion.iter().map(|loss| -loss).collect()
        };
        Ok(self.lengths.iter().map(of_completion).collect())
    }

    /// The gradients of a function with these slopes by the values, completion by completion.
    pub(super) fn backward(&self, slopes: &[Vec<f64>]) -> Result<GradStore> {
        let losses = self.losses.per_token();
        let slopes: Vec<f64> = slopes.iter().flatten().map(|slope| -slope).collect();
        let grad = Tensor::from_vec(slopes, losses.dims(), &Device::Cpu)?.to_dtype(losses.dtype())?;
        Ok(peft_nn::backward_with(losses, &grad.to_device(losses.device())?)?)
    }
}

/// Completions and their prompts side by side.
struct Row {
    ids: Vec<u32>,
    packing: Packing,
    /// For each token of a completion the place of the token before it.
    predictors: Vec<u32>,
    labels: Vec<i64>,
}

impl Row {
    fn new(completions: &[Continuation<'_>]) -> Result<Self> {
        let (mut ids, mut groups) = (Vec::new(), Vec::<(usize, Vec<usize>)>::new());
        let (mut predictors, mut labels) = (Vec::new(), Vec::new());
        let mut prompt_end = 0;
        for (index, completion) in completions.iter().enumerate() {
            if completion.prompt.is_empty() || completion.ids.is_empty() {
                return Err(Error::option("prompt", "a prompt or a completion has no tokens"));
            }
            let is_new = index == 0 || completions[index - 1].place != completion.place;
            if is_new {
                ids.extend_from_slice(completion.prompt);
                groups.push((completion.prompt.len(), Vec::new()));
                prompt_end = ids.len();
            }
            let start = ids.len();
            ids.extend_from_slice(completion.ids);
            if let Some((_, branches)) = groups.last_mut() {
                branches.push(completion.ids.len());
            }
            predictors.push(prompt_end as u32 - 1);
            predictors.extend(start as u32..ids.len() as u32 - 1);
            labels.extend(completion.ids.iter().map(|id| i64::from(*id)));
        }
        Ok(Self { ids, packing: Packing::new(groups), predictors, labels })
    }
}
