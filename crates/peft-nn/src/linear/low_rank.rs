use candle_core::{DType, Result, Tensor, bail};

use crate::checks::ensure_shape;

/// A change of a weight as a product of small matrices: `scale * B M A`.
///
/// LoRA (Hu et al. 2021, arXiv:2106.09685) trains A and B; LoRA-XS and TinyLoRA freeze them and train what M is made of.
/// All have one dtype: that of the input, or f32 beside a 16-bit input.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LowRank {
    /// `(r, in_features)`
    pub a: Tensor,
    /// `(out_features, r)`
    pub b: Tensor,
    /// `(r, r)`; the identity if there is none.
    pub mixing: Option<Tensor>,
    /// What the product is multiplied with.
    pub scale: f64,
}

impl LowRank {
    /// `B A`.
    pub fn new(a: Tensor, b: Tensor) -> Self {
        Self { a, b, mixing: None, scale: 1.0 }
    }

    /// The same with `scale` in front.
    #[must_use]
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// The same with `mixing`, `(r, r)`, between the factors.
    #[must_use]
    pub fn with_mixing(mut self, mixing: Tensor) -> Self {
        self.mixing = Some(mixing);
        self
    }

    /// Whether the dtypes are ones that go with an input of this one.
    pub fn fits(&self, input: DType) -> bool {
        let of_a = self.a.dtype();
        let beside = of_a == DType::F32 && matches!(input, DType::BF16 | DType::F16);
        (of_a == input || beside) && self.tensors().all(|(_, tensor)| tensor.dtype() == of_a)
    }

    /// The tensors there are, by the names of their fields.
    fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        [("a", Some(&self.a)), ("b", Some(&self.b)), ("mixing", self.mixing.as_ref())]
            .into_iter()
            .filter_map(|(name, tensor)| Some((name, tensor?)))
    }

    pub(crate) fn check(&self, op: &str, input: DType, out_features: usize, in_features: usize) -> Result<()> {
        let r = match self.a.dims() {
            &[r, _] => r,
            dims => bail!("{op}: `a` of a low-rank change is (r, in_features), got {dims:?}"),
        };
        ensure_shape(op, "`a` of a low-rank change", &self.a, &[r, in_features])?;
        ensure_shape(op, "`b` of a low-rank change", &self.b, &[out_features, r])?;
        if let Some(mixing) = &self.mixing {
            ensure_shape(op, "`mixing` of a low-rank change", mixing, &[r, r])?;
        }
        if !self.fits(input) {
            let dtypes: Vec<_> =
                self.tensors().map(|(name, tensor)| format!("{name} {}", tensor.dtype().as_str())).collect();
            bail!("{op}: a low-rank change of {} does not go with an input of {}", dtypes.join(", "), input.as_str());
        }
        Ok(())
    }
}

/// A [`LowRank`] without a graph, contiguous, and what the forward pass made with it.
pub(super) struct Change {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) mixing: Option<Tensor>,
    pub(super) scale: f64,
    /// `x A^T`, `(rows, r)`, kept by the kernel.
    pub(super) low: Vec<f32>,
}

impl Change {
    pub(super) fn of(change: &LowRank) -> Result<Self> {
        let own = |tensor: &Tensor| tensor.detach().contiguous();
        Ok(Self {
            a: own(&change.a)?,
            b: own(&change.b)?,
            mixing: change.mixing.as_ref().map(own).transpose()?,
            scale: change.scale,
            low: Vec::new(),
        })
    }

    pub(super) fn rank(&self) -> Result<usize> {
        self.a.dim(0)
    }
}
