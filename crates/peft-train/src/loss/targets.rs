//! Which tokens are predicted, and the losses of a model at them.

use crate::data::{Batch, IGNORE_INDEX};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Module, Tensor};
use peft_core::nn::Linear;
use peft_models::{CausalLanguageModel, Checkpointing, ForwardOptions};
use peft_nn::{CrossEntropy, CrossEntropyOptions, OutputHead};

/// The losses of a batch, `(batch, length)`: each position's is that of the token after it, and zero where none has a loss.
#[derive(Debug, Clone)]
pub(super) struct TokenLosses {
    pub(super) losses: CrossEntropy,
    /// The token that each position predicts, row by row; [`IGNORE_INDEX`] where none has a loss.
    targets: Vec<i64>,
    row_length: usize,
}

impl TokenLosses {
    pub(super) fn of_batch(
        model: &(impl CausalLanguageModel + ?Sized),
        batch: &Batch,
        checkpointing: Checkpointing,
        options: CrossEntropyOptions,
    ) -> Result<Self> {
        // Before the model runs for nothing.
        let targets = targets(&batch.labels)?;
        let hidden = model.hidden(&batch.input_ids, ForwardOptions::all().with_checkpointing(checkpointing))?;
        Self::at(targets, &batch.labels, &hidden, |labels| head_losses(model.head(), &hidden, labels, options))
    }

    pub(super) fn of_logits(logits: &Tensor, labels: &Tensor, options: CrossEntropyOptions) -> Result<Self> {
        Self::at(targets(labels)?, labels, logits, |labels| peft_nn::cross_entropy_with(logits, labels, options))
    }

    /// The losses that `of` computes for these targets from what a model made of each position, `(batch, length, n)`.
    fn at(
        targets: Vec<i64>,
        labels: &Tensor,
        xs: &Tensor,
        of: impl FnOnce(&Tensor) -> candle_core::Result<CrossEntropy>,
    ) -> Result<Self> {
        let (batch, row_length, _) = xs.dims3()?;
        if [batch, row_length] != labels.dims() {
            let message = format!("its labels are {:?}, but the model's output is {:?}", labels.dims(), xs.dims());
            return Err(Error::option("batch", message));
        }
        let losses = of(&Tensor::from_slice(&targets, (batch, row_length), labels.device())?)?;
        Ok(Self { losses, targets, row_length })
    }

    /// Positions in a row.
    pub(super) fn row_length(&self) -> usize {
        self.row_length
    }

    /// Those of the values of all positions that belong to a loss, by row.
    pub(super) fn by_row(&self, values: &[f64]) -> Vec<Vec<f64>> {
        let length = self.row_length.max(1);
        let rows = self.targets.chunks(length).zip(values.chunks(length));
        let counted = |(target, value): (&i64, &f64)| (*target != IGNORE_INDEX).then_some(*value);
        rows.map(|(targets, values)| targets.iter().zip(values).filter_map(counted).collect()).collect()
    }

    /// For each position, row by row, whether it has a loss.
    pub(super) fn counted(&self) -> impl Iterator<Item = bool> {
        self.targets.iter().map(|target| *target != IGNORE_INDEX)
    }
}

/// The labels one position earlier, row by row, [`IGNORE_INDEX`] at the last.
fn targets(labels: &Tensor) -> Result<Vec<i64>> {
    let mut targets = Vec::with_capacity(labels.elem_count());
    for row in labels.to_device(&Device::Cpu)?.to_vec2::<i64>()? {
        targets.extend(row.into_iter().skip(1).chain([IGNORE_INDEX]));
    }
    if targets.iter().all(|target| *target == IGNORE_INDEX) {
        return Err(Error::option("batch", "no token of it has a loss"));
    }
    Ok(targets)
}

/// The losses of hidden states: logits exist as a whole only if the head is more than one linear map.
pub(crate) fn head_losses(
    head: &Linear,
    hidden: &Tensor,
    labels: &Tensor,
    options: CrossEntropyOptions,
) -> candle_core::Result<CrossEntropy> {
    // Another dtype than that of the weight is for the adapter itself to convert.
    let map = head.map()?.filter(|map| map.change.as_ref().is_none_or(|change| change.fits(hidden.dtype())));
    let Some(map) = map else { return peft_nn::cross_entropy_with(&head.forward(hidden)?, labels, options) };
    let head = OutputHead::new(map.weight, map.layout).with_bias(map.bias).with_low_rank(map.change.as_ref());
    let head = head.with_logit_scale(options.logit_scale);
    let head = if options.entropies { head.with_entropies() } else { head };
    head.cross_entropy(hidden, labels, options.ignore_index)
}

/// The elements of losses as they lie, without a graph.
pub(crate) fn elements(losses: &Tensor) -> Result<Vec<f64>> {
    Ok(losses.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}
