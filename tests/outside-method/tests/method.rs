//! A method from outside registers, trains, saves, loads and merges.

use candle_core::{DType, Device, Module, Result as CandleResult, Tensor};
use outside_method::GainConfig;
use peft_core::nn::Linear;
use peft_core::{ModuleNames, PeftModel, Registry, TargetSpec, adaptable};
use peft_testkit::assert::{assert_close, assert_same};
use peft_testkit::conformance::Case;
use peft_testkit::strategy;
use peft_testkit::tiny::noise;
use proptest::prelude::*;
use std::error::Error;

/// A model of one's own: two layers, one of them stored transposed.
#[derive(Clone, Debug)]
struct Net {
    up: Linear,
    down: Linear,
}
adaptable!(Net { up as "up_proj", down as "down_proj" });

impl Net {
    fn new() -> CandleResult<Self> {
        let up = Linear::new(noise((8, 4), DType::F32, 1)?, Some(noise(8, DType::F32, 2)?));
        Ok(Self { up, down: Linear::from_transposed(noise((8, 3), DType::F32, 3)?, None) })
    }

    fn forward(&self, xs: &Tensor) -> CandleResult<Tensor> {
        self.down.forward(&self.up.forward(xs)?.tanh()?)
    }
}

fn gains(names: &[&str]) -> GainConfig {
    GainConfig { targets: TargetSpec::new(ModuleNames::list(names.iter().copied())), ..GainConfig::default() }
}

fn inputs() -> CandleResult<Tensor> {
    noise((16, 4), DType::F32, 4)
}

/// What the base makes of inputs whose features were amplified: a task that gains can solve.
fn wanted() -> CandleResult<Tensor> {
    let amplified = inputs()?.broadcast_mul(&Tensor::new(&[2f32, 0.5, -1.0, 1.5], &Device::Cpu)?)?;
    Net::new()?.forward(&amplified)
}

fn loss(model: &PeftModel<Net>) -> CandleResult<Tensor> {
    (model.base().forward(&inputs()?)? - wanted()?)?.sqr()?.mean_all()
}

/// Gradient descent; the loss before and after.
fn train(model: &mut PeftModel<Net>, steps: usize) -> Result<(f32, f32), Box<dyn Error>> {
    model.train()?;
    let before = loss(model)?.to_scalar()?;
    for _ in 0..steps {
        let grads = loss(model)?.backward()?;
        model.audit_gradients(&grads)?;
        for var in model.vars() {
            let grad = grads.get(&var).ok_or("the audit lets nothing through")?;
            var.set(&(var.as_tensor() - (grad * 2.0)?)?.detach())?;
        }
    }
    model.eval()?;
    Ok((before, loss(model)?.to_scalar()?))
}

#[test]
fn it_trains_saves_loads_and_merges() -> Result<(), Box<dyn Error>> {
    let mut registry = Registry::new();
    registry.register::<GainConfig>()?;
    let config = registry.parse(r#"{"peft_type": "GAIN", "target_modules": ["up_proj"]}"#)?;

    let mut model = PeftModel::new(Net::new()?);
    model.add_adapter("default", config)?;
    assert_eq!(model.param_counts()?.trainable, 4);
    let (before, after) = train(&mut model, 400)?;
    assert!(after < before / 100.0, "{before} -> {after}");

    let folder = tempfile::tempdir()?;
    model.save_adapter("default", folder.path())?;
    let mut loaded = PeftModel::new(Net::new()?);
    let adapter = loaded.load_adapter("default", folder.path(), &registry)?;
    assert_eq!(adapter.config.method.peft_type(), "GAIN");
    let trained = model.base().forward(&inputs()?)?;
    assert_same("loaded", &loaded.base().forward(&inputs()?)?, &trained);

    loaded.merge()?;
    assert_close("merged", &loaded.base().forward(&inputs()?)?, &trained, 1e-6);
    loaded.unmerge()?;
    assert_same("unmerged", &loaded.base().forward(&inputs()?)?, &trained);
    assert_close("unloaded", &loaded.merge_and_unload()?.forward(&inputs()?)?, &trained, 1e-6);
    Ok(())
}

#[test]
fn bad_configs_are_refused() -> Result<(), Box<dyn Error>> {
    let mut model = PeftModel::new(Net::new()?);
    let config = GainConfig { init_gain: f64::NAN, ..gains(&["up_proj"]) };
    assert!(model.add_adapter("default", config).is_err_and(|e| e.to_string().contains("`init_gain` is NaN")));
    assert!(model.add_adapter("default", gains(&["up_porj"])).is_err_and(|e| e.to_string().contains("`up_proj`")));
    Ok(())
}

#[test]
fn without_it_the_error_lists_what_is_registered() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut model = PeftModel::new(Net::new()?);
    model.add_adapter("default", gains(&["up_proj"]))?;
    model.save_adapter("default", folder.path())?;
    let loaded = PeftModel::new(Net::new()?).load_adapter("x", folder.path(), &Registry::new()).map(drop);
    assert!(loaded.is_err_and(|e| e.to_string().contains("unknown adapter method `GAIN`")));
    Ok(())
}

proptest! {
    #![proptest_config(strategy::config(24))]

    #[test]
    fn it_keeps_the_laws(spec in strategy::spec(), targets in strategy::linear_targets(), seed in 0u64..99) {
        let config = GainConfig { targets, ..GainConfig::default() };
        Case::new(config).map_err(|e| TestCaseError::fail(e.to_string()))?.on(spec).with_seed(seed).check()?;
    }

    #[test]
    fn it_keeps_them_from_another_start(spec in strategy::spec(), init_gain in -2.0..3.0f64) {
        let config = GainConfig { init_gain, ..gains(&["up_proj", "down_proj"]) };
        Case::new(config).map_err(|e| TestCaseError::fail(e.to_string()))?.on(spec).not_identity().check()?;
    }
}
