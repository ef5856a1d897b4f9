//! Combined adapters against the sums they stand for.

mod refused;

use candle_core::{DType, Tensor};
use peft_core::linalg::truncated_svd;
use peft_core::{HostKind, ModuleNames, OneOrMany, PeftModel, Result, TargetSpec};
use peft_lora::{Combination, ConvertedLora, LoraConfig, LoraInit, WeightedAdapter, add_weighted_adapter, combine};
use peft_testkit::assert::{assert_relatively_close, assert_same, largest};
use peft_testkit::strategy;
use peft_testkit::tiny::{TinyModel, TinySpec, noise};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SVD: Combination = Combination::Svd { rank: None, clamp: None };

fn on(names: &[&str]) -> TargetSpec {
    TargetSpec::new(ModuleNames::list(names.iter().copied()))
}

fn lora(r: usize, names: &[&str]) -> LoraConfig {
    LoraConfig::with_rank(r, on(names))
}

/// A model with trained adapters that are called by their positions.
fn model(spec: &TinySpec, configs: &[LoraConfig]) -> PeftModel<TinyModel> {
    let mut model = PeftModel::new(spec.build().unwrap());
    for (i, config) in configs.iter().enumerate() {
        model.add_adapter(&i.to_string(), config.clone()).unwrap();
        for (j, var) in model.vars().into_iter().enumerate() {
            var.set(&noise(var.shape(), var.dtype(), spec.seed + 100 * i as u64 + j as u64).unwrap()).unwrap();
        }
    }
    model.eval().unwrap();
    model
}

fn tiny(configs: &[LoraConfig]) -> PeftModel<TinyModel> {
    model(&TinySpec::default(), configs)
}

fn paths(model: &PeftModel<TinyModel>, adapter: &str) -> BTreeSet<String> {
    model.adapter(adapter).unwrap().sites.iter().map(|(path, _)| path.clone()).collect()
}

/// Combines the first adapters without adding the result.
fn combined(model: &PeftModel<TinyModel>, weights: &[f64], by: Combination) -> ConvertedLora {
    let detached: Vec<_> = (0..weights.len()).map(|i| model.detached(&i.to_string()).unwrap()).collect();
    let weighted: Vec<_> = detached.iter().zip(weights).map(|(one, w)| WeightedAdapter::new("one", one, *w)).collect();
    combine(&weighted, by).unwrap()
}

fn add<'m>(model: &'m mut PeftModel<TinyModel>, weights: &[f64], by: Combination) -> Result<&'m peft_core::Adapter> {
    let names: Vec<String> = (0..weights.len()).map(|i| i.to_string()).collect();
    let weighted: Vec<(&str, f64)> = names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
    add_weighted_adapter(model, "new", &weighted, by)
}

/// The weighted deltas of the adapters, summed in f64, by module.
fn sums(model: &PeftModel<TinyModel>, weights: &[f64]) -> BTreeMap<String, Tensor> {
    let mut sums: BTreeMap<String, Tensor> = BTreeMap::new();
    for (i, weight) in weights.iter().enumerate() {
        let name = i.to_string();
        for path in paths(model, &name) {
            let delta = model.delta_weight(&name, &path).unwrap().to_dtype(DType::F64).unwrap();
            let delta = (delta * *weight).unwrap();
            let sum = match sums.get(&path) {
                Some(sum) => (sum + delta).unwrap(),
                None => delta,
            };
            sums.insert(path, sum);
        }
    }
    sums
}

