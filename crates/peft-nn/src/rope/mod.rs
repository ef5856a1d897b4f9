//! Rotary position embedding.

mod composed;
mod cpu;

use candle_core::{Result, Tensor, bail};

use crate::checks::{acc_dtype, ensure_float};
use crate::graph::{Backward, Value, join};

const NAME: &str = "rope";

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Element `i` with element `i + head_dim / 2`: Hugging Face's Llama and all that descends from GPT-NeoX.
    Half,
    /// Element `2 i` with element `2 i + 1`: GPT-J and the Llama that Meta released.
    Interleaved,
}

/// The rotary position embedding of Su et al. 2021 (arXiv:2104.09864), in the [`Half`](RopeLayout::Half) layout.
///
/// `x` is `(batch, heads, seq, head_dim)`; `cos` and `sin` are `(seq, head_dim / 2)`, or `(batch, seq, head_dim / 2)`
/// where the rows of a batch stand at different positions. The tables may be of any float dtype and are constants: no
/// gradient reaches them. 16-bit inputs are rotated in f32 and rounded once. Of a transposed `x` whose heads are contiguous, such as
/// `(batch, seq, heads, head_dim)` with its middle dimensions swapped, no copy is made. The result is contiguous.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rope_with_layout(x, cos, sin, RopeLayout::Half)
}

/// [`rope`] in a layout.
pub fn rope_with_layout(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Tensor> {
    let &[batch, _, seq, head_dim] = x.dims() else {
        bail!("{NAME}: the input is (batch, heads, seq, head_dim), got {:?}", x.dims())
    };
    if head_dim % 2 != 0 {
        bail!("{NAME}: head_dim is even, got {head_dim}");
    }
    ensure_float(NAME, "input", x)?;
    let half = head_dim / 2;
    let table = |name: &str, table: &Tensor| {
        ensure_float(NAME, name, table)?;
        if table.dims() != [seq, half] && table.dims() != [batch, seq, half] {
            bail!(
                "{NAME}: {name} has shape {:?}, expected {:?} or {:?}",
                table.dims(),
                [seq, half],
                [batch, seq, half]
            );
        }
        table.detach().to_dtype(acc_dtype(x.dtype()))?.contiguous()
    };
    let rotation = Rotation { cos: table("cos", cos)?, sin: table("sin", sin)?, layout };
    if rotation.cos.rank() != rotation.sin.rank() {
        bail!("{NAME}: cos has shape {:?} but sin {:?}", cos.dims(), sin.dims());
    }
    let value = rotation.apply(&x.detach(), Direction::Forward)?;
    join([Some(x)], value, rotation)
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Forward,
    /// By the negative angle: the transpose, and so the backward, of the rotation.
    Inverse,
}

struct Rotation {
    cos: Tensor,
    sin: Tensor,
    layout: RopeLayout,
}

impl Rotation {
    fn apply(&self, x: &Tensor, direction: Direction) -> Result<Value> {
        if x.device().is_cpu() {
            cpu::rotate(self, x, direction)
        } else {
            Ok(Value::Tensor(composed::rotate(self, &x.contiguous()?, direction)?))
        }
    }
}

impl Backward<1> for Rotation {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(self.apply(grad, Direction::Inverse)?.into_tensor())])
    }
}
