//! Every trainable weight gets its gradient, every frozen one none.

use crate::support::{NamedWeights, tiny_gpt2_config, tiny_llama_config, tiny_models, token_ids};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use peft_core::{Adaptable, ModuleNames, PeftModel, TargetSpec, Walk};
use peft_models::{CausalLanguageModel, ForwardOptions, Gpt2, Llama};
use peft_tinylora::{TinyLoraConfig, TinyLoraInit};

/// A scalar that depends on every logit.
fn loss(model: &dyn CausalLanguageModel) -> Tensor {
    let logits = model.forward(&token_ids(2, 5, 40), ForwardOptions::all()).unwrap();
    let weights = NamedWeights { stdev: 1.0 }.tensor("loss", logits.shape()).to_dtype(logits.dtype()).unwrap();
    (logits.tanh().unwrap() * weights).unwrap().mean_all().unwrap()
}

/// Compares the gradient of a variable with central differences at a few of its entries.
fn assert_gradient(name: &str, var: &Var, grad: &Tensor, loss: &dyn Fn() -> f64) {
    const STEP: f64 = 1e-5;
    let original = var.as_tensor().copy().unwrap();
    let grad: Vec<f64> = grad.flatten_all().unwrap().to_vec1().unwrap();
    let values: Vec<f64> = original.flatten_all().unwrap().to_vec1().unwrap();
    let largest = grad.iter().map(|g| g.abs()).fold(0.0, f64::max);
    let steepest = grad.iter().position(|g| g.abs() == largest).unwrap();
    for entry in [steepest, 0, values.len() / 3, values.len() - 1] {
        let at = |offset: f64| {
            let mut values = values.clone();
            values[entry] += offset;
            var.set(&Tensor::from_vec(values, original.shape(), &Device::Cpu).unwrap()).unwrap();
            loss()
        };
        let numeric = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let error = (grad[entry] - numeric).abs();
        assert!(error <= 1e-9 + 1e-6 * largest, "{name}[{entry}]: {} but differences say {numeric}", grad[entry]);
    }
    var.set(&original).unwrap();
}

/// Gives the variables values of a size at which every operator bends, and checks the gradient of each.
fn assert_all_gradients(model: &dyn CausalLanguageModel, weights: &VarMap, count: usize) {
    let vars = weights.data().lock().unwrap().clone();
    assert_eq!(vars.len(), count);
    for (name, var) in &vars {
        var.set(&NamedWeights { stdev: 0.3 }.tensor(name, var.shape())).unwrap();
    }
    let grads = loss(model).backward().unwrap();
    for (name, var) in &vars {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name} got no gradient"));
        assert_gradient(name, var, grad, &|| loss(model).to_scalar().unwrap());
    }
}

#[test]
fn llama_trains_from_scratch() {
    for (tied, count) in [(false, 2 * 16 + 3), (true, 2 * 16 + 2)] {
        let weights = VarMap::new();
        let mut config = tiny_llama_config();
        config.tie_word_embeddings = tied;
        let model = Llama::new(config, VarBuilder::from_varmap(&weights, DType::F64, &Device::Cpu)).unwrap();
        assert_all_gradients(&model, &weights, count);
    }
}

#[test]
fn gpt2_trains_from_scratch() {
    let weights = VarMap::new();
    let model = Gpt2::new(tiny_gpt2_config(), VarBuilder::from_varmap(&weights, DType::F64, &Device::Cpu)).unwrap();
    assert_all_gradients(&model, &weights, 2 * 12 + 4);
}

#[test]
fn an_adapter_trains_and_the_frozen_weights_do_not() {
    for model in tiny_models(DType::F32) {
        assert!(!loss(&model).track_op(), "a frozen model builds no graph");
        let mut model = PeftModel::new(model);
        let targets = TargetSpec::new(ModuleNames::all_linear());
        model
            .add_adapter("a", TinyLoraConfig::new(targets).with_u(3).with_init_weights(TinyLoraInit::Uniform))
            .unwrap();
        let grads = loss(model.base()).backward().unwrap();
        model.audit_gradients(&grads).unwrap();
        let mut frozen = |path: &str, host: &dyn peft_core::Host| {
            assert!(grads.get(host.base().stored()?).is_none(), "{path}");
            assert!(host.bias().is_none_or(|bias| grads.get(bias).is_none()), "{path}");
            Ok(())
        };
        model.base().visit(&mut Walk::new(&mut frozen)).unwrap();
        model.eval().unwrap();
        assert!(!loss(model.base()).track_op(), "inference builds no graph");
    }
}
