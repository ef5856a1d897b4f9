//! What a format cannot hold is an error that names the module, and nothing is exported.

use crate::support::{base, base_with, fixture, lora};
use candle_core::{DType, Device, Tensor};
use peft_core::checkpoint::DetachedAdapter;
use peft_core::{
    AdapterConfig, AdapterLayer, AdapterMethod, Error, HostKind, HostSpec, HostView, Mode, ModuleNames, Param,
    ParamBuilder, ParamKey, Result, Site, SiteShapes, TargetSpec,
};
use peft_export::{BaseModel, to_gguf, to_mlx};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

#[track_caller]
fn refused(what: Result<impl Sized, Error>, says: &[&str]) {
    let error = what.err().expect("it was exported").to_string();
    for part in says {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[track_caller]
fn both_refuse(adapter: &DetachedAdapter, base: &BaseModel, says: &[&str]) {
    refused(to_mlx(adapter, base), &[says, &["an MLX adapter cannot hold"]].concat());
    refused(to_gguf(adapter, base), &[says, &["a GGUF adapter cannot hold"]].concat());
}

#[test]
fn trained_biases_and_whole_modules() {
    let (adapter, base, _) = fixture("gpt2_conv1d_bias_all");
    both_refuse(&adapter, &base, &["`transformer.h.0.attn.c_attn`", "bias is trained", "merge"]);
    let (adapter, base, _) = fixture("tinylora_modules_to_save");
    both_refuse(&adapter, &base, &["`lm_head`", "trained as a whole", "merge"]);
}

#[test]
fn modules_that_the_architecture_does_not_have() {
    let adapter = lora(&[("model.layers.0.self_attn.qkv_proj", 8, 4, 2)]);
    let says = ["`model.layers.0.self_attn.qkv_proj`", "qwen2 model has no such module", "self_attn.q_proj", "lm_head"];
    both_refuse(&adapter, &base("qwen2"), &says);
    let adapter = lora(&[("model.layers.0.self_attn.q_proj", 8, 4, 2)]);
    both_refuse(&adapter, &base("gpt2"), &["`model.layers.0.self_attn.q_proj`", "gpt2", "attn.c_attn"]);
}

#[test]
fn blocks_that_the_base_does_not_have() {
    let adapter = lora(&[("model.layers.3.mlp.up_proj", 8, 4, 2)]);
    both_refuse(&adapter, &base("llama"), &["`model.layers.3.mlp.up_proj`", "3 layers"]);
}

/// PEFT adapts one of two layers that share a weight; neither program can.
#[test]
fn one_of_two_tied_layers() {
    let tied = base_with("llama", |config| config["tie_word_embeddings"] = true.into());
    for path in ["model.embed_tokens", "lm_head"] {
        let adapter = lora(&[("model.layers.0.mlp.up_proj", 8, 4, 2), (path, 11, 4, 2)]);
        both_refuse(&adapter, &tied, &[&format!("`{path}`"), "weight"]);
        assert!(to_mlx(&adapter, &base("llama")).is_ok() && to_gguf(&adapter, &base("llama")).is_ok());
        // Models whose ends both programs always tie.
        both_refuse(&adapter, &base("gemma2"), &[&format!("`{path}`")]);
    }
    let adapter = lora(&[("transformer.wte", 11, 4, 2)]);
    refused(to_mlx(&adapter, &base("gpt2")), &["`transformer.wte`"]);
    // GPT-2 is tied unless its config says otherwise.
    let silent = base_with("gpt2", |config| config["tie_word_embeddings"] = serde_json::Value::Null);
    refused(to_gguf(&adapter, &silent), &["`transformer.wte`"]);
}

#[test]
fn position_embeddings_in_llama_cpp() {
    let adapter = lora(&[("transformer.wpe", 9, 4, 2)]);
    refused(to_gguf(&adapter, &base("gpt2")), &["`transformer.wpe`", "llama.cpp does not apply it"]);
}

#[test]
fn heads_that_do_not_fit_the_module() {
    let adapter = lora(&[("model.layers.0.self_attn.q_proj", 12, 4, 2)]);
    refused(to_gguf(&adapter, &base("llama")), &["`model.layers.0.self_attn.q_proj`", "12 outputs", "4 heads"]);
}

/// A method that scales outputs, which no product of two factors does.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Gain {
    #[serde(flatten)]
    targets: TargetSpec,
}

#[derive(Debug)]
struct GainLayer(Param);

impl AdapterLayer for GainLayer {
    fn forward(&self, _: HostView<'_>, _: &Tensor, output: Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        output.broadcast_mul(self.0.read(mode))
    }

    fn delta_weight(&self, base: &Tensor) -> Result<Tensor> {
        Ok((base.broadcast_mul(&self.0.read(Mode::Infer).unsqueeze(1)?)? - base)?)
    }
}

impl AdapterMethod for Gain {
    const PEFT_TYPE: &'static str = "GAIN";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn supports(&self, host: &HostSpec) -> bool {
        host.kind == HostKind::Linear
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let mut layer = |site: &Site| {
            let rows = site.spec.rows;
            let ones = || Ok(Tensor::ones(rows, DType::F32, &Device::Cpu)?);
            let gain = params.trainable(ParamKey::site(&site.path, "gain"), rows, DType::F32, &Device::Cpu, ones)?;
            Ok(Arc::new(GainLayer(gain)) as Arc<dyn AdapterLayer>)
        };
        sites.iter().map(&mut layer).collect()
    }

    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        Some((tensors.get("gain")?.dims1().ok()?, 1))
    }
}

#[test]
fn changes_that_are_not_products() {
    let path = "model.layers.0.mlp.up_proj";
    let gain = Gain { targets: TargetSpec::new(ModuleNames::list([path])) };
    let tensors =
        BTreeMap::from([(format!("base_model.model.{path}.gain"), Tensor::ones(8, DType::F32, &Device::Cpu).unwrap())]);
    let adapter = DetachedAdapter::from_source(AdapterConfig::from(gain), &tensors).unwrap();
    both_refuse(&adapter, &base("llama"), &["`model.layers.0.mlp.up_proj`", "GAIN", "not a product of two factors"]);
}
