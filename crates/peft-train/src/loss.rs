//! The loss of next-token prediction.

use crate::data::{Batch, IGNORE_INDEX};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Module, Tensor};
use peft_models::{CausalLanguageModel, ForwardOptions};
use peft_nn::CrossEntropy;

/// The cross-entropy of a batch: each token is predicted from those before it.
///
/// The first token of a row is predicted by nothing and has no loss, whatever its label; nor has one labelled
/// [`IGNORE_INDEX`].
#[derive(Debug, Clone)]
pub struct NextTokenLoss {
    /// One loss per token that has one, row by row.
    losses: CrossEntropy,
    row_counts: Vec<usize>,
}

impl NextTokenLoss {
    /// The loss of a model on a batch that is padded on the right. Logits are computed only where they are needed, and for a frozen
    /// head without adapters some at a time.
    ///
    /// # Errors
    /// When no token has a loss, or the model fails.
    pub fn of_batch(model: &(impl CausalLanguageModel + ?Sized), batch: &Batch) -> Result<Self> {
        let hidden = model.hidden(&batch.input_ids, ForwardOptions::all())?;
        let targets = Targets::new(&batch.labels)?;
        let (hidden, head) = (targets.select(&hidden)?, model.head());
        match head.frozen() {
            Some((weight, layout, bias)) => {
                let losses =
                    peft_nn::linear_cross_entropy(&hidden, weight, layout, bias, &targets.labels, IGNORE_INDEX)?;
                Ok(Self { losses, row_counts: targets.row_counts })
            }
            None => targets.loss(&head.forward(&hidden)?),
        }
    }

    /// The loss of `logits`, `(batch, length, vocabulary)`, for `labels` aligned to the input, `(batch, length)`, i64.
    ///
    /// # Errors
    /// When no token has a loss, the shapes do not agree or a label is outside the vocabulary.
    pub fn of_logits(logits: &Tensor, labels: &Tensor) -> Result<Self> {
        let targets = Targets::new(labels)?;
        let logits = targets.select(logits)?;
        targets.loss(&logits)
    }

    /// Number of tokens with a loss.
    pub fn count(&self) -> usize {
        self.losses.count()
    }

    /// The sum over all tokens with a loss, in nats: a scalar, tracked if the model is in training mode.
    pub fn sum(&self) -> Result<Tensor> {
        Ok(self.losses.sum()?)
    }

    /// The mean over all tokens with a loss, in nats: a scalar, tracked if the model is in training mode.
    pub fn mean(&self) -> Result<Tensor> {
        Ok(self.losses.mean()?)
    }

    /// The sum of each row, in nats, added up in f64: the rows beside it do not change it.
    pub fn row_sums(&self) -> Result<Vec<f64>> {
        let losses =
            self.losses.per_token().detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let mut rest = losses.as_slice();
        let mut sums = Vec::with_capacity(self.row_counts.len());
        for &count in &self.row_counts {
            let (row, after) = rest.split_at(count.min(rest.len()));
            sums.push(row.iter().sum());
            rest = after;
        }
        Ok(sums)
    }
}

/// The positions that predict a token with a loss, in the flattened batch, and those tokens.
struct Targets {
    shape: (usize, usize),
    positions: Tensor,
    labels: Tensor,
    row_counts: Vec<usize>,
}

impl Targets {
    fn new(labels: &Tensor) -> Result<Self> {
        let (batch, length) = labels.dims2()?;
        let (mut positions, mut targets, mut row_counts) = (Vec::new(), Vec::new(), Vec::with_capacity(batch));
        for (row, labels) in labels.to_device(&Device::Cpu)?.to_vec2::<i64>()?.iter().enumerate() {
            let before = targets.len();
            for (column, &label) in labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORE_INDEX) {
                positions.push((row * length + column - 1) as i64);
                targets.push(label);
            }
            row_counts.push(targets.len() - before);
        }
        let count = targets.len();
        if count == 0 {
            return Err(Error::option("batch", "no token of it has a loss"));
        }
        let positions = Tensor::from_vec(positions, count, labels.device())?;
        Ok(Self {
            shape: (batch, length),
            positions,
            labels: Tensor::from_vec(targets, count, labels.device())?,
            row_counts,
        })
    }

    /// The vectors at these positions, `(count, n)`, of a tensor `(batch, length, n)`.
    fn select(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, length, width) = xs.dims3()?;
        if (batch, length) != self.shape {
            let message = format!("its labels are {:?}, but the model's output is {:?}", self.shape, xs.dims());
            return Err(Error::option("batch", message));
        }
        Ok(xs.reshape((batch * length, width))?.index_select(&self.positions, 0)?)
    }

    fn loss(self, logits: &Tensor) -> Result<NextTokenLoss> {
        let losses = peft_nn::cross_entropy(logits, &self.labels, IGNORE_INDEX)?;
        Ok(NextTokenLoss { losses, row_counts: self.row_counts })
    }
}
