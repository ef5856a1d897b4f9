use candle_core::{Result, Tensor, bail};

/// How a linear layer's weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// `(out_features, in_features)`: `torch.nn.Linear`.
    OutIn,
    /// `(in_features, out_features)`: the `Conv1D` of GPT-2.
    InOut,
}

impl WeightLayout {
    /// `(out_features, in_features)` of a weight stored this way. An error unless it is a matrix.
    pub fn features(self, weight: &Tensor) -> Result<(usize, usize)> {
        match (self, weight.dims()) {
            (Self::OutIn, &[out_features, in_features]) => Ok((out_features, in_features)),
            (Self::InOut, &[in_features, out_features]) => Ok((out_features, in_features)),
            (_, dims) => bail!("a linear weight has two dimensions, got {dims:?}"),
        }
    }

    /// A view of a weight stored this way as `(out_features, in_features)`. The same call turns a matrix in that
    /// orientation into one stored this way.
    pub fn out_in(self, weight: &Tensor) -> Result<Tensor> {
        self.features(weight)?;
        match self {
            Self::OutIn => Ok(weight.clone()),
            Self::InOut => weight.t(),
        }
    }
}
