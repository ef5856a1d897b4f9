//! A linear layer that adapters can be attached to.

use super::same_shape;
use crate::{AdapterSlots, BaseWeight, Host, HostKind, HostRole, HostSpec, HostView, Result, WeightLayout};
use candle_core::{Module, Tensor};

/// `y = x W^T + b` plus the active adapters: candle-nn's `Linear`, and GPT-2's Conv1D, as a host.
///
/// A frozen weight (one that is not a variable) gets no gradient and costs none.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    base: BaseWeight,
    bias: Option<Tensor>,
    layout: WeightLayout,
    role: HostRole,
    slots: AdapterSlots,
}

impl Linear {
    /// A layer from a weight `(out, in)` and a bias `(out)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::with_layout(weight, bias, WeightLayout::OutIn)
    }

    /// A layer from a weight stored `(in, out)`, as GPT-2's Conv1D has it.
    pub fn from_transposed(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::with_layout(weight, bias, WeightLayout::InOut)
    }

    fn with_layout(weight: Tensor, bias: Option<Tensor>, layout: WeightLayout) -> Self {
        let base = BaseWeight::Dense { weight: weight.clone(), layout };
        Self { weight, base, bias, layout, role: HostRole::Inner, slots: AdapterSlots::default() }
    }

    /// The same layer as the model's output head, which `all-linear` leaves out.
    pub fn output_head(mut self) -> Self {
        self.role = HostRole::OutputHead;
        self
    }
}

impl Linear {
    /// Weight, its layout and bias, where they alone are what the layer computes with and nothing of it is trained: for operators
    /// that do more than this layer in one step.
    pub fn frozen(&self) -> Option<(&Tensor, WeightLayout, Option<&Tensor>)> {
        let trained = self.weight.track_op() || self.bias.as_ref().is_some_and(Tensor::track_op);
        (!self.slots.is_live() && !trained).then_some((&self.weight, self.layout, self.bias.as_ref()))
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let weight = self.slots.weight().unwrap_or(&self.weight);
        let bias = self.slots.bias().or(self.bias.as_ref());
        self.slots.forward_linear(HostView::new(weight, self.layout, bias), xs)
    }
}

impl Host for Linear {
    fn spec(&self) -> HostSpec {
        HostSpec { role: self.role, ..HostSpec::of_weight(HostKind::Linear, &self.weight, self.layout) }
    }

    fn base(&self) -> &BaseWeight {
        &self.base
    }

    fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    fn set_base(&mut self, base: BaseWeight, bias: Option<Tensor>) -> Result<()> {
        self.weight = same_shape(&base, &self.weight)?;
        self.base = base;
        self.bias = bias;
        Ok(())
    }

    fn slots(&self) -> &AdapterSlots {
        &self.slots
    }

    fn slots_mut(&mut self) -> &mut AdapterSlots {
        &mut self.slots
    }
}
