//! Unmodified candle-transformers models, adapted while they load.

use crate::support::{Folder, NamedWeights, assert_close, expected, fixture, max_diff, token_ids};
use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama as candle_llama, qwen2};
use peft_core::checkpoint::DetachedAdapter;
use peft_core::{
    Adaptable, AdapterConfig, AdapterLayer, AdapterMethod, HostSpec, HostView, Mode, ModuleNames, Param, ParamBuilder,
    ParamKey, PeftModel, Registry, Result, Site, SiteShapes, TargetSpec, Walk,
};
use peft_ia3::Ia3Config;
use peft_models::{
    CausalLanguageModel, CausalLm, ForwardOptions, Gpt2, Gpt2Config, ModelFiles, PatchedWeights, load_model,
};
use peft_tinylora::{TinyLoraConfig, TinyLoraInit};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The simplest delta there is: `b a^T` with one vector on each side.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Outer {
    #[serde(flatten)]
    targets: TargetSpec,
}

#[derive(Debug)]
struct OuterLayer {
    a: Param,
    b: Param,
}

impl AdapterLayer for OuterLayer {
    fn forward(&self, _host: HostView<'_>, _: &Tensor, _: Tensor, _: Mode) -> candle_core::Result<Tensor> {
        candle_core::bail!("this layer is only ever merged")
    }

    fn delta_weight(&self, _: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.a.read(Mode::Infer), self.b.read(Mode::Infer));
        Ok(b.unsqueeze(1)?.broadcast_mul(&a.unsqueeze(0)?)?)
    }
}

impl AdapterMethod for Outer {
    const PEFT_TYPE: &'static str = "OUTER";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn supports(&self, _: &HostSpec) -> bool {
        true
    }

    fn order_matters(&self) -> bool {
        false
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let mut vector = |site: &Site, name: &str, len: usize| {
            let key = ParamKey::site(&site.path, name);
            params.trainable(key, len, DType::F32, &Device::Cpu, || Ok(Tensor::zeros(len, DType::F32, &Device::Cpu)?))
        };
        let layers = sites.iter().map(|site| {
            let layer = OuterLayer { a: vector(site, "a", site.spec.cols)?, b: vector(site, "b", site.spec.rows)? };
            Ok(Arc::new(layer) as Arc<dyn AdapterLayer>)
        });
        layers.collect()
    }

    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        Some((tensors.get("b")?.dims1().ok()?, tensors.get("a")?.dims1().ok()?))
    }
}

/// An adapter of these modules `(path, rows, cols)`, with any tensors beside it, and the delta of each module.
fn outer(modules: &[(&str, usize, usize)], carried: &[(&str, Tensor)]) -> (DetachedAdapter, HashMap<String, Tensor>) {
    let random = NamedWeights { stdev: 0.5 };
    let (mut tensors, mut deltas) = (BTreeMap::new(), HashMap::new());
    for (path, rows, cols) in modules {
        let vector = |name: &str, len: usize| {
            let key = format!("base_model.model.{path}.{name}");
            let tensor = random.tensor(&key, &Shape::from(len)).to_dtype(DType::F32).unwrap();
            (key, tensor)
        };
        let ((a_key, a), (b_key, b)) = (vector("a", *cols), vector("b", *rows));
        let delta = b.reshape((*rows, 1)).unwrap().matmul(&a.reshape((1, *cols)).unwrap()).unwrap();
        deltas.insert(format!("{path}.weight"), delta);
        tensors.extend([(a_key, a), (b_key, b)]);
    }
    let mut targets = TargetSpec::new(ModuleNames::list(modules.iter().map(|(path, ..)| *path)));
    for (name, tensor) in carried {
        tensors.insert(format!("base_model.model.{name}"), tensor.clone());
        targets.modules_to_save.get_or_insert_default().push(name.rsplit_once('.').unwrap().0.to_owned());
    }
    let config = AdapterConfig::from(Outer { targets });
    (DetachedAdapter::from_source(config, &tensors).unwrap(), deltas)
}

fn open(case: &str) -> DetachedAdapter {
    let mut registry = Registry::new();
    registry.register::<TinyLoraConfig>().unwrap().register::<Ia3Config>().unwrap();
    DetachedAdapter::open(fixture(case), &registry).unwrap()
}

