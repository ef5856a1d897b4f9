//! Hosts: the layers that can be adapted, seen through one trait.

use crate::{AdapterSlots, Error, Result};
use candle_core::{DType, Device, Tensor};
pub use peft_nn::WeightLayout;
use std::fmt;

/// What a host computes with its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostKind {
    /// `y = x W^T + b`; GPT-2's Conv1D is a `Linear` whose weight is stored `(in, out)`.
    Linear,
    /// `y = W[ids]`.
    Embedding,
    /// A normalisation with a weight vector. No method adapts it, but it can be named in `modules_to_save` and its bias trained.
    Norm,
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "Linear",
            Self::Embedding => "Embedding",
            Self::Norm => "normalisation layer",
        })
    }
}

/// The part a host plays in a language model; some rules of PEFT single out the two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostRole {
    /// Any layer inside the model.
    #[default]
    Inner,
    /// The token embedding.
    InputEmbedding,
    /// The output head (`lm_head`), which `all-linear` leaves out.
    OutputHead,
}

/// What a method may know about a host before it builds anything.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HostSpec {
    /// What the host computes.
    pub kind: HostKind,
    /// Outputs of a linear layer, entries of an embedding, length of a norm's weight.
    pub rows: usize,
    /// Inputs of a linear layer, dimension of an embedding, 1 for a norm.
    pub cols: usize,
    /// How the weight is stored.
    pub layout: WeightLayout,
    /// The weight's dtype.
    pub dtype: DType,
    /// Where the weight lives.
    pub device: Device,
    /// The host's part in the model.
    pub role: HostRole,
    /// What an embedding multiplies its rows with (Gemma's `embed_scale`); 1 elsewhere.
    pub embed_scale: f64,
}

impl HostSpec {
    /// The spec of a host of this kind and shape; f32 on the CPU, rows first, no special role, until changed.
    pub fn new(kind: HostKind, rows: usize, cols: usize) -> Self {
        Self {
            kind,
            rows,
            cols,
            layout: WeightLayout::OutIn,
            dtype: DType::F32,
            device: Device::Cpu,
            role: HostRole::Inner,
            embed_scale: 1.0,
        }
    }

    /// The spec of a host around this weight.
    pub fn of_weight(kind: HostKind, weight: &Tensor, layout: WeightLayout) -> Self {
        let (rows, cols) = match (weight.dims(), layout) {
            ([rows, cols], WeightLayout::OutIn) | ([cols, rows], WeightLayout::InOut) => (*rows, *cols),
            (dims, _) => (dims.iter().product(), 1),
        };
        Self { layout, dtype: weight.dtype(), device: weight.device().clone(), ..Self::new(kind, rows, cols) }
    }
}

/// The weight of a host. Cheap to clone: tensors are reference counted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BaseWeight {
    /// A dense tensor as the checkpoint stores it.
    Dense {
        /// The tensor, `(rows, cols)` or `(cols, rows)` by `layout`; one-dimensional for a norm.
        weight: Tensor,
        /// How the tensor is stored.
        layout: WeightLayout,
    },
    /// No weight: the adapter is looked at without its base model.
    Absent,
}

impl BaseWeight {
    /// A weight stored `(rows, cols)`.
    pub fn dense(weight: Tensor) -> Self {
        Self::Dense { weight, layout: WeightLayout::OutIn }
    }

    /// A weight stored `(cols, rows)`, as GPT-2's Conv1D has it.
    pub fn transposed(weight: Tensor) -> Self {
        Self::Dense { weight, layout: WeightLayout::InOut }
    }

    /// The tensor as stored.
    ///
    /// # Errors
    /// [`Error::NoBaseWeight`] when there is none.
    pub fn stored(&self) -> Result<&Tensor> {
        match self {
            Self::Dense { weight, .. } => Ok(weight),
            Self::Absent => Err(Error::NoBaseWeight),
        }
    }

    /// The weight as `(rows, cols)`: outputs by inputs, or entries by dimensions. A view, not a copy.
    pub fn canonical(&self) -> Result<Tensor> {
        let weight = self.stored()?;
        Ok(match self {
            Self::Dense { layout: WeightLayout::InOut, .. } => weight.t()?,
            _ => weight.clone(),
        })
    }

    /// The weight with a canonical `(rows, cols)` delta added: 16-bit weights are summed in f32 and rounded once.
    pub fn plus(&self, delta: &Tensor) -> Result<Self> {
        let weight = self.stored()?;
        let Self::Dense { layout, .. } = self else { return Ok(self.clone()) };
        let delta = match layout {
            WeightLayout::InOut => delta.t()?,
            _ => delta.clone(),
        };
        let wide = match weight.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let sum = (weight.to_dtype(wide)? + delta.to_dtype(wide)?)?;
        Ok(Self::Dense { weight: sum.to_dtype(weight.dtype())?.contiguous()?, layout: *layout })
    }

    /// The same layout around another tensor of the same shape.
    pub fn with_stored(&self, weight: Tensor) -> Self {
        match self {
            Self::Dense { layout, .. } => Self::Dense { weight, layout: *layout },
            Self::Absent => Self::Absent,
        }
    }
}

/// A layer that can be adapted.
///
/// [`crate::nn`] has drop-in hosts. A host of one's own asks its [`AdapterSlots`] in `forward`: first for a replaced weight
/// or bias ([`AdapterSlots::weight`], [`AdapterSlots::bias`]), then to put the active adapters around what it computes
/// ([`AdapterSlots::forward`]).
pub trait Host: fmt::Debug + Send + Sync {
    /// Kind, shape, dtype and place of the weight.
    fn spec(&self) -> HostSpec;
    /// The base weight; merged adapters are part of it.
    fn base(&self) -> &BaseWeight;
    /// The base bias, if the layer has one.
    fn bias(&self) -> Option<&Tensor>;
    /// Replaces base weight and bias; shapes must stay the same.
    fn set_base(&mut self, base: BaseWeight, bias: Option<Tensor>) -> Result<()>;
    /// The attached adapters.
    fn slots(&self) -> &AdapterSlots;
    /// The attached adapters, to change them.
    fn slots_mut(&mut self) -> &mut AdapterSlots;
}
