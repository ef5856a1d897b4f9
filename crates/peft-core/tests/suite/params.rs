//! Parameters that are made or read, and what a checkpoint owes the method.

use candle_core::{DType, Device, Tensor};
use peft_core::{Error, Mode, ParamBuilder, ParamKey, Persist, Result, TensorSource};
use peft_testkit::assert::assert_same;
use std::collections::BTreeMap;

const CPU: &Device = &Device::Cpu;

fn t(values: &[f32]) -> Tensor {
    Tensor::new(values, CPU).unwrap()
}

fn source(tensors: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
    tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect()
}

fn never() -> Result<Tensor> {
    panic!("nothing is to be made when a checkpoint has it")
}

#[test]
fn keys_are_the_names_of_peft() {
    assert_eq!(
        ParamKey::site("model.layers.0.q_proj", "lora_A.weight").to_string(),
        "base_model.model.model.layers.0.q_proj.lora_A.weight"
    );
    assert_eq!(ParamKey::shared("tinylora_v.0").to_string(), "base_model.tinylora_v.0");
}

#[test]
fn values_come_from_the_checkpoint_in_the_dtype_that_was_asked_for() {
    let file = source(&[("base_model.v", t(&[1.0, 2.0])), ("base_model.a", t(&[3.0]))]);
    let mut params = ParamBuilder::new(Some(&file));
    let v = params.trainable(ParamKey::shared("v"), 2, DType::F64, CPU, never).unwrap();
    let a = params.frozen(ParamKey::shared("a"), 1, DType::BF16, CPU, Persist::Always, never).unwrap();
    assert_same("v", v.read(Mode::Infer), &Tensor::new(&[1.0f64, 2.0], CPU).unwrap());
    assert_eq!(a.dtype(), DType::BF16);
    let store = params.finish().unwrap();
    assert_eq!(store.trainable_count(), 2);
    assert_eq!(store.persisted().count(), 2);
}

#[test]
fn training_does_not_write_into_the_source() {
    let file = source(&[("base_model.v", t(&[1.0, 2.0]))]);
    let mut params = ParamBuilder::new(Some(&file));
    let v = params.trainable(ParamKey::shared("v"), 2, DType::F32, CPU, never).unwrap();
    v.var().set(&t(&[9.0, 9.0])).unwrap();
    assert_same("the source", &file["base_model.v"], &t(&[1.0, 2.0]));
    assert_same("the view", v.read(Mode::Infer), &t(&[9.0, 9.0]));
}

#[test]
fn a_source_of_variables_is_not_written_into_either() {
    let var = candle_core::Var::new(&[1.0f32, 2.0], CPU).unwrap();
    let file = source(&[("base_model.v", var.as_tensor().clone())]);
    let mut params = ParamBuilder::new(Some(&file));
    let v = params.trainable(ParamKey::shared("v"), 2, DType::F32, CPU, never).unwrap();
    v.var().set(&t(&[9.0, 9.0])).unwrap();
    assert_same("the variable", var.as_tensor(), &t(&[1.0, 2.0]));
}

#[test]
fn what_is_persisted_must_be_in_the_checkpoint() {
    let file = source(&[]);
    let mut params = ParamBuilder::new(Some(&file));
    let zero = || Ok(t(&[0.0]));
    let error = params.trainable(ParamKey::shared("v"), 1, DType::F32, CPU, zero).unwrap_err();
    assert!(matches!(error, Error::MissingTensor(name) if name == "base_model.v"));
    let error = params.frozen(ParamKey::shared("a"), 1, DType::F32, CPU, Persist::Always, zero).unwrap_err();
    assert!(matches!(error, Error::MissingTensor(name) if name == "base_model.a"));
    params.frozen(ParamKey::shared("p"), 1, DType::F32, CPU, Persist::Never, zero).unwrap();
    assert_eq!(params.finish().unwrap().persisted().count(), 0);
}

#[test]
fn what_is_not_persisted_is_still_read_when_it_is_there() {
    let file = source(&[("base_model.p", t(&[5.0]))]);
    let mut params = ParamBuilder::new(Some(&file));
    let p = params.frozen(ParamKey::shared("p"), 1, DType::F32, CPU, Persist::Never, never).unwrap();
    assert_same("p", &p, &t(&[5.0]));
    let store = params.finish().unwrap();
    assert_eq!(store.persisted().count(), 0);
    assert!(store.tensor(&ParamKey::shared("p")).is_some());
}

#[test]
fn shapes_are_checked_before_anything_is_read() {
    struct HeaderOnly;
    impl TensorSource for HeaderOnly {
        fn names(&self) -> std::collections::BTreeSet<String> {
            ["base_model.v".to_owned()].into()
        }
        fn shape(&self, _: &str) -> Option<candle_core::Shape> {
            Some((usize::MAX / 2, 4).into())
        }
        fn load(&self, _: &str, _: &Device) -> Result<Option<Tensor>> {
            panic!("the header says enough")
        }
    }
    let mut params = ParamBuilder::new(Some(&HeaderOnly));
    let error = params.trainable(ParamKey::shared("v"), 3, DType::F32, CPU, never).unwrap_err();
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
}

#[test]
fn leftovers_are_listed() {
    let file = source(&[("base_model.v", t(&[1.0])), ("base_model.w", t(&[1.0])), ("other", t(&[1.0]))]);
    let mut params = ParamBuilder::new(Some(&file));
    params.trainable(ParamKey::shared("v"), 1, DType::F32, CPU, never).unwrap();
    let error = params.finish().unwrap_err();
    assert!(matches!(error, Error::UnexpectedTensors(names) if names == ["base_model.w", "other"]));
}

#[test]
fn a_key_can_be_taken_once() {
    let mut params = ParamBuilder::new(None);
    let zero = || Ok(t(&[0.0]));
    params.trainable(ParamKey::shared("v"), 1, DType::F32, CPU, zero).unwrap();
    let error = params.trainable(ParamKey::shared("v"), 1, DType::F32, CPU, zero).unwrap_err();
    assert!(error.to_string().contains("`base_model.v` twice"), "{error}");
    assert!(params.frozen(ParamKey::shared("v"), 1, DType::F32, CPU, Persist::Always, zero).is_err());
}

#[test]
fn what_is_made_must_have_the_shape_that_was_announced() {
    let mut params = ParamBuilder::new(None);
    let error = params.trainable(ParamKey::shared("v"), 3, DType::F32, CPU, || Ok(t(&[0.0]))).unwrap_err();
    assert_eq!(error.to_string(), "`base_model.v` has shape [1], but the config and the model ask for [3]");
}

#[test]
fn training_is_tracked_and_inference_is_not() {
    let mut params = ParamBuilder::new(None);
    let v = params.trainable(ParamKey::shared("v"), 1, DType::F32, CPU, || Ok(t(&[2.0]))).unwrap();
    assert!(v.read(Mode::Train).sqr().unwrap().track_op());
    assert!(!v.read(Mode::Infer).sqr().unwrap().track_op());
}