/// The golden Llama's config as candle-transformers has it.
fn candle_config(tied: bool) -> candle_llama::Config {
    candle_llama::Config {
        hidden_size: 32,
        intermediate_size: 64,
        vocab_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        use_flash_attn: false,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: 64,
        tie_word_embeddings: tied,
    }
}

fn last_logits(model: &candle_llama::Llama, ids: &Tensor, tied: bool) -> Tensor {
    let mut cache = candle_llama::Cache::new(false, DType::F32, &candle_config(tied), &Device::Cpu).unwrap();
    model.forward(&ids.to_dtype(DType::U32).unwrap(), 0, &mut cache).unwrap()
}

fn patched_llama(files: &ModelFiles, adapter: DetachedAdapter, tied: bool) -> Result<candle_llama::Llama> {
    let weights = PatchedWeights::new(files.var_builder(DType::F32, &Device::Cpu), [adapter])?;
    weights.load(|vb| candle_llama::Llama::load(vb, &candle_config(tied)))
}

#[test]
fn candles_llama_computes_pefts_logits() {
    let files = ModelFiles::open(fixture("base_llama")).unwrap();
    for case in [
        "tinylora_default",
        "tinylora_all_linear_tied",
        "tinylora_embedding",
        "tinylora_modules_to_save",
        "tinylora_odd_groups",
        "ia3_default",
        "ia3_modules_to_save",
        "ia3_head",
    ] {
        let golden = expected(case);
        let model = patched_llama(&files, open(case), false).unwrap();
        let adapted = golden["adapted_logits"].narrow(1, 6, 1).unwrap().squeeze(1).unwrap();
        assert_close(&last_logits(&model, &golden["input_ids"], false), &adapted, 2e-5);
    }
}

#[test]
fn conv1d_weights_and_trained_biases_are_patched() {
    let files = ModelFiles::open(fixture("base_gpt2")).unwrap();
    let text = serde_json::to_string(files.config()).unwrap();
    for case in ["gpt2_conv1d", "gpt2_conv1d_bias_all", "ia3_gpt2"] {
        let golden = expected(case);
        let weights = PatchedWeights::new(files.var_builder(DType::F32, &Device::Cpu), [open(case)]).unwrap();
        let model = weights.load(|vb| Ok(Gpt2::new(Gpt2Config::from_json(&text)?, vb)?)).unwrap();
        let logits = model.forward(&golden["input_ids"], ForwardOptions::all()).unwrap();
        assert_close(&logits, &golden["adapted_logits"], 2e-5);
    }
}

/// An adapter of our own model that changes something, and the model with it.
fn adapted(model: CausalLm, targets: ModuleNames) -> (PeftModel<CausalLm>, DetachedAdapter) {
    let mut model = PeftModel::new(model);
    let config = TinyLoraConfig::new(TargetSpec::new(targets)).with_u(5).with_init_weights(TinyLoraInit::Uniform);
    model.add_adapter("default", config).unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    model.save(dir.path()).unwrap();
    let mut registry = Registry::new();
    registry.register::<TinyLoraConfig>().unwrap();
    (model, DetachedAdapter::open(dir.path(), &registry).unwrap())
}

fn last(model: &PeftModel<CausalLm>, ids: &Tensor) -> Tensor {
    model.base().forward(ids, ForwardOptions::last()).unwrap().squeeze(1).unwrap()
}

#[test]
fn candles_llama_equals_ours_with_the_adapter() {
    let ids = token_ids(2, 9, 64);
    let files = ModelFiles::open(fixture("base_llama")).unwrap();
    let base = load_model(fixture("base_llama"), DType::F32, &Device::Cpu).unwrap();
    let plain = base.forward(&ids, ForwardOptions::last()).unwrap().squeeze(1).unwrap();
    let (ours, adapter) = adapted(base, ModuleNames::all_linear());
    let theirs = last_logits(&patched_llama(&files, adapter, false).unwrap(), &ids, false);
    assert_close(&theirs, &last(&ours, &ids), 1e-5);
    assert!(max_diff(&theirs, &plain) > 1e-3, "the adapter does something");
}

