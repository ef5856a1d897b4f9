//! Random graphs of our operators, candle's operations, views and shared inputs.

use candle_core::{D, Device, Result, Tensor, Var};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use super::weighted;
use crate::testing::sample;
use crate::{WeightLayout, backward, checkpoint, linear, mul_frozen, softmax_last_dim, swiglu};

/// An operation of a random graph: which, and on which of the values before it.
type Step = (usize, [usize; 5]);

const KINDS: usize = 13;
const VARS: usize = 4;

/// `(2, 3)` from `(2, 3)`s and a weight `(3, 3)`: by our operators, or by candle alone.
fn apply((kind, from): Step, values: &[Tensor], weight: &Var, ours: bool) -> Result<Tensor> {
    let pick = |i: usize| &values[from[i] % values.len()];
    let (a, b) = (pick(0), pick(1));
    match kind {
        0 => a + b,
        1 => a * b,
        2 => a.sin(),
        3 => a.reshape((3, 2))?.t()?.contiguous(),
        4 => Tensor::cat(&[&b.narrow(1, 1, 2)?, &a.narrow(1, 0, 1)?], 1),
        5 => a.unsqueeze(0)?.squeeze(0),
        6 | 7 => {
            let many: Vec<&Tensor> = (0..5).map(pick).collect();
            if ours {
                return weighted(&many)?.affine(0.1, 0.0);
            }
            let mut sum = many[0].zeros_like()?;
            for (i, value) in many.into_iter().enumerate() {
                sum = (sum + (value * (i + 1) as f64)?)?;
            }
            sum * 0.1
        }
        8 if ours => linear(a, weight, WeightLayout::OutIn, None),
        8 => a.matmul(&weight.t()?),
        9 | 10 if ours => swiglu(a, b),
        9 | 10 => a.silu()? * b,
        11 if ours => softmax_last_dim(&mul_frozen(a, &b.detach())?),
        11 => {
            let e = (a * b.detach())?.exp()?;
            e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
        }
        _ if ours => {
            let held = weight.clone();
            checkpoint(a, move |x| swiglu(x, &linear(x, &held, WeightLayout::InOut, None)?))
        }
        _ => a.silu()? * a.matmul(weight.as_tensor())?,
    }
}

/// Values of every step, the variables first, and the last few of them together.
fn run(steps: &[Step], vars: &[Var], weight: &Var, ours: bool) -> Result<Tensor> {
    let mut values: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    values.push(sample((2, 3), 9, candle_core::DType::F64));
    for &step in steps {
        values.push(apply(step, &values, weight, ours)?);
    }
    let last = &values[values.len() - 4..];
    match ours {
        true => weighted(&last.iter().collect::<Vec<_>>()),
        false => ((&last[0] + (&last[1] * 2.0)?)? + (&last[2] * 3.0)?)? + (&last[3] * 4.0)?,
    }
}

fn graphs() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..KINDS, prop::array::uniform5(0usize..64)), 1..24)
}

fn few(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(0), failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(few(400))]

    #[test]
    fn all_passes_agree(steps in graphs(), scalar: bool) {
        let vars: Vec<Var> =
            (0..VARS).map(|i| Var::from_tensor(&sample((2, 3), i, candle_core::DType::F64)).unwrap()).collect();
        let weight = Var::from_tensor(&sample((3, 3), 5, candle_core::DType::F64)).unwrap();
        let result = |ours| {
            let result = run(&steps, &vars, &weight, ours).unwrap();
            if scalar { result.sum_all().unwrap() } else { result }
        };
        let (reference, ours) = (result(false), result(true));
        let expected = reference.backward().unwrap();
        let by_candle = ours.backward().unwrap();
        let by_us = backward(&ours).unwrap();
        let again = backward(&ours).unwrap();
        for var in vars.iter().chain([&weight]) {
            let [expected, by_candle, by_us, again] =
                [&expected, &by_candle, &by_us, &again].map(|grads| grads.get(var).map(elements));
            // A variable that nothing depends on has no entry, for any of them.
            prop_assert_eq!(expected.is_some(), by_candle.is_some());
            prop_assert_eq!(expected.is_some(), by_us.is_some());
            prop_assert_eq!(&by_us, &again);
            let expected = expected.unwrap_or_default();
            let largest = expected.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
            prop_assume!(largest.is_finite());
            for (i, expected) in expected.iter().enumerate() {
                for actual in [&by_candle, &by_us].map(|grad| grad.as_ref().unwrap()[i]) {
                    prop_assert!((actual - expected).abs() <= 1e-11 * largest, "{} instead of {}", actual, expected);
                }
            }
        }
        let entries = vars.iter().chain([&weight]).filter(|var| by_us.get(var).is_some()).count();
        prop_assert_eq!(by_us.get_ids().count(), entries);
    }
}

fn elements(tensor: &Tensor) -> Vec<f64> {
    tensor.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
