//! Where pages are, by the type of their elements.

use std::fmt;

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};

use super::pages::Pages;
use super::{CachedAttention, KeyValueCache, NAME};

/// The sizes of keys and values.
#[derive(Debug, Clone)]
pub(in crate::attention) struct Shape {
    pub(in crate::attention) layers: usize,
    pub(in crate::attention) kv_heads: usize,
    pub(in crate::attention) head_dim: usize,
    pub(in crate::attention) value_dim: usize,
    dtype: DType,
    device: Device,
}

impl Shape {
    pub(super) fn of(op: &CachedAttention, layers: usize) -> Self {
        let g = &op.geometry;
        let (dtype, device) = (op.q.dtype(), op.q.device().clone());
        Self { layers, kv_heads: g.kv_heads, head_dim: g.head_dim, value_dim: g.value_dim, dtype, device }
    }
}

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        let sizes = |shape: &Self| (shape.layers, shape.kv_heads, shape.head_dim, shape.value_dim, shape.dtype);
        sizes(self) == sizes(other) && self.device.same_device(&other.device)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kv_heads, head_dim, value_dim, dtype, .. } = self;
        write!(f, "{kv_heads} heads of keys of {head_dim} and values of {value_dim} in {}", dtype.as_str())
    }
}

/// The keys and the values of the positions of a page in one layer, `(kv_heads, PAGE, width)`.
pub(super) type TensorPage = Vec<[Tensor; 2]>;

pub(in crate::attention) enum Memory {
    F32(Pages<f32>),
    F64(Pages<f64>),
    Bf16(Pages<bf16>),
    F16(Pages<f16>),
    /// On devices without a kernel, a page for each layer.
    Tensors(Vec<TensorPage>),
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.len())
    }
}

/// Evaluates an expression on pages of any type of elements, or another on tensors.
macro_rules! on_pages {
    ($memory:expr, $pages:ident => $apply:expr, $tensors:ident => $other:expr) => {
        match $memory {
            Memory::F32($pages) => $apply,
            Memory::F64($pages) => $apply,
            Memory::Bf16($pages) => $apply,
            Memory::F16($pages) => $apply,
            Memory::Tensors($tensors) => $other,
        }
    };
}

impl Memory {
    pub(super) fn new(shape: &Shape) -> Result<Self> {
        if !shape.device.is_cpu() {
            return Ok(Self::Tensors(vec![]));
        }
        Ok(match shape.dtype {
            DType::F32 => Self::F32(Pages::new(shape)),
            DType::F64 => Self::F64(Pages::new(shape)),
            DType::BF16 => Self::Bf16(Pages::new(shape)),
            DType::F16 => Self::F16(Pages::new(shape)),
            other => bail!("{NAME}: dtype {} is not one of f32, f64, bf16, f16", other.as_str()),
        })
    }

    fn len(&self) -> usize {
        on_pages!(self, pages => pages.len(), tensors => tensors.len())
    }

    /// Makes as many pages as there are to be.
    pub(super) fn grow(&mut self, pages: usize, shape: &Shape) -> Result<()> {
        while self.len() < pages {
            on_pages!(self, pages => pages.push(), tensors => tensors.push(tensor_page(shape)?));
        }
        Ok(())
    }

    /// Copies a page over another one.
    pub(super) fn copy(&mut self, from: usize, to: usize) -> Result<()> {
        on_pages!(self, pages => pages.copy(from, to), tensors => {
            let copy = tensors[from].iter().map(|[k, v]| Ok([k.copy()?, v.copy()?])).collect::<Result<_>>()?;
            tensors[to] = copy;
        });
        Ok(())
    }
}

fn tensor_page(shape: &Shape) -> Result<TensorPage> {
    let zeros = |width: usize| Tensor::zeros((shape.kv_heads, KeyValueCache::PAGE, width), shape.dtype, &shape.device);
    (0..shape.layers).map(|_| Ok([zeros(shape.head_dim)?, zeros(shape.value_dim)?])).collect()
}
