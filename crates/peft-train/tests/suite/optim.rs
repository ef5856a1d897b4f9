//! Optimizers against `torch.optim`, and gradients.

use crate::fixtures;
use candle_core::{DType, Device, Tensor, Var};
use peft_train::optim::{AdamW, AdamWConfig, Gradients, Optimizer, OptimizerConfig, Sgd, SgdConfig, Trainables};
use serde::Deserialize;
use std::collections::BTreeMap;

type Values = BTreeMap<String, Vec<f64>>;

#[derive(Deserialize)]
struct Fixture {
    shapes: BTreeMap<String, Vec<usize>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    dtype: String,
    optimizer: String,
    options: serde_json::Map<String, serde_json::Value>,
    max_norm: Option<f64>,
    start: Values,
    steps: Vec<Step>,
    state: Values,
}

#[derive(Deserialize)]
struct Step {
    lr: f64,
    gradients: Values,
    norm: Option<f64>,
    params: Values,
}

impl Case {
    fn dtype(&self) -> DType {
        if self.dtype == "float64" { DType::F64 } else { DType::F32 }
    }

    /// Rounding of a few operations, relative to values near 1.
    fn tolerance(&self) -> f64 {
        if self.dtype == "float64" { 1e-15 } else { 5e-7 }
    }

    fn tensor(&self, shape: &[usize], values: &[f64]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap().to_dtype(self.dtype()).unwrap()
    }

    fn trainables(&self, shapes: &BTreeMap<String, Vec<usize>>) -> Trainables {
        let var = |(name, values): (&String, &Vec<f64>)| {
            (name.clone(), Var::from_tensor(&self.tensor(&shapes[name], values)).unwrap())
        };
        Trainables::new(self.start.iter().map(var)).unwrap()
    }

    fn build(&self, trainables: &Trainables) -> Box<dyn Optimizer> {
        let mut config = self.options.clone();
        config.insert("optimizer".to_owned(), self.optimizer.clone().into());
        let config: OptimizerConfig = serde_json::from_value(config.into()).unwrap();
        config.build(trainables.clone()).unwrap()
    }

    /// The gradients of a step, by a backward pass through a loss that has them.
    fn gradients(&self, trainables: &Trainables, step: &Step) -> Gradients {
        let mut gradients = Gradients::new(trainables.clone());
        gradients.accumulate(&self.loss(trainables, step).backward().unwrap(), 1.0).unwrap();
        gradients
    }

    fn loss(&self, trainables: &Trainables, step: &Step) -> Tensor {
        let term = |(name, var): (&str, &Var)| {
            let gradient = self.tensor(var.dims(), &step.gradients[name]);
            (var.as_tensor() * gradient).unwrap().sum_all().unwrap()
        };
        trainables.iter().map(term).reduce(|a, b| (a + b).unwrap()).unwrap()
    }

