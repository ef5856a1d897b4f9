//! Tokens drawn from logits.

mod choose;
mod row;
#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::cpu::gemm::Scratch;
use crate::cpu::{ELEMENTS_PER_TASK, Element, read};
use row::Row;

const NAME: &str = "sample";

/// How a token is chosen: in this order, with the definitions of transformers' logits processors of these names.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Divides the positive logits of tokens that were seen and multiplies the negative ones (Keskar et al. 2019, arXiv:1909.05858);
    /// 1 changes nothing.
    pub repetition_penalty: f64,
    /// Divides the logits. 0 takes the likeliest token, the first of several, and nothing below counts.
    pub temperature: f64,
    /// Keeps so many of the likeliest tokens, and those as likely as the last of them.
    pub top_k: Option<usize>,
    /// Keeps the fewest of the likeliest tokens that together have at least this share of the probability (Holtzman et al. 2020,
    /// arXiv:1904.09751); 1 keeps all.
    pub top_p: f64,
    /// Keeps the tokens that have at least this share of the likeliest one's probability (Nguyen et al. 2024, arXiv:2407.01082); 0 keeps
    /// all.
    pub min_p: f64,
}

impl Default for Sampling {
    /// The distribution of the model.
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0 }
    }
}

/// A token to be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw<'a> {
    /// From which row of the logits.
    pub row: usize,
    /// In [0, 1): the smallest id whose share of the kept probabilities, with those of all ids before it, exceeds this.
    pub uniform: f64,
    /// The ids that `repetition_penalty` is for.
    pub seen: &'a [u32],
}

/// A drawn token.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Sampled {
    /// Which one.
    pub id: u32,
    /// The logarithm of its probability under `softmax(logits / temperature)`, in nats: of all tokens, before a penalty or a cut. Where the
    /// likeliest token is taken the temperature is 1 here.
    pub log_prob: f32,
    /// The entropy of that distribution, in nats.
    pub entropy: f32,
}

/// Draws tokens from rows of `logits`, `(rows, vocabulary)` of any float dtype; what is drawn follows from the row and the draw alone.
///
/// Neither a greedy token nor one of all sorts anything; `top_k` and `top_p` sort what is left of the vocabulary when all that they
/// surely cut is gone.
///
/// # Errors
/// When a draw names a row or an id that is not there, a logit is NaN, or no token has a probability.
pub fn sample(logits: &Tensor, sampling: &Sampling, draws: &[Draw<'_>]) -> Result<Vec<Sampled>> {
    let &[rows, vocabulary] = logits.dims() else {
        bail!("{NAME}: the logits are (rows, vocabulary), got {:?}", logits.dims())
    };
    if let Some(draw) = draws.iter().find(|draw| draw.row >= rows) {
        bail!("{NAME}: a draw from row {} of {rows} rows of logits", draw.row);
    }
    if let Some(id) = draws.iter().flat_map(|draw| draw.seen).find(|id| **id as usize >= vocabulary) {
        bail!("{NAME}: token id {id} was seen, but the vocabulary has {vocabulary} entries");
    }
    let logits = logits.detach().to_device(&Device::Cpu)?.contiguous()?;
    let elements = read(&logits)?;
    match logits.dtype() {
        DType::F32 => {
            let elements = elements.as_slice::<f32>()?;
            from_rows(vocabulary, sampling, draws, |draw, f| f(&elements[draw.row * vocabulary..][..vocabulary]))
        }
        DType::BF16 => from_sixteen_bit(elements.as_slice::<bf16>()?, vocabulary, sampling, draws),
        DType::F16 => from_sixteen_bit(elements.as_slice::<f16>()?, vocabulary, sampling, draws),
        DType::F64 => {
            let narrow: Vec<f32> = elements.as_slice::<f64>()?.iter().map(|logit| *logit as f32).collect();
            from_rows(vocabulary, sampling, draws, |draw, f| f(&narrow[draw.row * vocabulary..][..vocabulary]))
        }
        other => bail!("{NAME}: the logits are {}, expected one of f32, f64, bf16, f16", other.as_str()),
    }
}

fn from_sixteen_bit<T: Element<Acc = f32>>(
    elements: &[T],
    vocabulary: usize,
    sampling: &Sampling,
    draws: &[Draw<'_>],
) -> Result<Vec<Sampled>> {
    from_rows(vocabulary, sampling, draws, |draw, f| {
        let mut wide = Scratch::new(vocabulary);
        wide.iter_mut().zip(&elements[draw.row * vocabulary..]).for_each(|(wide, logit)| *wide = logit.widen());
        f(&wide)
    })
}

/// `with_row` calls its argument with the logits of a draw's row.
fn from_rows(
    vocabulary: usize,
    sampling: &Sampling,
    draws: &[Draw<'_>],
    with_row: impl Fn(&Draw<'_>, &dyn Fn(&[f32]) -> Result<Sampled>) -> Result<Sampled> + Sync,
) -> Result<Vec<Sampled>> {
    let one = |draw: &Draw<'_>| with_row(draw, &|logits| sample_row(logits, sampling, draw));
    let results: Vec<Result<Sampled>> = if draws.len() * vocabulary <= ELEMENTS_PER_TASK {
        draws.iter().map(one).collect()
    } else {
        draws.par_iter().with_max_len(1).map(one).collect()
    };
    // The first error in the order of the draws, whichever came first.
    results.into_iter().collect()
}

fn sample_row(logits: &[f32], sampling: &Sampling, draw: &Draw<'_>) -> Result<Sampled> {
    let greedy = sampling.temperature == 0.0;
    let temperature = if greedy { 1.0 } else { sampling.temperature };
    let mut finite = None;
    let row = match Row::new(logits, temperature) {
        Some(row) => row,
        None => {
            let finite = finite.insert(without_infinity(logits)?);
            let Some(row) = Row::new(finite, temperature) else {
                bail!("{NAME}: the model gives no token a probability")
            };
            row
        }
    };
    let id = if sampling.repetition_penalty == 1.0 || draw.seen.is_empty() {
        choose::token(&row, sampling, draw.uniform)
    } else {
        let mut scores = Scratch::new(logits.len());
        scores.copy_from_slice(row.logits);
        for &id in draw.seen {
            // Of the logit itself: an id that was seen twice is punished once.
            let logit = f64::from(row.logits[id as usize]);
            let penalty = sampling.repetition_penalty;
            scores[id as usize] = if logit < 0.0 { logit * penalty } else { logit / penalty } as f32;
        }
        match Row::new(&scores, temperature) {
            Some(scores) => choose::token(&scores, sampling, draw.uniform),
            None => bail!("{NAME}: the penalty leaves no token a probability"),
        }
    };
    Ok(Sampled { id: id as u32, log_prob: row.log_prob(id) as f32, entropy: row.entropy() as f32 })
}

/// Logits of the same distribution where some are infinite, of which all others are nothing beside.
fn without_infinity(logits: &[f32]) -> Result<Scratch> {
    if let Some(id) = logits.iter().position(|logit| logit.is_nan()) {
        bail!("{NAME}: the logit of token {id} is NaN");
    }
    let mut finite = Scratch::new(logits.len());
    for (finite, &logit) in finite.iter_mut().zip(logits) {
        *finite = if logit == f32::INFINITY { 0.0 } else { f32::NEG_INFINITY };
    }
    Ok(finite)
}
