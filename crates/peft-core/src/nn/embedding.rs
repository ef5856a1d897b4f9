//! An embedding that adapters can be attached to.

use super::same_shape;
use crate::{AdapterSlots, BaseWeight, Host, HostKind, HostRole, HostSpec, HostView, Result, WeightLayout};
use candle_core::{Module, Tensor};

/// `y = scale * W[ids]` plus the active adapters: candle-nn's `Embedding` as a host.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Tensor,
    base: BaseWeight,
    role: HostRole,
    scale: f64,
    slots: AdapterSlots,
}

impl Embedding {
    /// An embedding from a weight `(entries, dimensions)`.
    pub fn new(weight: Tensor) -> Self {
        let base = BaseWeight::dense(weight.clone());
        Self { weight, base, role: HostRole::Inner, scale: 1.0, slots: AdapterSlots::default() }
    }

    /// The same layer as the model's token embedding.
    pub fn input_embedding(mut self) -> Self {
        self.role = HostRole::InputEmbedding;
        self
    }

    /// The same layer with its rows multiplied by `scale`, as Gemma does (`embed_scale`).
    pub fn scaled(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        let weight = self.slots.weight().unwrap_or(&self.weight);
        self.slots.forward(HostView::new(weight, WeightLayout::OutIn, None), ids, |ids| {
            let rows = peft_nn::embedding(ids, weight)?;
            if self.scale == 1.0 { Ok(rows) } else { rows * self.scale }
        })
    }
}

impl Host for Embedding {
    fn spec(&self) -> HostSpec {
        let spec = HostSpec::of_weight(HostKind::Embedding, &self.weight, WeightLayout::OutIn);
        HostSpec { role: self.role, embed_scale: self.scale, ..spec }
    }

    fn base(&self) -> &BaseWeight {
        &self.base
    }

    fn bias(&self) -> Option<&Tensor> {
        None
    }

    fn set_base(&mut self, base: BaseWeight, _bias: Option<Tensor>) -> Result<()> {
        self.weight = same_shape(&base, &self.weight)?;
        self.base = base;
        Ok(())
    }

    fn slots(&self) -> &AdapterSlots {
        &self.slots
    }

    fn slots_mut(&mut self) -> &mut AdapterSlots {
        &mut self.slots
    }
}
