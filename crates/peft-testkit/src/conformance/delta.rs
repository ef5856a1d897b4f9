//! Law 1: `forward(x)` equals `(W + delta) x + b + delta_b` at inference.

use super::case::{Case, NAME};
use super::{Verdict, ensure, when};
use crate::assert::{check_relatively_close, check_within, largest, values};
use crate::tiny::noise;
use candle_core::{DType, Device, Result as CandleResult, Tensor};
use peft_core::{AdapterLayer, Host, HostKind, HostSpec, HostView, Mode, Walk};

/// How far a result may be off, in units of the sum of the magnitudes that were added up.
///
/// 16-bit outputs are rounded a few times; products of factors of 24 and 53 bits accumulate some tens of roundings.
fn precision(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 2f64.powi(-52 + 7),
        DType::F16 => 2f64.powi(-10 + 2),
        DType::BF16 => 2f64.powi(-7 + 2),
        _ => 2f64.powi(-23 + 7),
    }
}

pub(super) fn check(case: &Case) -> Verdict {
    let model = case.trained()?;
    let mut verdict = Ok(());
    let mut changes = false;
    model.base().visit_hosts(&mut |path, host| {
        if verdict.is_ok()
            && let Some(layer) = host.slots().layer(NAME)
        {
            verdict = check_site(path, host, layer.as_ref()).map(|changed| changes |= changed);
        }
    })?;
    verdict?;
    ensure(changes, || "the delta of every module is zero, although every trainable number was changed".into())
}

/// Shows every host of a model.
pub(super) trait VisitHosts {
    fn visit_hosts(&self, each: &mut dyn FnMut(&str, &dyn Host)) -> peft_core::Result<()>;
}

impl<M: peft_core::Adaptable> VisitHosts for M {
    fn visit_hosts(&self, each: &mut dyn FnMut(&str, &dyn Host)) -> peft_core::Result<()> {
        self.visit(&mut Walk::new(&mut |path, host| {
            each(path, host);
            Ok(())
        }))
    }
}

/// Checks one site; says whether its delta is anything but zero.
fn check_site(path: &str, host: &dyn Host, layer: &dyn AdapterLayer) -> Result<bool, super::Finding> {
    let spec = host.spec();
    let base = host.base().canonical()?;
    let delta = layer.delta_weight(&base)?;
    ensure(delta.dims() == [spec.rows, spec.cols], || {
        format!("the delta of `{path}` has shape {:?}, the weight ({}, {})", delta.dims(), spec.rows, spec.cols)
    })?;
    ensure(!delta.track_op(), || format!("the delta of `{path}` drags a graph along"))?;
    let exact = Exact { weight: (wide(&base)? + wide(&delta)?)?, spec: &spec };
    let plain = Exact { weight: wide(&base)?, spec: &spec };
    let plain_bias = host.bias().map(wide).transpose()?;
    let delta_bias = layer.delta_bias(host.bias(), Mode::Infer)?;
    ensure(delta_bias.is_none() || plain_bias.is_some(), || format!("`{path}` has no bias to be changed"))?;
    let bias = match (&plain_bias, &delta_bias) {
        (Some(bias), Some(change)) => Some((bias + wide(change)?)?),
        _ => plain_bias.clone(),
    };
    let weight = host.base().stored()?;
    let view = HostView::new(weight, spec.layout, host.bias());
    for input in inputs(&spec)? {
        let expected = plus(exact.forward(&input)?, bias.as_ref())?;
        let inner = layer.input(&input, Mode::Infer)?;
        ensure((inner.dtype(), inner.dims()) == (input.dtype(), input.dims()), || {
            format!("at `{path}` an input {:?} becomes {:?}", input.dims(), inner.dims())
        })?;
        let output = plus(plain.forward(&inner)?, plain_bias.as_ref())?.to_dtype(spec.dtype)?;
        let found = layer.forward(view, &input, output.clone(), Mode::Infer)?;
        ensure((found.dtype(), found.dims()) == (output.dtype(), output.dims()), || {
            format!(
                "at `{path}` an output {:?} {:?} becomes {:?} {:?}",
                output.dtype(),
                output.dims(),
                found.dtype(),
                found.dims()
            )
        })?;
        let sizes = Exact { weight: (wide(&base)?.abs()? + wide(&delta)?.abs()?)?, spec: &spec };
        let biases = [&plain_bias, &bias].into_iter().flatten();
        let bias_sizes = biases.map(|b| b.abs()).reduce(|a, b| a? + b?).transpose()?;
        let magnitude = plus(sizes.forward(&magnitudes(&input)?)?, bias_sizes.as_ref())?;
        let bounds: Vec<f64> = values(&magnitude)?.iter().map(|m| m * precision(spec.dtype)).collect();
        let what = format!("the output of `{path}` for an input {:?}", input.dims());
        when("against (W + delta) x in f64", check_within(&what, &found, &expected, &bounds))?;
    }
    if let Some(factors) = layer.lora_factors()? {
        ensure(delta_bias.is_none(), || format!("LoRA factors of `{path}` leave out the change of its bias"))?;
        let product = (wide(&factors.b)?.matmul(&wide(&factors.a)?)? * factors.scale)?;
        let what = format!("scale b a of the LoRA factors of `{path}` against its delta");
        when("at inference", check_relatively_close(&what, &product, &wide(&delta)?, precision(delta.dtype())))?;
    }
    if let Some(change) = layer.low_rank(Mode::Infer)? {
        ensure(delta_bias.is_none(), || format!("the low-rank change of `{path}` leaves out that of its bias"))?;
        let b = match &change.mixing {
            Some(mixing) => wide(&change.b)?.matmul(&wide(mixing)?)?,
            None => wide(&change.b)?,
        };
        let product = (b.matmul(&wide(&change.a)?)? * change.scale)?;
        let what = format!("scale b m a of the low-rank change of `{path}` against its delta");
        when("at inference", check_relatively_close(&what, &product, &wide(&delta)?, precision(delta.dtype())))?;
    }
    Ok(largest(&delta)? != 0.0)
}

