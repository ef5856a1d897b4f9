//! The activation of GPT-2's feed-forward block.

mod composed;
mod cpu;

use candle_core::{Result, Tensor};

use crate::checks::ensure_float;
use crate::graph::{Backward, Value, join};

const NAME: &str = "gelu-new";
const CUBIC: f64 = 0.044715;

/// `sqrt(2 / pi)`
fn inner_scale() -> f64 {
    std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2
}

/// The tanh approximation of GELU, `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))` (Hendrycks & Gimpel 2016,
/// arXiv:1606.08415), which GPT-2 calls `gelu_new`.
///
/// 16-bit types are computed in f32 and rounded once. (The backward of candle's own `gelu` uses constants of six digits
/// and computes in the input's dtype.)
pub fn gelu_new(x: &Tensor) -> Result<Tensor> {
    ensure_float(NAME, "input", x)?;
    let saved = GeluNew { x: x.detach().contiguous()? };
    let value = if x.device().is_cpu() { cpu::forward(&saved)? } else { Value::Tensor(composed::forward(&saved)?) };
    join([Some(x)], value, saved)
}

struct GeluNew {
    x: Tensor,
}

impl Backward<1> for GeluNew {
    const NAME: &'static str = NAME;
    const READS_OUTPUT: bool = false;

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = if grad.device().is_cpu() { cpu::backward(self, grad)? } else { composed::backward(self, grad)? };
        Ok([Some(dx)])
    }
}