#[test]
fn sixteen_bit_weights_are_those_of_a_merge() {
    let files = ModelFiles::open(fixture("base_llama_bf16")).unwrap();
    let base = load_model(fixture("base_llama_bf16"), None, &Device::Cpu).unwrap();
    let (mut ours, adapter) = adapted(base, ModuleNames::all_linear());
    ours.merge().unwrap();
    let mut merged = HashMap::new();
    let mut collect = |path: &str, host: &dyn peft_core::Host| {
        merged.insert(format!("{path}.weight"), host.base().stored()?.clone());
        Ok(())
    };
    ours.base().visit(&mut Walk::new(&mut collect)).unwrap();
    let weights = PatchedWeights::new(files.var_builder(DType::BF16, &Device::Cpu), [adapter]).unwrap();
    let read =
        |vb: VarBuilder<'_>| merged.iter().map(|(name, t)| Ok((name.clone(), vb.get(t.shape(), name)?))).collect();
    let patched: HashMap<String, Tensor> = weights.load(read).unwrap();
    for (name, tensor) in &merged {
        assert_eq!(patched[name].dtype(), DType::BF16);
        assert_close(&patched[name], tensor, 0.0);
    }
}

/// The golden Llama with its head tied, as its folder would hold it.
fn tied_folder() -> Folder {
    let folder = Folder::copy_of("base_llama").set("tie_word_embeddings", true.into());
    folder.change_tensors(|tensors| drop(tensors.remove("lm_head.weight")))
}

#[test]
fn a_tied_head_keeps_the_embeddings_base_weight() {
    let (folder, ids) = (tied_folder(), token_ids(2, 7, 64));
    let files = ModelFiles::open(folder.path()).unwrap();
    for targets in [vec!["embed_tokens", "q_proj"], vec!["lm_head", "v_proj"], vec!["embed_tokens", "lm_head"]] {
        let (ours, adapter) = adapted(folder.load().unwrap(), ModuleNames::list(targets));
        let theirs = patched_llama(&files, adapter, false).unwrap();
        assert_close(&last_logits(&theirs, &ids, false), &last(&ours, &ids), 1e-5);
    }
}

#[test]
fn a_model_that_ties_what_an_adapter_parts_is_refused() {
    let folder = tied_folder();
    let files = ModelFiles::open(folder.path()).unwrap();
    let (embedding, _) = outer(&[("model.embed_tokens", 64, 32)], &[]);
    let error = patched_llama(&files, embedding, true).unwrap_err().to_string();
    assert!(
        error.contains("`model.embed_tokens.weight`") && error.contains("`tie_word_embeddings` set to false"),
        "{error}"
    );
    let (head, _) = outer(&[("lm_head", 64, 32)], &[]);
    let error = patched_llama(&files, head, true).unwrap_err().to_string();
    assert!(error.contains("`lm_head.weight`") && error.contains("`tie_word_embeddings` set to false"), "{error}");
    // Neither end is adapted: loading the model tied is right.
    let (inner, _) = outer(&[("model.layers.1.mlp.up_proj", 64, 32)], &[]);
    patched_llama(&files, inner, true).unwrap();
}

#[test]
fn what_does_not_fit_the_model_is_named() {
    let files = ModelFiles::open(fixture("base_llama")).unwrap();
    let refused = |adapter: DetachedAdapter| patched_llama(&files, adapter, false).unwrap_err().to_string();
    let error = refused(outer(&[("model.layers.2.mlp.up_proj", 64, 32)], &[]).0);
    assert!(error.contains("the model never asked for `model.layers.2.mlp.up_proj.weight`"), "{error}");
    let error = refused(outer(&[("model.layers.1.mlp.up_proj", 63, 32)], &[]).0);
    assert!(error.contains("[63, 32] at `model.layers.1.mlp.up_proj`, the model's is [64, 32]"), "{error}");
    let narrow = Tensor::zeros((64, 31), DType::F32, &Device::Cpu).unwrap();
    let error = refused(outer(&[("model.layers.1.mlp.up_proj", 64, 32)], &[("lm_head.weight", narrow)]).0);
    assert!(error.contains("the adapter holds `lm_head.weight` as [64, 31], the model has it as [64, 32]"), "{error}");
}

