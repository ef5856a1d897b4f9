//! A linear layer that adapters can be attached to.

use super::same_shape;
use crate::slots::OnlyChange;
use crate::{AdapterSlots, BaseWeight, Host, HostKind, HostRole, HostSpec, HostView, LowRank, Result, WeightLayout};
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

/// What a [`Linear`] computes where it is one linear map: `x (W + change)^T + bias`.
///
/// Its tensors are tracked in training as far as they are trained.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LinearMap<'a> {
    /// The layer's own weight, or the one an active adapter brought along.
    pub weight: &'a Tensor,
    /// How the weight is stored.
    pub layout: WeightLayout,
    /// The layer's own bias, or the one an active adapter brought along.
    pub bias: Option<&'a Tensor>,
    /// What the active adapter adds to the weight.
    pub change: Option<LowRank>,
}

impl Linear {
    /// The layer as one linear map, for operators that do more than this layer in one step. `None` where it is not one: with several
    /// active adapters here, with one that drops a part of its input in training, or one that does something else to the layer.
    ///
    /// # Errors
    /// When an adapter cannot compute its change.
    pub fn map(&self) -> candle_core::Result<Option<LinearMap<'_>>> {
        let change = match self.slots.only_change()? {
            OnlyChange::None => None,
            OnlyChange::LowRank(change) => Some(change),
            OnlyChange::More => return Ok(None),
        };
        Ok(Some(LinearMap {
            weight: self.effective_weight(),
            layout: self.layout,
            bias: self.effective_bias(),
            change,
        }))
    }

    fn effective_weight(&self) -> &Tensor {
        self.slots.weight().unwrap_or(&self.weight)
    }

    fn effective_bias(&self) -> Option<&Tensor> {
        self.slots.bias().or(self.bias.as_ref())
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.slots.forward_linear(HostView::new(self.effective_weight(), self.layout, self.effective_bias()), xs)
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
