//! An adapter method of one's own: `cargo run --example custom_method`. The guide is docs/guide/write-a-method.md.
//!
//! SVF ([Transformer²](https://arxiv.org/abs/2501.06252)): `W + B diag(z) A`, where `B A` are the leading singular directions of W,
//! frozen. Each trained number of z strengthens or weakens what the layer does along one of them.

#![allow(clippy::print_stdout)]

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use candle_peft::core::{
    AdapterLayer, HostKind, HostSpec, HostView, LoraFactors, Mode, Param, ParamBuilder, ParamKey, Persist,
    SingularValues, Site, SiteShapes, SvdFactors, adapter_dtype, checkpoint::DetachedAdapter, torch_rng::TorchRng,
};
use candle_peft::models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use candle_peft::nn::{IGNORE_INDEX, WeightLayout, cross_entropy, linear};
use candle_peft::train::{task::Sum, tokenizer::Tokenizer};
use candle_peft::{AdapterMethod, Error, PeftModel, Result, TargetSpec, TinyLlama, lora};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The config is the method. Its fields are those of `adapter_config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SvfConfig {
    /// How many singular directions of each weight have a trained number.
    pub(crate) r: usize,
    #[serde(flatten)]
    pub(crate) targets: TargetSpec,
}

impl AdapterMethod for SvfConfig {
    const PEFT_TYPE: &'static str = "SVF";
    fn targets(&self) -> &TargetSpec {
        &self.targets
    }
    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }
    fn validate(&self) -> Result<()> {
        if self.r == 0 { Err(Error::config("`r` is 0; it must be a positive integer")) } else { Ok(()) }
    }
    fn supports(&self, host: &HostSpec) -> bool {
        host.kind == HostKind::Linear
    }
    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let values = SingularValues::Split;
        let svd = |params: &ParamBuilder<'_>| SvdFactors::of_sites(sites, self.r, values, params.decomposer());
        let mut fresh = if params.makes_derived() { svd(params)? } else { vec![] }.into_iter();
        let mut layer = |Site { path, spec, .. }: &Site| {
            let (r, dtype, device) = (SvdFactors::rank(self.r, spec), adapter_dtype(spec.dtype), &spec.device);
            let key = |name| ParamKey::site(path, name);
            let mut frozen = |name, shape: (usize, usize), fresh: Option<Tensor>| {
                params.frozen(key(name), shape, dtype, device, Persist::Derived, || fresh.ok_or(Error::NoBaseWeight))
            };
            let (fresh_a, fresh_b) = fresh.next().map(|f| (f.a, f.b)).unzip();
            let (a, b) = (frozen("svf_A", (r, spec.cols), fresh_a)?, frozen("svf_B", (spec.rows, r), fresh_b)?);
            let z = params.trainable(key("svf_z"), r, dtype, device, || Ok(Tensor::zeros(r, dtype, device)?))?;
            Ok(Arc::new(SvfLayer { a, b, z }) as Arc<dyn AdapterLayer>)
        };
        sites.iter().map(&mut layer).collect()
    }
    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        Some((tensors.get("svf_B")?.dims2().ok()?.0, tensors.get("svf_A")?.dims2().ok()?.1))
    }
}

#[derive(Debug)]
struct SvfLayer {
    a: Tensor,
    b: Tensor,
    z: Param,
}

impl AdapterLayer for SvfLayer {
    fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> CandleResult<Tensor> {
        let low = linear(&input.to_dtype(self.a.dtype())?, &self.a, WeightLayout::OutIn, None)?;
        let change = linear(&low.broadcast_mul(self.z.read(mode))?, &self.b, WeightLayout::OutIn, None)?;
        (output.to_dtype(change.dtype())? + change)?.to_dtype(output.dtype())
    }
    fn delta_weight(&self, _base: &Tensor) -> Result<Tensor> {
        Ok(self.b.broadcast_mul(self.z.read(Mode::Infer))?.matmul(&self.a)?)
    }
    fn lora_factors(&self) -> Result<Option<LoraFactors>> {
        let b = self.b.broadcast_mul(self.z.read(Mode::Infer))?;
        Ok(Some(LoraFactors { a: self.a.clone(), b, scale: 1.0 }))
    }
}

fn main() -> anyhow::Result<()> {
    let (tiny, out) = (TinyLlama::unpack()?, tempfile::tempdir()?);
    let base = || load_model(tiny.path(), DType::F32, &Device::Cpu);
    let mut registry = candle_peft::registry()?;
    registry.register::<SvfConfig>()?;
    let mut model = PeftModel::new(base()?);
    model.add_adapter("default", registry.parse(r#"{"peft_type": "SVF", "r": 4, "target_modules": "all-linear"}"#)?)?;
    println!("{}", model.param_counts()?);

    // Right sums, some of them held out; the loss is that of the answer's two digits.
    let tokenizer = Tokenizer::from_folder(tiny.path())?;
    let (train, test) = (rows(&tokenizer, false)?, rows(&tokenizer, true)?);
    let loss = |model: &PeftModel<CausalLm>, ids: &Tensor| {
        let answer = ids.dim(1)? - 2;
        let logits = model.base().forward(ids, ForwardOptions::all())?.narrow(1, answer - 1, 2)?;
        cross_entropy(&logits, &ids.narrow(1, answer, 2)?, IGNORE_INDEX)?.mean()
    };
    println!("loss on held-out sums: {:.4}", loss(&model, &test)?.to_scalar::<f32>()?);
    let mut optimizer = AdamW::new(model.vars(), ParamsAdamW { lr: 0.02, ..Default::default() })?;
    for batch in train.chunk(40, 0)? {
        optimizer.backward_step(&loss(&model, &batch)?)?;
    }
    let folders = [out.path().join("svf"), out.path().join("lora")];
    model.save_adapter("default", &folders[0])?;
    lora::to_lora(&DetachedAdapter::open(&folders[0], &registry)?)?.save(&folders[1])?;
    for folder in folders {
        let mut again = PeftModel::new(base()?);
        let method = again.load_adapter("default", folder, &registry)?.config.method.peft_type();
        println!("after training, read back as {method}: {:.4}", loss(&again, &test)?.to_scalar::<f32>()?);
    }
    Ok(())
}

/// Right sums of numbers of two digits as token ids. All rows have one length and end with the answer's two digits.
fn rows(tokenizer: &Tokenizer, held_out: bool) -> anyhow::Result<Tensor> {
    let mut rng = TorchRng::new(1);
    let sums = (0..2000).map(|_| Sum::draw(&mut || rng.next_u32(), held_out)).filter(|s| s.a > 9 && s.b > 9);
    let rows = sums.map(|s| tokenizer.encode(&(s.prompt() + &s.answer()))).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::new(rows, &Device::Cpu)?)
}
