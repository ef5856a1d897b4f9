//! Activations that are computed again instead of kept.

mod tape;

pub use tape::remembered;

use candle_core::{Result, Tensor, Var, bail};

use crate::graph::{Gradients, Value, backward_with, join_all, only_noted, paused, resumed};
use tape::Tape;

const NAME: &str = "checkpoint";

/// `f(x)`, of which nothing but `x` and the result is kept for the backward: that runs `f` again.
///
/// This is the recomputation of Chen et al. 2016 (arXiv:1604.06174). It costs one more forward pass of `f`, and saves all
/// that the operators of `f` would have kept from forward to backward. `f` must compute the same each time; what it draws
/// at random it draws through [`remembered`]. It may be run on any thread, and operators must be called on that thread.
///
/// `f` may read variables besides `x`: which they are shows in its first run. Their gradients and that of `x`, if it is
/// tracked, are the same as without a checkpoint; a variable that several checkpoints share gets the sum. Where nothing is
/// tracked this is `f(x)`.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use peft_nn::{WeightLayout, checkpoint, linear, swiglu};
///
/// let weight = Var::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
/// let x = Tensor::new(&[[1f32, -1.]], &Device::Cpu)?;
/// let held = weight.clone();
/// let y = checkpoint(&x, move |x| {
///     let y = linear(x, &held, WeightLayout::OutIn, None)?;
///     swiglu(&y, &y)
/// })?;
/// assert!(peft_nn::backward(&y)?.get(&weight).is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// When `f` fails. In the backward pass also when `f` computes a result of another shape or dtype than before, when it
/// hands no gradient to `x` or to a variable that it read, or one to a variable that it did not read before: nothing is
/// lost silently.
pub fn checkpoint<F>(x: &Tensor, f: F) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    let kept = x.detach();
    let mut tape = Tape::default();
    let run = || -> Result<Tensor> {
        let result = f(&kept)?;
        // What candle computed from variables alone goes through no operator.
        only_noted(&result);
        Ok(result.detach())
    };
    let (result, variables) = tape.record(|| paused(run));
    let value = Value::Tensor(result?);
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(&variables).collect();
    let saved = Checkpoint { wants_x: x.track_op(), x: kept, variables: variables.clone(), tape, f };
    join_all(NAME, &inputs, value, saved)
}

struct Checkpoint<F> {
    wants_x: bool,
    x: Tensor,
    /// Those that `f` reads.
    variables: Vec<Tensor>,
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
        let mut take = |what: &str, of: &Tensor| match found.remove(of) {
            Some(gradient) => Ok(gradient),
            None => bail!("{NAME}: no gradient reached {what} of shape {:?}", of.dims()),
        };
        let mut gradients = vec![];
        if let Some(x) = &x {
            gradients.push(take("the input", x)?);
        }
        for variable in &self.variables {
            gradients.push(take("a variable", variable)?);
        }
        let others: Vec<_> = found.get_ids().filter_map(|&id| found.get_id(id)).map(Tensor::dims).collect();
        if !others.is_empty() {
            bail!("{NAME}: gradients of shapes {others:?} belong to variables that were not read before");
        }
        Ok(gradients)
    }
}
