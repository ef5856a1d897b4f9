use candle_core::{Result, Tensor};

use super::geometry::Geometry;
use super::visibility::Visibility;
use super::{AttentionOptions, composed, cpu};
use crate::checks::{ensure_dtype, ensure_float};
use crate::graph::{Backward, join};

/// One attention: its operands, detached and as they lie in memory, and what its backward needs.
pub(super) struct Attention {
    pub(super) name: &'static str,
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) geometry: Geometry,
    /// cos and sin, contiguous, in the dtype of the arithmetic, a row for each key.
    pub(super) rotary: Option<(Tensor, Tensor)>,
    pub(super) scale: f64,
    pub(super) visibility: Visibility,
    /// What the forward pass divided by, two numbers for each query; the kernel's only.
    pub(super) normalisers: Option<Tensor>,
}

impl Attention {
    pub(super) fn new(
        name: &'static str,
        [q, k, v]: [&Tensor; 3],
        geometry: Geometry,
        options: &AttentionOptions,
    ) -> Result<Self> {
        ensure_float(name, "query", q)?;
        ensure_dtype(name, "key", k, q.dtype())?;
        ensure_dtype(name, "value", v, q.dtype())?;
        let Geometry { batch, queries, keys, head_dim, .. } = geometry;
        let visibility = Visibility::new(name, options, batch, queries, keys)?;
        let scale = options.scale.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt());
        let [q, k, v] = [q, k, v].map(|operand| with_contiguous_rows(&operand.detach()));
        let (q, k, v) = (q?, k?, v?);
        Ok(Self { name, q, k, v, geometry, rotary: None, scale, visibility, normalisers: None })
    }

    /// Runs the forward pass and joins it to the inputs.
    pub(super) fn apply(mut self, inputs: [&Tensor; 3]) -> Result<Tensor> {
        let value = if self.on_cpu() {
            let (value, normalisers) = cpu::forward(&self)?;
            self.normalisers = Some(normalisers);
            value
        } else {
            composed::forward(&self)?
        };
        join(inputs.map(Some), value, self)
    }

    fn on_cpu(&self) -> bool {
        self.q.device().is_cpu()
    }
}

impl Backward<3> for Attention {
    const NAME: &'static str = "attention";

    fn backward(&self, output: &Tensor, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        match &self.normalisers {
            Some(normalisers) => cpu::backward(self, output, normalisers, grad, wanted),
            None => composed::backward(self, grad, wanted),
        }
    }
}

/// The same tensor, with rows that are contiguous.
pub(super) fn with_contiguous_rows(tensor: &Tensor) -> Result<Tensor> {
    match (tensor.stride().last(), tensor.dims().last()) {
        (Some(&stride), Some(&width)) if stride != 1 && width > 1 => tensor.contiguous(),
        _ => Ok(tensor.clone()),
    }
}
