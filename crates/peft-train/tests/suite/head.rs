//! Losses of heads of every kind against those of whole logits.

use crate::tiny;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use peft_core::{AdapterConfig, ModuleNames, PeftModel, TargetSpec};
use peft_lora::LoraConfig;
use peft_models::{CausalLanguageModel, CausalLm, ForwardOptions, load_model};
use peft_testkit::tiny::noise;
use peft_tinylora::TinyLoraConfig;
use peft_train::data::Batch;
use peft_train::loss::NextTokenLoss;
use serde_json::Value;
use std::fs;

/// The tiny Llama in training, whose output head has its own weight or that of the embedding.
fn base(tied: bool) -> PeftModel<CausalLm> {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(tiny::base_folder()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["tie_word_embeddings"] = tied.into();
    fs::write(path, config.to_string()).unwrap();
    let mut model = PeftModel::new(load_model(folder.path(), None, &Device::Cpu).unwrap());
    model.train().unwrap();
    model
}

pub(crate) fn batch() -> Batch {
    let data = tiny::dataset(&tiny::rows(3, 1));
    Batch::collate(data.examples().iter().map(|example| &example.encoded), 0, &Device::Cpu).unwrap()
}

fn modules(names: &[&str]) -> TargetSpec {
    TargetSpec::new(ModuleNames::list(names.iter().copied()))
}

/// No trained number is zero, so that each gradient is different from zero.
pub(crate) fn fill(model: &PeftModel<CausalLm>) {
    for (i, var) in model.vars().iter().enumerate() {
        var.set(&noise(var.shape(), var.dtype(), 10 + i as u64).unwrap()).unwrap();
    }
}

fn with(tied: bool, adapters: &[AdapterConfig]) -> PeftModel<CausalLm> {
    let mut model = base(tied);
    let names: Vec<String> = (0..adapters.len()).map(|i| i.to_string()).collect();
    for (name, config) in names.iter().zip(adapters) {
        model.add_adapter(name, config.clone()).unwrap();
    }
    model.activate(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    fill(&model);
    model
}

fn gradient(grads: &GradStore, var: &Var) -> Vec<f64> {
    let gradient = grads.get(var).expect("no gradient").to_dtype(DType::F64).unwrap();
    gradient.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    assert!(largest > 0.0);
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 2e-5 * largest, "{found} is not {expected}, of up to {largest}");
    }
}

/// The gradients of a model's loss, after comparison with those of its whole logits.
#[track_caller]
fn check(model: &PeftModel<CausalLm>, one_map: bool) -> GradStore {
    assert_eq!(model.base().head().map().unwrap().is_some(), one_map);
    let batch = batch();
    model.reseed(1).unwrap();
    let loss = NextTokenLoss::of_batch(model.base(), &batch).unwrap();
    model.reseed(1).unwrap();
    let logits = model.base().forward(&batch.input_ids, ForwardOptions::all()).unwrap();
    let whole = NextTokenLoss::of_logits(&logits, &batch.labels).unwrap();
    assert_eq!(loss.count(), whole.count());
    assert_close(&loss.row_sums().unwrap(), &whole.row_sums().unwrap());
    let (grads, whole) = (loss.backward(0.3).unwrap(), whole.backward(0.3).unwrap());
    for var in model.vars() {
        assert_close(&gradient(&grads, &var), &gradient(&whole, &var));
    }
    model.audit_gradients(&grads).unwrap();
    grads
}

fn shared_vector(weight_tying: f64) -> TinyLoraConfig {
    TinyLoraConfig::new(modules(&["q_proj", "down_proj", "lm_head"])).with_u(5).with_weight_tying(weight_tying)
}

#[test]
fn frozen_heads() {
    for tied in [false, true] {
        check(&with(tied, &[tiny::method().into()]), true);
    }
}

#[test]
fn heads_with_lora() {
    for tied in [false, true] {
        check(&with(tied, &[LoraConfig::with_rank(4, modules(&["q_proj", "lm_head"])).into()]), true);
    }
}

#[test]
fn a_vector_shared_with_the_head_gets_the_sum_of_all_gradients() {
    for tied in [false, true] {
        let model = with(tied, &[shared_vector(1.0).into()]);
        let [shared] = model.vars().try_into().unwrap();
        let found = gradient(&check(&model, true), &shared);

        // The same adapter with a vector for each module, all of one value.
        let apart = with(tied, &[shared_vector(0.0).into()]);
        let vars = apart.vars();
        assert_eq!(vars.len(), 5);
        vars.iter().for_each(|var| var.set(&shared.reshape(var.shape()).unwrap()).unwrap());
        let grads = check(&apart, true);
        let mut sum = vec![0.0; found.len()];
        for var in &vars {
            let of_module = gradient(&grads, var);
            assert!(of_module.iter().any(|x| *x != 0.0));
            sum.iter_mut().zip(of_module).for_each(|(sum, x)| *sum += x);
        }
        assert_close(&found, &sum);
    }
}

#[test]
fn trained_heads() {
    let mut targets = modules(&["q_proj"]);
    targets.modules_to_save = Some(vec!["lm_head".into()]);
    check(&with(false, &[LoraConfig::with_rank(2, targets).into()]), true);
}

#[test]
fn heads_that_are_more_than_one_map() {
    let lora = || LoraConfig::with_rank(2, modules(&["lm_head"]));
    check(&with(false, &[lora().into(), lora().into()]), false);
    let mut dropout = lora();
    dropout.lora_dropout = 0.4;
    let mut model = with(false, &[dropout.into()]);
    check(&model, false);
    // Nothing is dropped at inference.
    model.eval().unwrap();
    assert!(model.base().head().map().unwrap().is_some());
    let mut dora = lora();
    dora.use_dora = true;
    check(&with(false, &[dora.into()]), false);
}

/// f32 adapters of a bf16 model.
#[test]
fn sixteen_bit_heads_with_adapters() {
    let mut model = PeftModel::new(load_model(tiny::base_folder(), DType::BF16, &Device::Cpu).unwrap());
    model.train().unwrap();
    model.add_adapter("default", shared_vector(1.0)).unwrap();
    fill(&model);
    let batch = batch();
    let loss = NextTokenLoss::of_batch(model.base(), &batch).unwrap();
    let logits = model.base().forward(&batch.input_ids, ForwardOptions::all()).unwrap();
    let whole = NextTokenLoss::of_logits(&logits, &batch.labels).unwrap();
    let close = |a: &Tensor, b: &Tensor| {
        let difference = (a - b).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let size = b.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference <= (0.02f32).powi(2) * size, "{difference} of {size}");
    };
    close(&loss.sum().unwrap(), &whole.sum().unwrap());
    let (grads, whole) = (loss.backward(1.0).unwrap(), whole.backward(1.0).unwrap());
    for var in model.vars() {
        assert_eq!(var.dtype(), DType::F32);
        close(grads.get(&var).unwrap(), whole.get(&var).unwrap());
    }
}
