//! Activations that are computed again instead of kept.

mod tape;

pub use tape::remembered;

use std::fmt::Display;

use candle_core::{Result, Tensor, Var, bail};

use crate::graph::{Gradients, Value, backward_with, join_all, paused, resumed};
use tape::Tape;

const NAME: &str = "checkpoint";

/// `f(x)`, of which nothing but `x` and the result is kept for the backward: that runs `f` again.
///
/// This is the recomputation of Chen et al. 2016 (arXiv:1604.06174). It costs one more forward pass of `f`, and saves all
/// that the operators of `f` would have kept from forward to backward. `f` must compute the same each time; what it draws
/// at random it draws through [`remembered`]. It may be run on any thread.
///
/// `params` are the variables that `f` reads besides `x`; those that are not tracked do not count. Their gradients and
/// that of `x`, if it is tracked, are the same as without a checkpoint; a variable that several checkpoints share gets the
/// sum. Where neither `x` nor any of `params` is tracked this is `f(x)`.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use peft_nn::{WeightLayout, checkpoint, linear, swiglu};
///
/// let weight = Var::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
/// let x = Tensor::new(&[[1f32, -1.]], &Device::Cpu)?;
/// let held = weight.as_tensor().clone();
/// let y = checkpoint(&x, &[&weight], move |x| {
///     let y = linear(x, &held, WeightLayout::OutIn, None)?;
///     swiglu(&y, &y)
/// })?;
/// assert!(peft_nn::backward(&y)?.get(&weight).is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// When `f` fails or one of `params` is tracked without being a variable. In the backward pass also when `f` computes a
/// result of another shape or dtype than before, when a gradient is missing for `x` or one of `params`, or when there is
/// one for a variable that is not among `params`: nothing is lost silently.
pub fn checkpoint<F>(x: &Tensor, params: &[&Tensor], f: F) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    let params: Vec<&Tensor> = params.iter().copied().filter(|param| param.track_op()).collect();
    if let Some(param) = params.iter().find(|param| !param.is_variable()) {
        bail!("{NAME}: a parameter of shape {:?} is the result of a computation, expected a variable", param.dims());
    }
    if params.is_empty() && !x.track_op() {
        return f(x);
    }
    let kept = x.detach();
    let mut tape = Tape::default();
    let result = tape.record(|| paused(|| f(&kept)))?.detach();
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(params.iter().copied()).collect();
    let saved = Checkpoint {
        wants_x: x.track_op(),
        x: kept,
        params: params.iter().map(|&param| param.clone()).collect(),
        tape,
        f,
    };
    join_all(NAME, &inputs, Value::Tensor(result), saved)
}

struct Checkpoint<F> {
    wants_x: bool,
    x: Tensor,
    params: Vec<Tensor>,
    tape: Tape,
    f: F,
}

impl<F> Gradients for Checkpoint<F>
where
    F: Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    fn gradients(&self, output: &Tensor, grad: &Tensor) -> Result<Vec<Tensor>> {
        let x = if self.wants_x { Some(Var::from_tensor(&self.x)?) } else { None };
        let again = self.tape.replay(|| resumed(|| (self.f)(x.as_deref().unwrap_or(&self.x))))?;
        if again.shape() != output.shape() || again.dtype() != output.dtype() {
            let (was, is) = (output.dims(), again.dims());
            bail!("{NAME}: the result was {:?} {was:?} and is {:?} {is:?} again", output.dtype(), again.dtype());
        }
        let mut found = backward_with(&again, grad)?;
        let mut gradients = vec![];
        let missing = |what: &dyn Display, shape: &[usize]| {
            candle_core::Error::msg(format!("{NAME}: no gradient reached {what} of shape {shape:?}"))
        };
        if let Some(x) = &x {
            gradients.push(found.remove(x).ok_or_else(|| missing(&"the input", x.dims()))?);
        }
        // A variable that is named twice gets its gradient once.
        let mut taken: Vec<&Tensor> = vec![];
        for (i, param) in self.params.iter().enumerate() {
            gradients.push(match found.remove(param) {
                Some(gradient) => gradient,
                None if taken.iter().any(|other| other.id() == param.id()) => param.zeros_like()?,
                None => return Err(missing(&format_args!("parameter {i}"), param.dims())),
            });
            taken.push(param);
        }
        let others: Vec<_> = found.get_ids().filter_map(|&id| found.get_id(id)).map(Tensor::dims).collect();
        if !others.is_empty() {
            bail!("{NAME}: gradients of shapes {others:?} belong to variables that are not among the parameters");
        }
        Ok(gradients)
    }
}
