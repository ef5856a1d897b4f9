//! Frozen random tensors that a seed determines, so that checkpoints may leave them out.

use crate::{Error, ParamBuilder, ParamKey, Persist, Result, adapter_dtype};
use candle_core::{DType, Device, Shape, Tensor};

/// How far apart the same draw can lie under the two arithmetics of PyTorch's generator; draws of other seeds differ by much more.
const ARITHMETICS_APART: f64 = 1e-5;

/// How a frozen random tensor comes from a config: TinyLoRA's P, the A and B of VeRA.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// The config's field with the seed, for error messages.
    pub seed_field: &'static str,
    /// The seed in it.
    pub seed: i64,
    /// The config's `save_projection`: whether checkpoints hold the tensor. It is drawn again otherwise.
    pub saved: bool,
    /// The dtype whose values the tensor has: a 16-bit base rounds what is drawn for it.
    pub values: DType,
}

impl Projection {
    /// The tensor of this shape, of dtype [`adapter_dtype`] of its values: the checkpoint's if it holds one, otherwise what `draw`
    /// makes, row by row in f32.
    ///
    /// # Errors
    /// When the checkpoint lacks a tensor that it should hold, or holds one that the seed does not make although it need not be
    /// there; and as [`ParamBuilder::frozen`].
    pub fn param(
        &self,
        key: ParamKey,
        shape: impl Into<Shape>,
        device: &Device,
        params: &mut ParamBuilder<'_>,
        draw: impl Fn() -> Vec<f32>,
    ) -> Result<Tensor> {
        let Self { seed_field, seed, saved, values } = *self;
        let shape = shape.into();
        let stored = params.has(&key);
        if saved && !stored && !params.makes_derived() {
            return Err(Error::MissingTensor(key.to_string()).at(format!(
                "`save_projection` is true (set it to false to draw projections again from `{seed_field}`)"
            )));
        }
        let dtype = adapter_dtype(values);
        let drawn = || -> Result<Tensor> {
            Ok(Tensor::from_vec(draw(), &shape, &Device::Cpu)?.to_dtype(values)?.to_dtype(dtype)?)
        };
        let persist = if saved { Persist::Derived } else { Persist::Never };
        let tensor = params.frozen(key.clone(), shape.clone(), dtype, device, persist, drawn)?;
        if stored && !saved && !same(&drawn()?, &tensor, values)? {
            return Err(Error::config(format!(
                "`{key}` is in the checkpoint and is not what `{seed_field}` {seed} makes, but `save_projection` is false: set it \
                 to true to use the checkpoint's projections"
            )));
        }
        Ok(tensor)
    }
}

/// Whether two tensors are the same draw, up to the arithmetic of the machine that made it.
fn same(drawn: &Tensor, stored: &Tensor, values: DType) -> Result<bool> {
    // The distance between neighbours in the dtype, relative to the value: a small difference may fall on a rounding edge.
    let spacing = match values {
        DType::BF16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => 0.0,
    };
    let drawn = drawn.to_dtype(DType::F64)?;
    let stored = stored.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let allowed = ((drawn.abs()? * spacing)? + ARITHMETICS_APART)?;
    let near = (drawn - stored)?.abs()?.le(&allowed)?;
    Ok(near.flatten_all()?.min(0)?.to_scalar::<u8>()? == 1)
}
