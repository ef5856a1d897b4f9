//! Rotary positions and their scalings.

use super::{LlamaConfig, RopeScaling};
use crate::sequence::Positions;
use candle_core::{Result, Tensor};
use peft_nn::Rotary;
use std::f32::consts::PI;

/// The frequencies of a model's rotary embedding, in radians per position.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    frequencies: Vec<f32>,
}

/// The rotations of one forward pass, the same in all layers.
#[derive(Clone)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Computed in f32 as transformers does, so that angles at far positions agree with its.
    pub(super) fn new(config: &LlamaConfig) -> Self {
        let head_dim = config.head_dim();
        let unscaled = (0..head_dim).step_by(2).map(|i| {
            let exponent = i as f32 / head_dim as f32;
            1.0 / config.rope_theta.powf(f64::from(exponent)) as f32
        });
        Self { frequencies: unscaled.map(|frequency| scale(frequency, &config.rope_scaling)).collect() }
    }

    /// The rotations for these positions, computed anew for each pass: they cost a few sines for each token where a layer costs
    /// matrix products, and no memory is held for positions that never occur.
    pub(super) fn tables(&self, positions: &Positions, like: &Tensor) -> Result<Rotation> {
        let (batch, seq) = like.dims2()?;
        let half = self.frequencies.len();
        let angles =
            |position: usize| self.frequencies.iter().map(move |frequency| (position as f32 * frequency).sin_cos());
        let (shape, (sin, cos)): (Vec<usize>, (Vec<f32>, Vec<f32>)) = match positions {
            Positions::Shared(range) => (vec![seq, half], range.clone().flat_map(angles).unzip()),
            Positions::PerRow(rows) => (vec![batch, seq, half], rows.iter().copied().flat_map(angles).unzip()),
        };
        let device = like.device();
        Ok(Rotation {
            cos: Tensor::from_vec(cos, shape.as_slice(), device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

impl Rotation {
    /// The tables themselves.
    pub(super) fn as_tables(&self) -> Rotary<'_> {
        Rotary { cos: &self.cos, sin: &self.sin }
    }
}

fn scale(frequency: f32, scaling: &RopeScaling) -> f32 {
    match *scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
            let context = original_max_position_embeddings as f32;
            let wavelength = 2.0 * PI / frequency;
            if wavelength < context / high {
                frequency
            } else if wavelength > context / low {
                frequency / factor
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}