/// Their Llama panics on a missing layer; here it is an error that names the tensor.
#[test]
fn a_missing_base_weight_is_an_error() {
    const MISSING: &str = "model.layers.1.mlp.up_proj.weight";
    let folder = Folder::copy_of("base_llama").change_tensors(|tensors| drop(tensors.remove(MISSING)));
    let files = ModelFiles::open(folder.path()).unwrap();
    let (adapter, _) = outer(&[("model.layers.0.mlp.up_proj", 64, 32)], &[]);
    let error = patched_llama(&files, adapter, false).unwrap_err().to_string();
    assert!(error.contains(MISSING), "{error}");
}

#[test]
fn two_adapters_that_replace_one_tensor_are_refused() {
    let files = ModelFiles::open(fixture("base_llama")).unwrap();
    let head = Tensor::zeros((64, 32), DType::F32, &Device::Cpu).unwrap();
    let adapter = || outer(&[("model.layers.1.mlp.up_proj", 64, 32)], &[("lm_head.weight", head.clone())]).0;
    let error = PatchedWeights::new(files.var_builder(DType::F32, &Device::Cpu), [adapter(), adapter()]).err().unwrap();
    assert!(error.to_string().contains("`#1` and `#2` both replace the weight of `lm_head`"), "{error}");
}

fn qwen2_config() -> qwen2::Config {
    qwen2::Config {
        vocab_size: 48,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 32,
        sliding_window: 32,
        max_window_layers: 2,
        tie_word_embeddings: true,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        use_sliding_window: false,
        hidden_act: candle_nn::Activation::Silu,
    }
}

/// Random weights of that Qwen2, by name; its head is tied.
fn qwen2_weights() -> HashMap<String, Tensor> {
    let names = candle_nn::VarMap::new();
    qwen2::ModelForCausalLM::new(&qwen2_config(), VarBuilder::from_varmap(&names, DType::F32, &Device::Cpu)).unwrap();
    let vars: HashMap<String, Var> = names.data().lock().unwrap().clone();
    let random = NamedWeights { stdev: 0.3 };
    vars.into_iter()
        .map(|(name, var)| (name.clone(), random.tensor(&name, var.shape()).to_dtype(DType::F32).unwrap()))
        .collect()
}

fn qwen2_logits(vb: VarBuilder<'_>) -> candle_core::Result<Tensor> {
    let mut model = qwen2::ModelForCausalLM::new(&qwen2_config(), vb)?;
    model.forward(&token_ids(2, 7, 48), 0)
}

#[test]
fn candles_qwen2_equals_weights_patched_by_hand() {
    let base = qwen2_weights();
    assert!(!base.contains_key("lm_head.weight"), "{:?}", base.keys());
    let modules = [
        ("model.layers.0.self_attn.q_proj", 16, 16),
        ("model.layers.1.self_attn.k_proj", 8, 16),
        ("model.layers.1.mlp.down_proj", 16, 24),
        ("model.embed_tokens", 48, 16),
    ];
    let norm = Tensor::full(0.5f32, 16, &Device::Cpu).unwrap();
    let (first, first_deltas) = outer(&modules, &[("model.norm.weight", norm.clone())]);
    let (second, second_deltas) = outer(&modules[..1], &[]);
    let mut by_hand = base.clone();
    by_hand.insert("lm_head.weight".into(), base["model.embed_tokens.weight"].clone());
    by_hand.insert("model.norm.weight".into(), norm);
    for (name, delta) in first_deltas.into_iter().chain(second_deltas) {
        by_hand.insert(name.clone(), (&by_hand[&name] + delta).unwrap());
    }
    let wanted = qwen2_logits(VarBuilder::from_tensors(by_hand, DType::F32, &Device::Cpu)).unwrap();

    let vb = VarBuilder::from_tensors(base.clone(), DType::F32, &Device::Cpu);
    let patched = PatchedWeights::new(vb, [first, second]).unwrap().load(qwen2_logits).unwrap();
    assert_close(&patched, &wanted, 1e-6);
    let plain = qwen2_logits(VarBuilder::from_tensors(base, DType::F32, &Device::Cpu)).unwrap();
    assert!(max_diff(&patched, &plain) > 0.1, "the adapters do something");
}
