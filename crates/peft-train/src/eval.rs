//! How well a model predicts a data set.

use crate::data::{Batch, BatchOrder, Dataset};
use crate::error::{Error, Result};
use crate::loss::NextTokenLoss;
use candle_core::Device;
use peft_core::PeftModel;
use peft_models::CausalLanguageModel;
use serde::Serialize;

/// The loss of one row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RowLoss {
    /// The row's line in the data file, counted from 1.
    pub line: usize,
    /// The mean loss per token, in nats.
    pub loss: f64,
    /// Tokens with a loss.
    pub tokens: usize,
}

/// The loss of a data set, over all tokens with a loss and row by row.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// The mean loss per token, in nats: every token counts the same, whatever row it is in.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Tokens with a loss.
    pub tokens: usize,
    /// The rows in file order.
    pub rows: Vec<RowLoss>,
}

/// Evaluates a model on a data set. The model is left in inference mode.
///
/// The result does not depend on `batch_size`, except for what the rounding of a device's kernels makes of other shapes.
///
/// # Errors
/// When the model fails, or names the line of a row whose loss is not finite.
pub fn evaluate<M: CausalLanguageModel>(
    model: &mut PeftModel<M>,
    data: &Dataset,
    batch_size: usize,
) -> Result<Evaluation> {
    model.eval()?;
    let device = model.base().device();
    let order = BatchOrder::new(data.examples().len(), batch_size, None)?;
    let (mut total, mut tokens, mut rows) = (0.0, 0, Vec::with_capacity(data.examples().len()));
    for indices in order.batches_from(0).take(order.batches_per_epoch()) {
        let batch = batch_of(data, &indices, &device)?;
        for (index, sum) in indices.into_iter().zip(NextTokenLoss::of_batch(model.base(), &batch)?.row_sums()?) {
            let example = &data.examples()[index];
            let (line, count) = (example.line, example.target_count());
            if !sum.is_finite() {
                return Err(Error::row(data.path(), line, format!("the loss of this row is {sum}")));
            }
            total += sum;
            tokens += count;
            rows.push(RowLoss { line, loss: sum / count as f64, tokens: count });
        }
    }
    let loss = total / tokens as f64;
    Ok(Evaluation { loss, perplexity: loss.exp(), tokens, rows })
}

/// These rows of a data set side by side.
pub(crate) fn batch_of(data: &Dataset, rows: &[usize], device: &Device) -> Result<Batch> {
    // Any id will do: padding comes after a row, so nothing that counts attends to it.
    const PAD_ID: u32 = 0;
    Batch::collate(rows.iter().map(|&row| &data.examples()[row].encoded), PAD_ID, device)
}
