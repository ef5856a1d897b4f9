//! The linear map of a layer whose weight is usually frozen, with a low-rank change.

mod composed;
mod cpu;
mod layout;
mod low_rank;

use candle_core::{DType, Result, Tensor, bail};

pub use layout::WeightLayout;
pub use low_rank::LowRank;

use crate::checks::{ensure_dtype, ensure_float, ensure_shape};
use crate::graph::{Backward, Value, join};
use low_rank::Change;

const NAME: &str = "linear";

/// `x W^T + bias` over the last dimension of `x`.
///
/// `x` is `(.., in_features)` of rank two or more, `weight` is a matrix stored as `layout` says, `bias` is
/// `(out_features)`; all have one dtype and one device, and the result is `(.., out_features)`. Leading dimensions are
/// flattened, so a single matrix product runs. The gradient reaches whichever of the three are tracked: that of a
/// frozen weight is neither computed nor stored, which for a frozen model saves half of the backward's arithmetic.
///
/// 16-bit operands are multiplied and added up in f32 and the result is rounded once; nothing as large as the weight is
/// made on the way.
pub fn linear(x: &Tensor, weight: &Tensor, layout: WeightLayout, bias: Option<&Tensor>) -> Result<Tensor> {
    apply(x, weight, layout, bias, None)
}

/// [`linear`] with a weight that is changed by a product of small matrices: `x (W + scale * B M A)^T + bias`.
///
/// The change is never made as a matrix of the weight's size. The gradient reaches whichever of `x`, the weight, the
/// bias and the matrices of the change are tracked.
pub fn linear_low_rank(
    x: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    bias: Option<&Tensor>,
    change: &LowRank,
) -> Result<Tensor> {
    apply(x, weight, layout, bias, Some(change))
}

fn apply(
    x: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    bias: Option<&Tensor>,
    change: Option<&LowRank>,
) -> Result<Tensor> {
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
    let (a, b, mixing) = match change {
        Some(change) => {
            change.check(NAME, x.dtype(), out_features, in_features)?;
            (Some(&change.a), Some(&change.b), change.mixing.as_ref())
        }
        None => (None, None, None),
    };

    let x = x.contiguous()?;
    let rows: usize = leading.iter().product();
    let mut saved = Linear {
        x: Some(x.detach().reshape((rows, in_features))?),
        dtype: x.dtype(),
        weight: operand(weight)?,
        layout,
        change: change.map(Change::of).transpose()?,
    };
    let bias_values = bias.map(|bias| bias.detach().contiguous()).transpose()?;
    let value = if saved.on_kernel() {
        cpu::forward(&mut saved, bias_values.as_ref())?
    } else {
        composed::forward(&saved, bias_values.as_ref())?
    };
    // Only gradients of W and A are made of x; the composed form makes the others of it as well.
    let needed = [Some(weight), a].into_iter().flatten().any(Tensor::track_op);
    if !needed && saved.on_kernel() {
        saved.x = None;
    }
    let value = value.reshape([leading, &[out_features]].concat())?;
    join([Some(&x), Some(weight), bias, a, b, mixing], value, saved)
}

/// The detached weight in a memory order that every backend's matrix product takes: its own or the transposed one.
fn operand(weight: &Tensor) -> Result<Tensor> {
    let weight = weight.detach();
    if weight.t()?.is_contiguous() { Ok(weight) } else { weight.contiguous() }
}

struct Linear {
    /// `(rows, in_features)`; given up after the forward pass where no gradient is made of it.
    x: Option<Tensor>,
    dtype: DType,
    weight: Tensor,
    layout: WeightLayout,
    change: Option<Change>,
}

impl Linear {
    /// The kernel computes in f32.
    fn on_kernel(&self) -> bool {
        let takes = |tensor: &Tensor| tensor.device().is_cpu() && tensor.dtype() != DType::F64;
        takes(&self.weight) && self.change.as_ref().is_none_or(|change| takes(&change.a))
    }

    fn x(&self) -> Result<&Tensor> {
        match &self.x {
            Some(x) => Ok(x),
            None => bail!("{NAME}: the input was not kept"),
        }
    }

    /// A view of the weight as `(out_features, in_features)`.
    fn out_in(&self) -> Result<Tensor> {
        self.layout.out_in(&self.weight)
    }
}

impl Backward<6> for Linear {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, output: &Tensor, grad: &Tensor, wanted: [bool; 6]) -> Result<[Option<Tensor>; 6]> {
        let (out_features, in_features) = self.layout.features(&self.weight)?;
        let rows: usize = output.dims()[..output.rank() - 1].iter().product();
        let grad = grad.reshape((rows, out_features))?;
        let gradients = if self.on_kernel() {
            cpu::backward(self, &grad, wanted)?
        } else {
            composed::backward(self, &grad, wanted)?
        };
        let [x, rest @ ..] = gradients;
        let x_shape = [&output.dims()[..output.rank() - 1], &[in_features]].concat();
        let x = x.map(|x| Ok::<_, candle_core::Error>(x.reshape(x_shape)?.into_tensor())).transpose()?;
        let [weight, bias, a, b, mixing] = rest.map(|gradient| gradient.map(Value::into_tensor));
        Ok([x, weight, bias, a, b, mixing])
    }
}
