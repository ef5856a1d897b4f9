//! Normalisation layers as hosts, so that they can be named in `modules_to_save` and their biases trained.

use super::same_shape;
use crate::{AdapterSlots, BaseWeight, Host, HostKind, HostSpec, Result, WeightLayout};
use candle_core::{Module, Tensor};

/// RMSNorm with gradients: `y = x / sqrt(mean(x^2) + eps) * w`.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    base: BaseWeight,
    eps: f64,
    slots: AdapterSlots,
}

impl RmsNorm {
    /// A norm from its weight, one number per feature.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { base: BaseWeight::dense(weight.clone()), weight, eps, slots: AdapterSlots::default() }
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        peft_nn::rms_norm(xs, self.slots.weight().unwrap_or(&self.weight), self.eps)
    }
}

/// LayerNorm with gradients: `y = (x - mean(x)) / sqrt(var(x) + eps) * w + b`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    base: BaseWeight,
    bias: Option<Tensor>,
    eps: f64,
    slots: AdapterSlots,
}

impl LayerNorm {
    /// A norm from its weight and bias, one number per feature each.
    pub fn new(weight: Tensor, bias: Option<Tensor>, eps: f64) -> Self {
        Self { base: BaseWeight::dense(weight.clone()), weight, bias, eps, slots: AdapterSlots::default() }
    }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let weight = self.slots.weight().unwrap_or(&self.weight);
        peft_nn::layer_norm(xs, weight, self.slots.bias().or(self.bias.as_ref()), self.eps)
    }
}

/// What both norms say of themselves.
macro_rules! norm_host {
    ($norm:ty, $bias:expr, $set_bias:expr) => {
        impl Host for $norm {
            fn spec(&self) -> HostSpec {
                HostSpec::of_weight(HostKind::Norm, &self.weight, WeightLayout::OutIn)
            }

            fn base(&self) -> &BaseWeight {
                &self.base
            }

            fn bias(&self) -> Option<&Tensor> {
                let bias: fn(&$norm) -> Option<&Tensor> = $bias;
                bias(self)
            }

            fn set_base(&mut self, base: BaseWeight, bias: Option<Tensor>) -> Result<()> {
                self.weight = same_shape(&base, &self.weight)?;
                self.base = base;
                let set_bias: fn(&mut $norm, Option<Tensor>) = $set_bias;
                set_bias(self, bias);
                Ok(())
            }

            fn slots(&self) -> &AdapterSlots {
                &self.slots
            }

            fn slots_mut(&mut self) -> &mut AdapterSlots {
                &mut self.slots
            }
        }
    };
}

norm_host!(RmsNorm, |_| None, |_, _| {});
norm_host!(LayerNorm, |norm| norm.bias.as_ref(), |norm, bias| norm.bias = bias);