/// What a host computes, in f64.
struct Exact<'a> {
    weight: Tensor,
    spec: &'a HostSpec,
}

impl Exact<'_> {
    fn forward(&self, input: &Tensor) -> CandleResult<Tensor> {
        if self.spec.kind == HostKind::Embedding {
            let rows = self.weight.index_select(&input.flatten_all()?, 0)?;
            let shape: Vec<usize> = input.dims().iter().copied().chain([self.spec.cols]).collect();
            return rows.reshape(shape)? * self.spec.embed_scale;
        }
        let rows = input.elem_count() / self.spec.cols;
        let flat = wide(input)?.reshape((rows, self.spec.cols))?.matmul(&self.weight.t()?.contiguous()?)?;
        let mut shape = input.dims().to_vec();
        shape.pop();
        shape.push(self.spec.rows);
        flat.reshape(shape)
    }
}

fn plus(output: Tensor, bias: Option<&Tensor>) -> CandleResult<Tensor> {
    match bias {
        Some(bias) => output.broadcast_add(bias),
        None => Ok(output),
    }
}

fn wide(tensor: &Tensor) -> CandleResult<Tensor> {
    tensor.to_dtype(DType::F64)?.contiguous()
}

/// Ids have no magnitude; they stay.
fn magnitudes(input: &Tensor) -> CandleResult<Tensor> {
    if input.dtype().is_float() { input.abs() } else { Ok(input.clone()) }
}

/// Inputs of two and three dimensions, and one that is not contiguous.
fn inputs(spec: &HostSpec) -> CandleResult<Vec<Tensor>> {
    if spec.kind == HostKind::Embedding {
        let ids: Vec<u32> = (0..6).map(|i| (i * 5 % spec.rows) as u32).collect();
        let ids = Tensor::from_vec(ids, (2, 3), &Device::Cpu)?;
        return Ok(vec![ids.t()?, ids]);
    }
    Ok(vec![
        noise((5, spec.cols), spec.dtype, 91)?,
        noise((2, 3, spec.cols), spec.dtype, 92)?,
        noise((spec.cols, 4), spec.dtype, 93)?.t()?,
    ])
}
