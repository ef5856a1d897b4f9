//! DoRA's magnitudes: the lengths that the rows of a weight have, whatever direction LoRA turns them to.

use candle_core::{D, DType, Result as CandleResult, Tensor, TensorId};
use peft_core::{BaseWeight, HostKind, HostView, LoraFactors, Mode, Param, Result, WeightLayout};
use peft_nn::{div_frozen, linear, mul_frozen};

/// Rows of a weight that are widened to f64 at a time when their squares are summed.
const CHUNK: usize = 512;

/// Trained lengths of a weight's rows, or of an embedding's columns.
#[derive(Debug)]
pub(crate) struct Magnitude {
    kind: HostKind,
    /// `(rows)`, for an embedding `(cols)`.
    lengths: Param,
    /// The squared lengths that the host's own weight has, and which tensor that is. A frozen weight's do not change.
    own: Option<(TensorId, Tensor)>,
}

impl Magnitude {
    pub(crate) fn new(kind: HostKind, lengths: Param, base: &BaseWeight) -> Result<Self> {
        let own = match base {
            BaseWeight::Absent => None,
            base => {
                let squares = squares(kind, &base.canonical()?, lengths.read(Mode::Infer).dtype())?;
                Some((base.stored()?.id(), squares))
            }
        };
        Ok(Self { kind, lengths, own })
    }

    /// The lengths of the rows (columns) of `weight + scale b a`, without making that sum:
    /// `|w + d|^2 = |w|^2 + 2 w.d + |d|^2`, and the last two need the products of the small factors alone.
    pub(crate) fn lengths(kind: HostKind, weight: &Tensor, delta: &LoraFactors) -> CandleResult<Tensor> {
        Self::lengths_from(kind, squares(kind, weight, delta.a.dtype())?, weight, delta)
    }

    fn lengths_from(kind: HostKind, squares: Tensor, weight: &Tensor, delta: &LoraFactors) -> CandleResult<Tensor> {
        // Both `(r, ..)`: one runs along a length, the other across all of them.
        let (along, across, layout) = match kind {
            HostKind::Embedding => (delta.b.t()?.contiguous()?, delta.a.contiguous()?, WeightLayout::InOut),
            _ => (delta.a.contiguous()?, delta.b.t()?.contiguous()?, WeightLayout::OutIn),
        };
        let weight = weight.to_dtype(along.dtype())?;
        let with_weight = (linear(&along, &weight, layout, None)? * (2.0 * delta.scale))?;
        let gram = along.matmul(&along.t()?)?;
        let with_itself = (gram.matmul(&across)? * (delta.scale * delta.scale))?;
        let change = ((with_weight + with_itself)? * across)?.sum(0)?;
        // Rounding can make a length that ought to be zero the root of a negative number.
        (squares + change)?.relu()?.sqrt()
    }

    /// What each row (column) is multiplied with: its trained length over the one it has, which counts as a constant in
    /// the backward pass (section 4.3 of the paper).
    pub(crate) fn gain(&self, host: HostView<'_>, delta: &LoraFactors, mode: Mode) -> CandleResult<Tensor> {
        let weight = host.weight()?.detach();
        let squares = match &self.own {
            Some((id, squares)) if host.own_weight() == Some(*id) => squares.clone(),
            _ => squares(self.kind, &weight, delta.a.dtype())?,
        };
        let lengths = Self::lengths_from(self.kind, squares, &weight, delta)?;
        div_frozen(self.lengths.read(mode), &lengths)
    }

    /// A linear layer's output with its rows normalised: `b + gain * (W x + change)`.
    ///
    /// `output` is `W x + b`. Under dropout PEFT normalises what the layer makes of the `masked` input as well, and so does this.
    pub(crate) fn adapt(
        &self,
        host: HostView<'_>,
        masked: Option<&Tensor>,
        output: Tensor,
        change: &Tensor,
        gain: &Tensor,
        mode: Mode,
    ) -> CandleResult<Tensor> {
        if let Some(masked) = masked {
            let weight = host.weight()?.detach().to_dtype(masked.dtype())?;
            let plain = linear(masked, &weight, WeightLayout::OutIn, None)?;
            let turned = (&plain + change)?.broadcast_mul(gain)?;
            // In this order nothing is left, not even a rounding, where the adapter changes nothing.
            return output + (turned - plain)?;
        }
        let turned = (output + change)?.broadcast_mul(gain)?;
        match host.bias(mode)? {
            None => Ok(turned),
            Some(bias) => {
                let bias = bias.to_dtype(gain.dtype())?;
                let rest = gain.affine(-1.0, 1.0)?;
                let kept = if bias.track_op() { (rest * bias)? } else { mul_frozen(&rest, &bias)? };
                turned.broadcast_add(&kept)
            }
        }
    }

    /// The change of a weight `(rows, cols)` to `gain * (base + delta)`.
    pub(crate) fn normalised(&self, base: &Tensor, delta: &Tensor) -> Result<Tensor> {
        let base = base.to_dtype(delta.dtype())?;
        let turned = (&base + delta)?;
        let lengths = squares(self.kind, &turned, delta.dtype())?.sqrt()?;
        let gain = (self.lengths.read(Mode::Infer) / lengths)?;
        let gain = if self.kind == HostKind::Embedding { gain } else { gain.unsqueeze(1)? };
        Ok((turned.broadcast_mul(&gain)? - base)?)
    }
}

/// The squared lengths of a weight's rows, or of an embedding's columns, summed in f64.
fn squares(kind: HostKind, weight: &Tensor, dtype: DType) -> CandleResult<Tensor> {
    let rows = weight.dim(0)?;
    let chunk = |start: usize| weight.narrow(0, start, CHUNK.min(rows - start))?.to_dtype(DType::F64)?.sqr();
    let starts = (0..rows).step_by(CHUNK);
    let sums = match kind {
        HostKind::Embedding => {
            let columns = starts.map(|start| chunk(start)?.sum(0)).collect::<CandleResult<Vec<_>>>()?;
            Tensor::stack(&columns, 0)?.sum(0)?
        }
        _ => Tensor::cat(&starts.map(|start| chunk(start)?.sum(D::Minus1)).collect::<CandleResult<Vec<_>>>()?, 0)?,
    };
    sums.to_dtype(dtype)
}
