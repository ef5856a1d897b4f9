//! Random tensors, finite differences and comparisons.

use std::collections::HashSet;

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use proptest::test_runner::{Config, RngSeed};

/// Finite differences in f64: the step, and the error it leaves relative to the largest gradient.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-7;

/// The same `cases` random cases in every run.
pub(crate) fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(0), failure_persistence: None, ..Config::default() }
}

/// f64 values, uniform in -1..1, that depend on nothing but shape and seed.
pub(crate) fn random(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ shape.elem_count() as u64;
    let next = || {
        // SplitMix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64 * 2.0 - 1.0
    };
    let values = std::iter::repeat_with(next).take(shape.elem_count()).collect::<Vec<_>>();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub(crate) fn elements(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
pub(crate) fn assert_close(actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(actual.dims(), expected.dims());
    for (i, (a, e)) in elements(actual).into_iter().zip(elements(expected)).enumerate() {
        assert!((a - e).abs() <= tolerance * e.abs().max(1.0), "element {i}: {a} instead of {e}");
    }
}

#[track_caller]
pub(crate) fn assert_same_bits(actual: &Tensor, expected: &Tensor) {
    assert_eq!((actual.dims(), actual.dtype()), (expected.dims(), expected.dtype()));
    let bits = |tensor: &Tensor| elements(tensor).into_iter().map(f64::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(actual), bits(expected));
}

/// The message of an error that must occur.
#[track_caller]
pub(crate) fn error<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}

/// A scalar with a different slope in every element of `output`, built without another operand.
fn loss(output: &Tensor) -> Result<Tensor> {
    output.affine(1.3, 0.2)?.sin()?.sum_all()
}

/// Checks the gradients of `f` with respect to every input against central differences, and that its graph gives
/// gradients to these inputs and to no other tensor.
#[track_caller]
pub(crate) fn check_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let output = f(&tracked).unwrap();
    let grads = loss(&output).unwrap().backward().unwrap();

    let expected_ids: HashSet<_> = vars.iter().map(|var| var.id()).collect();
    let ids: HashSet<_> = grads.get_ids().copied().collect();
    assert_eq!(ids, expected_ids, "gradients other than those of the tracked inputs");

    for (i, input) in inputs.iter().enumerate() {
        let analytic = grads.get(&vars[i]).unwrap();
        assert_eq!(analytic.dims(), input.dims());
        let values = elements(input);
        let numeric: Vec<f64> = (0..values.len())
            .map(|j| {
                let at = |delta: f64| {
                    let mut values = values.clone();
                    values[j] += delta;
                    let mut inputs = inputs.to_vec();
                    inputs[i] = Tensor::from_vec(values, input.shape(), &Device::Cpu).unwrap();
                    elements(&loss(&f(&inputs).unwrap()).unwrap())[0]
                };
                (at(STEP) - at(-STEP)) / (2.0 * STEP)
            })
            .collect();
        let largest = numeric.iter().fold(1.0f64, |max, x| max.max(x.abs()));
        for (j, (a, n)) in elements(analytic).into_iter().zip(numeric).enumerate() {
            assert!((a - n).abs() <= TOLERANCE * largest, "input {i}, element {j}: {a}, by differences {n}");
        }
    }
}

/// Runs `f` in f32 and in a 16-bit type on inputs that the 16-bit type represents exactly, and compares the outputs and
/// the input gradients with the rounding error of that type.
#[track_caller]
pub(crate) fn check_sixteen_bit(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    for (dtype, tolerance) in [(DType::BF16, 1.0 / 64.0), (DType::F16, 1.0 / 512.0)] {
        let run = |compute: DType| {
            let rounded = |t: &Tensor| t.to_dtype(dtype).unwrap().to_dtype(compute).unwrap();
            let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(&rounded(t)).unwrap()).collect();
            let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let output = f(&tracked).unwrap();
            let grads = output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let grads = vars.iter().map(|var| grads.get(var).unwrap().clone()).collect::<Vec<_>>();
            (output, grads)
        };
        let (exact, exact_grads) = run(DType::F32);
        let (output, grads) = run(dtype);
        assert!(output.dtype() == dtype || output.dtype() == DType::F32);
        assert_close(&output, &exact, tolerance);
        for (grad, exact) in grads.iter().zip(&exact_grads) {
            assert_eq!(grad.dtype(), dtype);
            assert_close(grad, exact, 2.0 * tolerance);
        }
    }
}
