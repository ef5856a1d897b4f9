//! The linear map of a layer whose weight is usually frozen.

use candle_core::{DType, Result, Tensor, bail};

use crate::checks::{ensure_dtype, ensure_float, ensure_shape};
use crate::graph::{Backward, Value, broadcast_add, join, matmul};

const NAME: &str = "linear";

/// How a linear layer's weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// `(out_features, in_features)`: `torch.nn.Linear`.
    OutIn,
    /// `(in_features, out_features)`: the `Conv1D` of GPT-2.
    InOut,
}

impl WeightLayout {
    /// `(out_features, in_features)` of a weight stored this way. An error unless it is a matrix.
    pub fn features(self, weight: &Tensor) -> Result<(usize, usize)> {
        match (self, weight.dims()) {
            (Self::OutIn, &[out_features, in_features]) => Ok((out_features, in_features)),
            (Self::InOut, &[in_features, out_features]) => Ok((out_features, in_features)),
            (_, dims) => bail!("a linear weight has two dimensions, got {dims:?}"),
        }
    }

    /// A view of a weight stored this way as `(out_features, in_features)`. The same call turns a matrix in that
    /// orientation into one stored this way.
    pub fn out_in(self, weight: &Tensor) -> Result<Tensor> {
        self.features(weight)?;
        match self {
            Self::OutIn => Ok(weight.clone()),
            Self::InOut => weight.t(),
        }
    }
}

/// `x W^T + bias` over the last dimension of `x`.
///
/// `x` is `(.., in_features)` of rank two or more, `weight` is a matrix stored as `layout` says, `bias` is
/// `(out_features)`; all have one dtype and one device, and the result is `(.., out_features)`. Leading dimensions are
/// flattened, so a single matrix product runs. The gradient reaches whichever of the three are tracked: that of a
/// frozen weight is neither computed nor stored, which for a frozen model saves half of the backward's arithmetic.
pub fn linear(x: &Tensor, weight: &Tensor, layout: WeightLayout, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = layout.features(weight)?;
    let Some((&width, leading)) = x.dims().split_last().filter(|(_, leading)| !leading.is_empty()) else {
        bail!("{NAME}: the input has at least two dimensions, got {:?}", x.dims())
    };
    if width != in_features {
        bail!("{NAME}: the input's last dimension is {width} but the weight takes {in_features} ({layout:?})");
    }
    ensure_float(NAME, "input", x)?;
    ensure_dtype(NAME, "weight", weight, x.dtype())?;
    if let Some(bias) = bias {
        ensure_dtype(NAME, "bias", bias, x.dtype())?;
        ensure_shape(NAME, "bias", bias, &[out_features])?;
    }

    let x = x.contiguous()?;
    let rows: usize = leading.iter().product();
    let saved = Linear { x: x.detach().reshape((rows, in_features))?, weight: gemm_operand(weight)?, layout };
    let output_shape = [leading, &[out_features]].concat();
    let value = saved.forward(bias)?.reshape(output_shape)?;
    join([Some(&x), Some(weight), bias], value, saved)
}

/// The detached weight in a memory order that every backend's matrix product takes: its own or the transposed one.
fn gemm_operand(weight: &Tensor) -> Result<Tensor> {
    let weight = weight.detach();
    if weight.t()?.is_contiguous() { Ok(weight) } else { weight.contiguous() }
}

struct Linear {
    /// `(rows, in_features)`
    x: Tensor,
    weight: Tensor,
    layout: WeightLayout,
}

impl Linear {
    fn forward(&self, bias: Option<&Tensor>) -> Result<Value> {
        let product = matmul(&self.x, &self.layout.out_in(&self.weight)?.t()?)?;
        match bias {
            Some(bias) => broadcast_add(product, bias),
            None => Ok(product),
        }
    }
}

impl Backward<3> for Linear {
    const NAME: &'static str = NAME;

    fn backward(&self, output: &Tensor, grad: &Tensor, wanted: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        let [wants_x, wants_weight, wants_bias] = wanted;
        let (rows, in_features) = self.x.dims2()?;
        let (out_features, _) = self.layout.features(&self.weight)?;
        let grad = grad.reshape((rows, out_features))?;
        let x = if wants_x {
            let mut shape = output.dims().to_vec();
            shape.pop();
            shape.push(in_features);
            Some(matmul(&grad, &self.layout.out_in(&self.weight)?)?.reshape(shape)?.into_tensor())
        } else {
            None
        };
        let weight = match (wants_weight, self.layout) {
            (false, _) => None,
            (true, WeightLayout::OutIn) => Some(matmul(&grad.t()?, &self.x)?.into_tensor()),
            (true, WeightLayout::InOut) => Some(matmul(&self.x.t()?, &grad)?.into_tensor()),
        };
        let bias = if wants_bias { Some(sum_leading(&grad)?) } else { None };
        Ok([x, weight, bias])
    }
}

/// The sum over the rows of a matrix, accumulated in f32 for the 16-bit types.
fn sum_leading(grad: &Tensor) -> Result<Tensor> {
    match grad.dtype() {
        DType::BF16 | DType::F16 => grad.to_dtype(DType::F32)?.sum(0)?.to_dtype(grad.dtype()),
        _ => grad.sum(0),
    }
}