    fn take(&self, optimizer: &mut dyn Optimizer, step: &Step) {
        let mut gradients = self.gradients(optimizer.trainables(), step);
        if let Some(max_norm) = self.max_norm {
            let norm = gradients.clip_norm(max_norm).unwrap();
            let expected = step.norm.unwrap();
            assert!((norm - expected).abs() <= 1e-6 * expected, "{}: norm {norm} is not {expected}", self.name);
        }
        optimizer.step(&gradients, step.lr).unwrap();
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(found: &Tensor, expected: &[f64], tolerance: f64, what: &str) {
    for (found, expected) in values(found).iter().zip(expected) {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{what}: {found} is not {expected}");
    }
}

#[test]
fn twenty_steps_are_those_of_torch() {
    let fixture: Fixture = fixtures::json("optim/cases.json");
    for case in &fixture.cases {
        let trainables = case.trainables(&fixture.shapes);
        let mut optimizer = case.build(&trainables);
        for (number, step) in case.steps.iter().enumerate() {
            case.take(optimizer.as_mut(), step);
            for (name, var) in trainables.iter() {
                let what = format!("{} {} step {number} `{name}`", case.name, case.dtype);
                assert_close(var, &step.params[name], case.tolerance(), &what);
            }
        }
        let mut state = optimizer.state().unwrap();
        if let Some(step) = state.remove("step") {
            assert_eq!(step.to_scalar::<i64>().unwrap(), case.steps.len() as i64);
        }
        assert_eq!(state.keys().collect::<Vec<_>>(), case.state.keys().collect::<Vec<_>>(), "{}", case.name);
        for (key, tensor) in &state {
            assert_close(tensor, &case.state[key], case.tolerance(), &format!("{} `{key}`", case.name));
        }
    }
}

#[test]
fn a_reloaded_state_continues_bit_for_bit() {
    let fixture: Fixture = fixtures::json("optim/cases.json");
    for case in &fixture.cases {
        for cut in [0, 1, 7] {
            let trainables = case.trainables(&fixture.shapes);
            let mut optimizer = case.build(&trainables);
            case.steps[..cut].iter().for_each(|step| case.take(optimizer.as_mut(), step));
            let state = optimizer.state().unwrap();
            let copies = trainables.iter().map(|(name, var)| (name.to_owned(), Var::from_tensor(var).unwrap()));
            let copies = Trainables::new(copies.collect::<Vec<_>>()).unwrap();
            case.steps[cut..].iter().for_each(|step| case.take(optimizer.as_mut(), step));

            let mut resumed = case.build(&copies);
            resumed.load_state(&state).unwrap();
            case.steps[cut..].iter().for_each(|step| case.take(resumed.as_mut(), step));
            for ((name, undisturbed), (_, resumed)) in trainables.iter().zip(copies.iter()) {
                assert_eq!(values(undisturbed), values(resumed), "{} `{name}` after {cut} steps", case.name);
            }
        }
    }
}

fn two_vars() -> (Var, Var, Trainables) {
    let first = Var::new(&[1f32, 2.], &Device::Cpu).unwrap();
    let second = Var::new(&[3f32], &Device::Cpu).unwrap();
    let named = [("first".to_owned(), first.clone()), ("second".to_owned(), second.clone())];
    (first, second, Trainables::new(named).unwrap())
}

#[test]
fn states_of_another_run_are_refused_and_change_nothing() {
    let (_, _, trainables) = two_vars();
    let mut optimizer = AdamW::new(trainables.clone(), AdamWConfig::default()).unwrap();
    let state = optimizer.state().unwrap();
    let refused = |optimizer: &mut AdamW, key: &str, value: Option<Tensor>, reason: &str| {
        let mut state = state.clone();
        match value {
            Some(value) => state.insert(key.to_owned(), value),
            None => state.remove(key),
        };
        let error = optimizer.load_state(&state).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(reason), "{error}");
    };
    let cpu = Device::Cpu;
    refused(&mut optimizer, "first.exp_avg", None, "no `first.exp_avg`");
    refused(&mut optimizer, "step", None, "no `step`");
    refused(&mut optimizer, "third.exp_avg", Some(Tensor::new(1f32, &cpu).unwrap()), "does not train");
    refused(&mut optimizer, "first.exp_avg", Some(Tensor::new(&[1f32], &cpu).unwrap()), "shape");
    refused(&mut optimizer, "first.exp_avg", Some(Tensor::new(&[1f64, 1.], &cpu).unwrap()), "F64");
    refused(&mut optimizer, "step", Some(Tensor::new(-1i64, &cpu).unwrap()), "-1");
    assert_eq!(values(&optimizer.state().unwrap()["first.exp_avg"]), [0., 0.]);

    let mut momentum = Sgd::new(trainables, SgdConfig { momentum: 0.9, weight_decay: 0.0 }).unwrap();
    assert!(momentum.load_state(&state).is_err());
}

#[test]
fn a_variable_without_a_gradient_is_named() {
    let (first, _, trainables) = two_vars();
    let mut gradients = Gradients::new(trainables.clone());
    let error = gradients.accumulate(&first.sum_all().unwrap().backward().unwrap(), 1.0).unwrap_err().to_string();
    assert!(error.contains("`second`") && !error.contains("`first`"), "{error}");
    let mut optimizer = Sgd::new(trainables, SgdConfig::default()).unwrap();
    assert!(optimizer.step(&gradients, 0.1).is_err(), "the failed pass must leave nothing behind");
    assert_eq!(values(&first), [1., 2.]);
}

#[test]
fn gradients_of_several_passes_are_summed_with_their_weights_and_without_their_graphs() {
    let (first, second, trainables) = two_vars();
    let loss = (first.sqr().unwrap().sum_all().unwrap() + second.sqr().unwrap().sum_all().unwrap()).unwrap();
    let mut gradients = Gradients::new(trainables);
    gradients.accumulate(&loss.backward().unwrap(), 1.0).unwrap();
    gradients.accumulate(&loss.backward().unwrap(), 0.5).unwrap();
    let found: Vec<_> = gradients.iter().map(|(name, tensor)| (name.to_owned(), values(tensor))).collect();
    assert_eq!(found, [("first".to_owned(), vec![3., 6.]), ("second".to_owned(), vec![9.])]);
    for (name, gradient) in gradients.iter() {
        assert!(!gradient.track_op(), "`{name}` holds a graph");
    }
}

#[test]
fn gradients_feed_only_the_optimizer_of_their_variables() {
    let (first, second, trainables) = two_vars();
    let loss = (first.sum_all().unwrap() + second.sum_all().unwrap()).unwrap();
    let mut gradients = Gradients::new(trainables);
    gradients.accumulate(&loss.backward().unwrap(), 1.0).unwrap();
    let (_, _, others) = two_vars();
    let error = Sgd::new(others, SgdConfig::default()).unwrap().step(&gradients, 0.1).unwrap_err().to_string();
    assert!(error.contains("another set"), "{error}");
}

#[test]
fn clipping_names_a_gradient_that_is_not_finite_and_survives_huge_ones() {
    for (value, finite) in [(f32::NAN, false), (f32::INFINITY, false), (1e30, true)] {
        let (first, second, trainables) = two_vars();
        let loss = (first.sum_all().unwrap() + (second.sum_all().unwrap() * f64::from(value)).unwrap()).unwrap();
        let mut gradients = Gradients::new(trainables);
        gradients.accumulate(&loss.backward().unwrap(), 1.0).unwrap();
        match gradients.clip_norm(1.0) {
            Ok(norm) => assert!(finite && (norm / 1e30 - 1.0).abs() < 1e-6, "{norm}"),
            Err(error) => assert!(!finite && error.to_string().contains("`second`"), "{error}"),
        }
    }
    let (_, _, trainables) = two_vars();
    assert!(Gradients::new(trainables).clip_norm(0.0).is_err());
}

#[test]
fn sets_that_cannot_be_trained_are_refused() {
    let var = |dtype| Var::zeros(2, dtype, &Device::Cpu).unwrap();
    let refused = |vars: Vec<(&str, Var)>, reason: &str| {
        let named = vars.into_iter().map(|(name, var)| (name.to_owned(), var));
        let error = Trainables::new(named).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    let shared = var(DType::F32);
    refused(vec![], "nothing to train");
    refused(vec![("a", var(DType::F32)), ("a", var(DType::F32))], "two variables are named `a`");
    refused(vec![("a", shared.clone()), ("b", shared)], "`a` and `b` are the same");
    refused(vec![("a", var(DType::BF16))], "`a` is BF16");
}

#[test]
fn constants_out_of_range_are_refused() {
    let adamw = |config| AdamW::new(two_vars().2, config).unwrap_err().to_string();
    assert!(adamw(AdamWConfig { beta1: 1.0, ..Default::default() }).contains("beta1"));
    assert!(adamw(AdamWConfig { beta2: f64::NAN, ..Default::default() }).contains("beta2"));
    assert!(adamw(AdamWConfig { eps: -1.0, ..Default::default() }).contains("eps"));
    assert!(adamw(AdamWConfig { weight_decay: f64::INFINITY, ..Default::default() }).contains("weight_decay"));
    let sgd = |config| Sgd::new(two_vars().2, config).unwrap_err().to_string();
    assert!(sgd(SgdConfig { momentum: 1.0, weight_decay: 0.0 }).contains("momentum"));
    assert!(sgd(SgdConfig { momentum: 0.0, weight_decay: -1.0 }).contains("weight_decay"));
}
