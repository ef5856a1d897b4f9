//! Deltas that are no products of two factors.

use super::support::{delta, distance, least_error, load, random, spectrum};
use candle_core::{DType, Device, Result as CandleResult, Tensor};
use peft_core::checkpoint::DetachedAdapter;
use peft_core::nn::Linear;
use peft_core::{
    AdapterLayer, AdapterMethod, Error, HostKind, HostSpec, HostView, Mode, ModuleNames, Param, ParamBuilder, ParamKey,
    PeftModel, Registry, Result, Site, SiteShapes, TargetSpec,
};
use peft_lora::{ConvertedModule, Rank, to_lora, to_lora_with};
use peft_testkit::assert::assert_close;
use peft_testkit::tiny::{TinyModel, TinySpec, noise};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Multiplies what a weight makes of each input feature, biases left alone: `delta = W diag(gain - 1)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Gains {
    /// Multiplies the bias too.
    with_bias: bool,
    #[serde(flatten)]
    targets: TargetSpec,
}

#[derive(Debug)]
struct GainsLayer {
    gains: Param,
    with_bias: bool,
}

impl AdapterMethod for Gains {
    const PEFT_TYPE: &'static str = "GAINS";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn supports(&self, host: &HostSpec) -> bool {
        host.kind != HostKind::Norm
    }

    fn order_matters(&self) -> bool {
        false
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let layer = |site: &Site| {
            let (key, cols) = (ParamKey::site(&site.path, "gains"), site.spec.cols);
            let gains = params
                .trainable(key, cols, DType::F32, &Device::Cpu, || Ok(Tensor::ones(cols, DType::F32, &Device::Cpu)?))?;
            Ok(Arc::new(GainsLayer { gains, with_bias: self.with_bias }) as Arc<dyn AdapterLayer>)
        };
        sites.iter().map(layer).collect()
    }

    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        Some((5, tensors.get("gains")?.dims1().ok()?))
    }
}

impl AdapterLayer for GainsLayer {
    fn forward(&self, host: HostView<'_>, input: &Tensor, output: Tensor, _mode: Mode) -> CandleResult<Tensor> {
        let delta = self.delta_weight(&host.weight()?)?;
        let change = match input.dtype() {
            DType::U32 => {
                let shape = output.shape().clone();
                delta.index_select(&input.flatten_all()?, 0)?.reshape(shape)?
            }
            _ => input.broadcast_matmul(&delta.t()?)?,
        };
        output + change
    }

    fn delta_weight(&self, base: &Tensor) -> Result<Tensor> {
        Ok(base.to_dtype(DType::F32)?.broadcast_mul(&(self.gains.read(Mode::Infer) - 1.0)?)?)
    }

    fn delta_bias(&self, bias: Option<&Tensor>, _mode: Mode) -> Result<Option<Tensor>> {
        Ok(bias.filter(|_| self.with_bias).map(|bias| bias.affine(0.5, 0.0)).transpose()?)
    }
}

/// A tiny model with gains on its linear layers and its embedding, trained by hand.
fn adapted(spec: &TinySpec, with_bias: bool) -> PeftModel<TinyModel> {
    let names = ModuleNames::list(["embed_tokens", "up_proj", "down_proj", "lm_head"]);
    let mut model = PeftModel::new(spec.build().unwrap());
    model.add_adapter("default", Gains { with_bias, targets: TargetSpec::new(names) }).unwrap();
    for (i, var) in (1..).zip(model.vars()) {
        var.set(&(var.as_tensor() + noise(var.shape(), DType::F32, i).unwrap()).unwrap()).unwrap();
    }
    model.eval().unwrap();
    model
}

/// What the decomposition in f32 may add to a relative error.
const ROUNDING: f64 = 2e-6;

proptest! {
    #![proptest_config(peft_testkit::strategy::config(24))]

    #[test]
    fn a_fixed_rank_is_the_best_of_its_size(seed in 0u64..1000, rank in 1usize..=6, inner in 6usize..14) {
        let spec = TinySpec { seed, inner, ..TinySpec::default() };
        let model = adapted(&spec, false);
        let lora = to_lora_with(&model.detached("default").unwrap(), Rank::Fixed(rank)).unwrap();
        let loaded = load(spec.build().unwrap(), &lora);
        prop_assert_eq!(lora.modules.len(), 6);
        for module in &lora.modules {
            let (exact, found) = (delta(&model, &module.path), delta(&loaded, &module.path));
            let (least, actual) = (least_error(&spectrum(&exact), rank), distance(&exact, &found));
            prop_assert_eq!(module.rank, rank);
            prop_assert!(actual <= least + ROUNDING, "{:?} is {} off, {} is possible", module, actual, least);
            prop_assert!((module.error - actual).abs() <= ROUNDING, "{:?} is {} off", module, actual);
        }
    }

    #[test]
    fn a_threshold_is_kept_by_as_few_directions_as_can(seed in 0u64..1000, share in 1e-3..1.0f64) {
        let spec = TinySpec { seed, ..TinySpec::default() };
        let model = adapted(&spec, false);
        let lora = to_lora_with(&model.detached("default").unwrap(), Rank::Threshold(share)).unwrap();
        // Files are read with the ranks that the config gives each module.
        let loaded = load(spec.build().unwrap(), &lora);
        for module in &lora.modules {
            let s = spectrum(&delta(&model, &module.path));
            let kept = |k: usize| 1.0 - least_error(&s, k).powi(2);
            prop_assert!(kept(module.rank) >= share - ROUNDING, "{:?} keeps {}", module, kept(module.rank));
            prop_assert!(module.rank == 1 || kept(module.rank - 1) < share + ROUNDING, "{:?} keeps too much", module);
            let actual = distance(&delta(&model, &module.path), &delta(&loaded, &module.path));
            prop_assert!((module.error - actual).abs() <= ROUNDING, "{:?} is {} off", module, actual);
        }
    }
}

#[test]
fn at_full_rank_the_lora_computes_what_the_adapter_computes() {
    let spec = TinySpec::default();
    let model = adapted(&spec, false);
    let (ids, plain) = (spec.ids().unwrap(), spec.build().unwrap());
    let expected = model.base().forward(&ids).unwrap();
    for rank in [Rank::Fixed(6), Rank::Threshold(1.0)] {
        let lora = to_lora_with(&model.detached("default").unwrap(), rank).unwrap();
        let loaded = load(spec.build().unwrap(), &lora);
        assert_close(&format!("{rank:?}"), &loaded.base().forward(&ids).unwrap(), &expected, 1e-5);
        assert!(lora.modules.iter().all(|m| m.rank == 6 && m.error < ROUNDING), "{:?}", lora.modules);
    }
    let change = (plain.forward(&ids).unwrap() - &expected).unwrap().abs().unwrap().max_all().unwrap();
    assert!(change.to_scalar::<f32>().unwrap() > 0.1, "the adapter must do something");
}

#[test]
fn a_merged_model_converts_as_before() {
    let mut model = adapted(&TinySpec::default(), false);
    let convert = |model: &PeftModel<TinyModel>| {
        to_lora_with(&model.detached("default").unwrap(), Rank::Fixed(3)).unwrap().tensors
    };
    let before = convert(&model);
    model.merge().unwrap();
    for (name, tensor) in convert(&model) {
        peft_testkit::assert::assert_same(&name, &tensor, &before[&name]);
    }
}

#[test]
fn a_fresh_adapter_of_no_effect_has_rank_one() {
    let mut model = PeftModel::new(TinySpec::default().build().unwrap());
    let targets = TargetSpec::new(ModuleNames::all_linear());
    model.add_adapter("default", Gains { with_bias: false, targets }).unwrap();
    for rank in [Rank::Fixed(4), Rank::Threshold(0.9)] {
        let lora = to_lora_with(&model.detached("default").unwrap(), rank).unwrap();
        assert!(lora.modules.iter().all(|m| m.rank == 1 && m.error == 0.0), "{:?}", lora.modules);
    }
}

/// A lone weight in f32, doubled by gains of two, so that it is its own delta; converted by a threshold of 1.
fn doubled(weight: Tensor) -> ConvertedModule {
    let cols = weight.dim(1).unwrap();
    let mut model = PeftModel::new(Linear::new(weight.to_dtype(DType::F32).unwrap(), None));
    let targets = TargetSpec::new(ModuleNames::Pattern(String::new()));
    model.add_adapter("default", Gains { with_bias: false, targets }).unwrap();
    model.vars()[0].set(&Tensor::full(2f32, cols, &Device::Cpu).unwrap()).unwrap();
    let lora = to_lora_with(&model.detached("default").unwrap(), Rank::Threshold(1.0)).unwrap();
    lora.modules.into_iter().next().unwrap()
}

#[test]
fn everything_is_what_can_be_told_from_the_rounding_of_f32() {
    for (rows, cols, seed) in [(40, 30, 1), (120, 90, 2), (90, 200, 3)] {
        let module = doubled(random((rows, 2), seed).matmul(&random((2, cols), seed)).unwrap());
        assert!(module.rank == 2 && module.error < ROUNDING, "{module:?}");
    }
    // Squares are summed as PEFT sums them: 1e-8 of the energy vanishes, 1e-6 does not.
    for (second, rank) in [(1e-4, 1), (1e-3, 2)] {
        let eye = Tensor::eye(8, DType::F64, &Device::Cpu).unwrap();
        let s = Tensor::new(&[1.0, second, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &Device::Cpu).unwrap();
        let module = doubled(eye.broadcast_mul(&s).unwrap());
        let lost = if rank == 1 { second } else { 0.0 };
        assert!(module.rank == rank && (module.error - lost).abs() < ROUNDING, "{module:?}");
    }
}

fn refusal(adapter: &DetachedAdapter, rank: Rank) -> String {
    to_lora_with(adapter, rank).unwrap_err().to_string()
}

#[test]
fn without_a_rank_the_error_asks_for_one() {
    let adapter = adapted(&TinySpec::default(), false).detached("default").unwrap();
    let error = to_lora(&adapter).unwrap_err();
    assert!(matches!(error, Error::At { .. }), "{error:?}");
    for part in ["model.embed_tokens: ", "GAINS", "not a product of two factors", "choose a rank"] {
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    }
    let error = refusal(&adapter, Rank::Fixed(7));
    assert!(error.contains("model.embed_tokens: ") && error.contains("no more than 6"), "{error}");
}

#[test]
fn without_the_base_weight_the_error_asks_for_it() {
    let mut registry = Registry::new();
    registry.register::<Gains>().unwrap();
    let config = registry.parse(r#"{"peft_type": "GAINS", "with_bias": false, "target_modules": ["proj"]}"#).unwrap();
    let gains = Tensor::ones(4, DType::F32, &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([("base_model.model.layers.0.proj.gains".to_owned(), gains)]);
    let adapter = DetachedAdapter::from_source(config, &tensors).unwrap();
    let error = refusal(&adapter, Rank::Fixed(2));
    for part in ["layers.0.proj: ", "GAINS", "give the base model too"] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    // Without a rank the base model would not help.
    assert!(refusal(&adapter, Rank::Exact).contains("choose a rank"));
}

#[test]
fn a_change_of_a_bias_is_refused_and_names_the_module() {
    let adapter = adapted(&TinySpec::default(), true).detached("default").unwrap();
    for rank in [Rank::Fixed(2), Rank::Threshold(0.9)] {
        let error = refusal(&adapter, rank);
        assert!(
            error.contains("model.layers.0.mlp.up_proj: ") && error.contains("changes the module's bias"),
            "{error}"
        );
    }
    // Where there is no bias to change there is nothing to refuse.
    let spec = TinySpec { bias: false, ..TinySpec::default() };
    let adapter = adapted(&spec, true).detached("default").unwrap();
    assert_eq!(to_lora_with(&adapter, Rank::Fixed(2)).unwrap().modules.len(), 6);
}