fn norm(tensor: &Tensor) -> f64 {
    let wide = tensor.to_dtype(DType::F64).unwrap();
    wide.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

fn adapters() -> impl Strategy<Value = Vec<(LoraConfig, f64)>> {
    let weight = prop_oneof![-2.0..2.0f64, Just(0.0)];
    let one = (1usize..5, 1usize..4, 0.5..9.0f64, any::<(bool, bool)>(), strategy::targets(), weight);
    let config = one.prop_map(|(r, pattern, alpha, (rslora, patterned), targets, weight)| {
        let mut config = LoraConfig::with_rank(r, targets);
        config.lora_alpha = alpha;
        config.use_rslora = rslora;
        if patterned {
            // Some of the targets, whichever they are.
            let some = r".*layers\.0\..*|lm_head|embed_tokens";
            config.rank_pattern.insert(some.into(), pattern);
            config.alpha_pattern.insert(some.into(), 2.5);
        }
        (config, weight)
    });
    prop::collection::vec(config, 1..=3)
}

proptest! {
    #![proptest_config(strategy::config(48))]

    /// Whatever the scalings, patterns, targets and signs are, and whichever adapter is the first.
    #[test]
    fn side_by_side_factors_are_the_sum_of_the_deltas(spec in strategy::spec(), drawn in adapters()) {
        let (configs, weights): (Vec<_>, Vec<_>) = drawn.into_iter().unzip();
        let mut model = model(&spec, &configs);
        let expected = sums(&model, &weights);
        let modules = combined(&model, &weights, Combination::Cat).modules;
        prop_assert!(modules.iter().all(|module| module.error == 0.0), "{modules:?}");
        prop_assert_eq!(modules.len(), expected.len());
        add(&mut model, &weights, Combination::Cat).unwrap();
        prop_assert_eq!(paths(&model, "new"), expected.keys().cloned().collect::<BTreeSet<_>>());
        // Each side sums products of factors in f32 in its own order; deltas that cancel leave the rounding of the summands.
        let scale = configs.iter().zip(&weights).map(|(c, w)| c.lora_alpha * w.abs()).sum::<f64>();
        let precision = if spec.dtype == DType::F64 { 2e-15 } else { 1e-6 };
        for (path, sum) in &expected {
            let delta = model.delta_weight("new", path).unwrap().to_dtype(DType::F64).unwrap();
            let off = largest(&(delta - sum).unwrap()).unwrap();
            prop_assert!(off <= precision * scale.max(1e-30), "{path}: {off:e}");
        }
    }

    /// The theorem of Eckart and Young: no matrix of that rank is nearer, the truncated decomposition of the dense sum included.
    #[test]
    fn a_decomposition_is_the_nearest_of_its_rank(spec in strategy::spec(), drawn in adapters(), asked in 0usize..7) {
        let rank = (asked > 0).then_some(asked);
        let (configs, weights): (Vec<_>, Vec<_>) = drawn.into_iter().unzip();
        let mut model = model(&spec, &configs);
        let expected = sums(&model, &weights);
        let modules = combined(&model, &weights, Combination::Svd { rank, clamp: None }).modules;
        let config = add(&mut model, &weights, Combination::Svd { rank, clamp: None }).unwrap().config.clone();
        let r = config.method.downcast_ref::<LoraConfig>().unwrap().r;
        let largest_rank = |c: &LoraConfig| c.rank_pattern.values().copied().chain([c.r]).max();
        prop_assert_eq!(Some(r), rank.or(configs.iter().filter_map(largest_rank).max()));
        for (path, sum) in &expected {
            let svd = truncated_svd(sum, r).unwrap();
            let dense = svd.u.broadcast_mul(&svd.s).unwrap().matmul(&svd.vt).unwrap().to_dtype(DType::F64).unwrap();
            let delta = model.delta_weight("new", path).unwrap().to_dtype(DType::F64).unwrap();
            let (found, best) = (norm(&(sum - delta).unwrap()), norm(&(sum - dense).unwrap()));
            // Both are decomposed in f32.
            prop_assert!(found <= best + 2e-6 * norm(sum), "{path}: {found:e} is further than {best:e}");
            let module = modules.iter().find(|module| module.path == *path).unwrap();
            prop_assert_eq!(module.rank, r);
            prop_assert!((module.error * norm(sum) - found).abs() <= 2e-6 * norm(sum), "{module:?}: it is {found:e}");
        }
    }
}

#[test]
fn the_rank_beyond_what_a_weight_has_is_filled_with_zeros() {
    let mut model = tiny(&[lora(2, &["up_proj", "embed_tokens"]), lora(3, &["up_proj", "down_proj"])]);
    let weights = [0.5, -2.0];
    let expected = sums(&model, &weights);
    let adapter = add(&mut model, &weights, Combination::Svd { rank: Some(20), clamp: None }).unwrap();
    assert_eq!(adapter.config.method.downcast_ref::<LoraConfig>().unwrap().r, 20);
    for (key, tensor) in adapter.params.persisted().filter(|(key, _)| key.to_string().contains("lora_")) {
        assert!(tensor.dims().contains(&20), "{key}: {:?}", tensor.dims());
    }
    for (path, sum) in &expected {
        assert_relatively_close(path, &model.delta_weight("new", path).unwrap(), sum, 2e-6);
    }
}

/// `linear` multiplies sums, which for one adapter is the product.
#[test]
fn a_single_adapter_is_multiplied_by_its_weight() {
    let mut config = lora(3, &["up_proj", "down_proj", "embed_tokens"]);
    (config.lora_alpha, config.use_rslora) = (5.0, true);
    for weight in [0.3, -1.7, 0.0] {
        for by in [Combination::Linear, Combination::Cat, SVD] {
            let mut model = tiny(&[config.clone()]);
            let expected = sums(&model, &[weight]);
            add(&mut model, &[weight], by).unwrap();
            for (path, want) in &expected {
                assert_relatively_close(path, &model.delta_weight("new", path).unwrap(), want, 2e-6);
            }
        }
    }
}

/// How rough `linear` and clamping are is measured.
#[test]
fn errors_are_distances_from_the_sum_of_the_deltas() {
    let configs = [lora(3, &["up_proj", "embed_tokens"]), lora(3, &["up_proj", "down_proj"])];
    let clamp = |quantile| Combination::Svd { rank: Some(6), clamp: Some(quantile) };
    for (by, at_least) in [(Combination::Linear, 0.1), (clamp(0.9), 0.01), (clamp(1.0), 0.0)] {
        let mut model = tiny(&configs);
        let weights = [0.7, -0.4];
        let sums = sums(&model, &weights);
        let modules = combined(&model, &weights, by).modules;
        assert_eq!(modules.len(), 5);
        add(&mut model, &weights, by).unwrap();
        for module in &modules {
            let sum = &sums[&module.path];
            let delta = model.delta_weight("new", &module.path).unwrap().to_dtype(DType::F64).unwrap();
            let off = norm(&(sum - delta).unwrap()) / norm(sum);
            assert!((module.error - off).abs() < 1e-6, "{module:?}: it is {off}");
        }
        let largest = modules.iter().map(|module| module.error).fold(0.0, f64::max);
        assert!(largest >= at_least, "{by:?}: {largest}");
    }
}

/// What PiSSA's factors began as is no longer in the weight of PEFT's model; here it is a part of the delta, and so of the sum.
#[test]
fn factors_that_began_as_a_part_of_the_weight_are_combined_with_it() {
    let mut pissa = lora(2, &["up_proj", "down_proj"]);
    pissa.init_lora_weights = LoraInit::Pissa;
    pissa.lora_alpha = 3.0;
    for (by, rank) in [(Combination::Cat, 7), (Combination::Svd { rank: Some(8), clamp: None }, 8)] {
        let mut model = tiny(&[pissa.clone(), lora(3, &["up_proj"])]);
        let expected = sums(&model, &[0.5, 2.0]);
        let config = add(&mut model, &[0.5, 2.0], by).unwrap().config.clone();
        let config = config.method.downcast_ref::<LoraConfig>().unwrap();
        assert_eq!((config.r, config.init_lora_weights), (rank, LoraInit::Identity));
        for (path, sum) in &expected {
            assert_relatively_close(path, &model.delta_weight("new", path).unwrap(), sum, 2e-6);
        }
    }
}

/// Summed factors of rank-pattern modules are as thin as the adapters': PEFT's config does not say so, and its file cannot be loaded.
#[test]
fn equal_rank_patterns_are_summed() {
    let patterned = || {
        let mut config = lora(4, &["up_proj", "down_proj"]);
        config.rank_pattern.insert("up_proj".into(), 2);
        config
    };
    let folder = tempfile::tempdir().unwrap();
    let mut model = tiny(&[patterned(), patterned()]);
    add(&mut model, &[1.0, -0.5], Combination::Linear).unwrap();
    model.save_adapter("new", folder.path()).unwrap();
    let mut registry = peft_core::Registry::new();
    registry.register::<LoraConfig>().unwrap();
    let mut loaded = tiny(&[]);
    loaded.load_adapter("new", folder.path(), &registry).unwrap();
    let ids = TinySpec::default().ids().unwrap();
    assert_same("logits", &loaded.base().forward(&ids).unwrap(), &model.base().forward(&ids).unwrap());
}

#[test]
fn the_new_adapter_is_active_alone_and_apart_from_the_others() {
    let ids = TinySpec::default().ids().unwrap();
    let mut model = tiny(&[lora(2, &["up_proj"]), lora(2, &["lm_head"])]);
    model.train().unwrap();
    model.activate(&["0"]).unwrap();
    let before = model.base().forward(&ids).unwrap().detach();
    add(&mut model, &[1.0, 1.0], Combination::Cat).unwrap();
    assert_eq!(model.active().collect::<Vec<_>>(), ["new"]);
    let names: Vec<&str> = model.adapters().iter().map(|adapter| &*adapter.name).collect();
    assert_eq!(names, ["0", "1", "new"]);
    assert!(!model.base().forward(&ids).unwrap().track_op(), "it is there to be used");
    for var in model.vars() {
        var.set(&var.ones_like().unwrap()).unwrap();
    }
    model.activate(&["0"]).unwrap();
    assert_same("the first", &model.base().forward(&ids).unwrap(), &before);
}

#[test]
fn targets_are_united_as_long_as_the_union_selects_the_same_modules() {
    let pattern = |text: &str| TargetSpec::new(ModuleNames::Pattern(text.into()));
    let layer = |layer: usize, names: &[&str]| TargetSpec {
        layers_to_transform: Some(OneOrMany::One(layer)),
        layers_pattern: Some(OneOrMany::One("layers".into())),
        ..on(names)
    };
    let [up, down] = ["up_proj", "down_proj"].map(|name| [0, 1].map(|i| format!("model.layers.{i}.mlp.{name}")));
    for (first, second, expected) in [
        (on(&["up_proj"]), on(&["lm_head", "up_proj"]), ModuleNames::list(["up_proj", "lm_head"])),
        (pattern(".*up_proj"), pattern("lm_head"), ModuleNames::Pattern("(.*up_proj)|(lm_head)".into())),
        (layer(1, &["up_proj"]), layer(1, &["down_proj"]), ModuleNames::list(["up_proj", "down_proj"])),
        // PEFT loses what only the second adapts.
        (layer(0, &["up_proj"]), layer(1, &["down_proj"]), ModuleNames::list([&up[0], &down[1]])),
        // PEFT refuses these.
        (on(&["up_proj"]), pattern("lm_head"), ModuleNames::list([&up[0], &up[1], "lm_head"])),
    ] {
        let mut model = tiny(&[LoraConfig::with_rank(2, first), LoraConfig::with_rank(2, second)]);
        let union: BTreeSet<String> = paths(&model, "0").union(&paths(&model, "1")).cloned().collect();
        let adapter = add(&mut model, &[1.0, 1.0], Combination::Linear).unwrap();
        assert_eq!(adapter.config.method.targets().target_modules.as_ref(), Some(&expected));
        assert_eq!(paths(&model, "new"), union);
    }
}

#[test]
fn clamping_limits_every_entry() {
    let configs = [lora(3, &["up_proj", "embed_tokens"]), lora(2, &["up_proj"])];
    let factors = |clamp| {
        let mut model = tiny(&configs);
        let adapter = add(&mut model, &[1.0, 0.5], Combination::Svd { rank: None, clamp }).unwrap();
        let lora = adapter.params.persisted().filter(|(key, _)| key.to_string().contains("lora_"));
        lora.map(|(key, t)| (key.to_string(), t.copy().unwrap())).collect::<BTreeMap<String, Tensor>>()
    };
    let (free, clamped) = (factors(None), factors(Some(0.9)));
    assert_eq!(free.len(), 6);
    for (key, tensor) in &free {
        let other = if key.contains("_A") { key.replace("_A", "_B") } else { key.replace("_B", "_A") };
        let limit = largest(&clamped[key]).unwrap().max(largest(&clamped[&other]).unwrap());
        let expected = tensor.clamp(-limit, limit).unwrap();
        assert_same(key, &clamped[key], &expected);
        assert!(limit < largest(tensor).unwrap().max(largest(&free[&other]).unwrap()));
    }
    let mut model = tiny(&configs);
    for (clamp, says) in
        [(1.5, "`clamp` is 1.5; it must be between 0 and 1"), (f64::NAN, "is NaN"), (0.05, "`clamp` must be larger")]
    {
        let error = add(&mut model, &[1.0, 0.5], Combination::Svd { rank: None, clamp: Some(clamp) }).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// The kind of a layer decides the names of its factors.
#[test]
fn embeddings_stay_embeddings() {
    let mut model = tiny(&[lora(2, &["embed_tokens"]), lora(2, &["embed_tokens", "lm_head"])]);
    let adapter = add(&mut model, &[1.0, -1.0], Combination::Linear).unwrap();
    let keys: Vec<String> = adapter.params.trainable().map(|(key, _)| key.to_string()).collect();
    assert_eq!(
        keys,
        [
            "base_model.model.lm_head.lora_A.weight",
            "base_model.model.lm_head.lora_B.weight",
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.model.embed_tokens.lora_embedding_B",
        ]
    );
    assert!(adapter.sites.iter().any(|(_, spec)| spec.kind == HostKind::Embedding));
}
