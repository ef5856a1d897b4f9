//! DoRA's magnitudes.

use candle_core::{DType, Device, Module, Tensor};
use peft_core::nn::Linear;
use peft_core::{Error, ModuleNames, ParamKey, PeftModel, TargetSpec, adaptable};
use peft_lora::{LoraConfig, LoraInit};
use peft_testkit::assert::{assert_close, assert_same};
use peft_testkit::tiny::{TinyModel, TinySpec, noise};

const UP: &str = "model.layers.0.mlp.up_proj";

fn targets() -> TargetSpec {
    TargetSpec::new(ModuleNames::list(["embed_tokens", "up_proj", "down_proj"]))
}

fn config(r: usize) -> LoraConfig {
    let mut config = LoraConfig::with_rank(r, targets());
    config.use_dora = true;
    config
}

fn adapted(config: LoraConfig, dtype: DType) -> PeftModel<TinyModel> {
    let mut model = PeftModel::new(TinySpec::of(dtype).build().unwrap());
    model.add_adapter("default", config).unwrap();
    model
}

fn lengths(model: &PeftModel<TinyModel>, path: &str) -> Tensor {
    let key = ParamKey::site(path, "lora_magnitude_vector");
    model.adapter("default").unwrap().params.tensor(&key).unwrap().clone()
}

fn weight(model: &PeftModel<TinyModel>, at: &str) -> Tensor {
    let mut found = None;
    let mut look = |path: &str, host: &dyn peft_core::Host| {
        if path == at {
            found = Some(host.base().canonical()?);
        }
        Ok(())
    };
    peft_core::Adaptable::visit(model.base(), &mut peft_core::Walk::new(&mut look)).unwrap();
    found.unwrap().to_dtype(DType::F64).unwrap()
}

/// Lengths along a dimension, in f64.
fn norms(weight: &Tensor, along: usize) -> Tensor {
    weight.sqr().unwrap().sum(along).unwrap().sqrt().unwrap()
}

#[test]
fn magnitudes_start_as_the_lengths_of_rows_and_of_an_embeddings_columns() {
    // With random factors the lengths are those of W + B A, not of W.
    let mut random = config(2);
    random.init_lora_weights = LoraInit::Random;
    let model = adapted(random, DType::F64);
    for (path, along) in [(UP, 1), ("model.layers.1.mlp.down_proj", 1), ("model.embed_tokens", 0)] {
        let tensors = &model.adapter("default").unwrap().params;
        let tensor = |name: &str| tensors.tensor(&ParamKey::site(path, name)).unwrap().clone();
        let product = match along {
            0 => tensor("lora_embedding_B").matmul(&tensor("lora_embedding_A")).unwrap().t().unwrap(),
            _ => tensor("lora_B.weight").matmul(&tensor("lora_A.weight")).unwrap(),
        };
        let changed = (weight(&model, path) + product).unwrap();
        assert_close(path, &lengths(&model, path), &norms(&changed, along), 1e-12);
    }
}

#[test]
fn merged_weights_have_the_trained_lengths() {
    let mut model = adapted(config(3), DType::F64);
    for (i, (_, var)) in model.trainable().into_iter().enumerate() {
        var.set(&(var.as_tensor() + noise(var.shape(), DType::F64, i as u64).unwrap()).unwrap()).unwrap();
    }
    let trained = lengths(&model, UP).abs().unwrap();
    model.untie().unwrap();
    model.merge().unwrap();
    assert_close(UP, &norms(&weight(&model, UP), 1), &trained, 1e-12);
}

#[test]
fn the_slope_along_the_magnitudes_is_exact() {
    // The lengths of W + B A are held constant in the backward pass, so the slopes along A and B are not those of the loss; the
    // recorded gradients of PEFT speak for them.
    let mut model = adapted(config(2), DType::F64);
    for (i, (_, var)) in model.trainable().into_iter().enumerate() {
        var.set(&(var.as_tensor() + noise(var.shape(), DType::F64, i as u64).unwrap()).unwrap()).unwrap();
    }
    model.train().unwrap();
    let ids = TinySpec::of(DType::F64).ids().unwrap();
    let loss = || model.base().forward(&ids)?.sqr()?.mean_all();
    let magnitudes: Vec<_> = model.trainable().into_iter().filter(|(name, _)| name.contains("magnitude")).collect();
    assert_eq!(magnitudes.len(), 5);
    peft_testkit::gradient::check(&magnitudes, &loss).unwrap();
}

#[test]
fn an_older_name_of_the_magnitudes_is_read() {
    let model = adapted(config(2), DType::F32);
    let adapter = model.adapter("default").unwrap();
    let renamed: std::collections::BTreeMap<String, Tensor> = adapter
        .params
        .persisted()
        .map(|(key, tensor)| (key.to_string().replace("magnitude_vector", "magnitude_vector.weight"), tensor.clone()))
        .collect();
    let mut again = PeftModel::new(TinySpec::default().build().unwrap());
    again.add_from_source("default", adapter.config.clone(), &renamed).unwrap();
    let ids = TinySpec::default().ids().unwrap();
    assert_same("logits", &again.base().forward(&ids).unwrap(), &model.base().forward(&ids).unwrap().detach());
}

/// One layer.
struct Net {
    proj: Linear,
}
adaptable!(Net { proj });

#[test]
fn dropout_normalises_what_the_masked_input_makes() {
    // With W = 1, B = 0 and lengths of 2 the adapter adds the masked input m once more: y = W x + b + (2 - 1) W m.
    let (n, p) = (64, 0.25);
    let bias = noise(n, DType::F64, 3).unwrap();
    let base = Net { proj: Linear::new(Tensor::eye(n, DType::F64, &Device::Cpu).unwrap(), Some(bias.clone())) };
    let mut config = LoraConfig::with_rank(2, TargetSpec::new(ModuleNames::list(["proj"])));
    config.use_dora = true;
    config.lora_dropout = p;
    let mut model = PeftModel::new(base);
    model.add_adapter("default", config).unwrap();
    for (_, var) in model.trainable().into_iter().filter(|(name, _)| name.contains("magnitude")) {
        var.set(&(var.as_tensor() * 2.0).unwrap()).unwrap();
    }
    let x = noise((1, n), DType::F64, 4).unwrap();
    model.reseed(1).unwrap();
    let plain = x.broadcast_add(&bias).unwrap();
    let added = (model.base().proj.forward(&x).unwrap().detach() - plain).unwrap();
    let factors = (added / &x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (dropped, kept): (Vec<f64>, Vec<f64>) = factors.iter().partition(|f| f.abs() < 1e-9);
    assert!(!dropped.is_empty() && !kept.is_empty(), "{factors:?}");
    assert!(kept.iter().all(|f| (f - 1.0 / (1.0 - p)).abs() < 1e-6), "{kept:?}");
    model.eval().unwrap();
    let inferred = (model.base().proj.forward(&x).unwrap()
        - (x.affine(2.0, 0.0).unwrap() + bias.unsqueeze(0).unwrap()).unwrap())
    .unwrap();
    assert!(inferred.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap() < 1e-12);
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let mut both = config(2);
    both.lora_bias = true;
    let mut model = PeftModel::new(TinySpec::default().build().unwrap());
    let error = model.add_adapter("default", both).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig(_)) && error.to_string().contains("`use_dora`"), "{error}");
}
