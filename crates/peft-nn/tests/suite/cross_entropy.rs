use candle_core::{DType, Device, Result, Tensor, Var};
use peft_nn::{CrossEntropyOptions, IGNORE_INDEX, cross_entropy, cross_entropy_with};
use proptest::prelude::*;

use crate::support::{assert_close, cases, check_gradients, check_sixteen_bit, elements, error, random};

fn labels(values: &[i64], shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn gradients_of_losses_sum_and_mean(
        batch in 1usize..3,
        (targets, vocabulary) in (2usize..6)
            .prop_flat_map(|n| (prop::collection::vec(prop_oneof![Just(IGNORE_INDEX), 0..n as i64], 1..4), Just(n))),
        seed: u64,
    ) {
        let logits = (random((batch, targets.len(), vocabulary), seed) * 3.0).unwrap();
        let labels = labels(&targets.repeat(batch), (batch, targets.len()));
        let run = |logits: &Tensor| cross_entropy(logits, &labels, IGNORE_INDEX);
        check_gradients(std::slice::from_ref(&logits), |v| Ok(run(&v[0])?.per_token().clone()));
        check_gradients(std::slice::from_ref(&logits), |v| run(&v[0])?.per_token().sum(1));
        check_gradients(std::slice::from_ref(&logits), |v| run(&v[0])?.sum());
        if run(&logits).unwrap().count() > 0 {
            check_gradients(&[logits], |v| run(&v[0])?.mean());
        }
    }

    #[test]
    fn gradients_at_a_temperature(rows in 1usize..4, vocabulary in 2usize..7, scale in 0.2f64..4.0, seed: u64) {
        let logits = (random((rows, vocabulary), seed) * 3.0).unwrap();
        let targets: Vec<i64> = (0..rows).map(|i| ((seed >> 8) as usize + 31 * i) as i64 % vocabulary as i64).collect();
        let labels = labels(&targets, rows);
        let options = CrossEntropyOptions::default().with_logit_scale(scale);
        check_gradients(&[logits], |v| Ok(cross_entropy_with(&v[0], &labels, options)?.per_token().clone()));
    }

    #[test]
    fn the_mean_equals_candle(rows in 1usize..30, vocabulary in 1usize..2000, seed: u64) {
        let logits = (random((rows, vocabulary), seed) * 5.0).unwrap().to_dtype(DType::F32).unwrap();
        let targets: Vec<i64> = (0..rows).map(|i| ((seed >> 8) as usize + 31 * i) as i64 % vocabulary as i64).collect();
        let labels = labels(&targets, rows);
        let loss = cross_entropy(&logits, &labels, IGNORE_INDEX).unwrap();
        prop_assert_eq!(loss.count(), rows);
        assert_close(&loss.mean().unwrap(), &candle_nn::loss::cross_entropy(&logits, &labels).unwrap(), 1e-5);
    }
}

#[test]
fn ignored_labels_contribute_nothing() -> Result<()> {
    let row = [0.3, -0.2, 0.9];
    let logits = Tensor::new(&[row, [f64::INFINITY, f64::NAN, 0.0], row], &Device::Cpu)?;
    let logits = Var::from_tensor(&logits)?;
    let loss = cross_entropy(&logits, &labels(&[2, -100, 0], 3), IGNORE_INDEX)?;
    let log_sum = row.iter().map(|x: &f64| x.exp()).sum::<f64>().ln();
    let expected = Tensor::new(&[log_sum - 0.9, 0.0, log_sum - 0.3], &Device::Cpu)?;
    assert_eq!(loss.count(), 2);
    assert_close(loss.per_token(), &expected, 1e-14);
    assert_close(&loss.mean()?, &(expected.sum_all()? / 2.0)?, 1e-14);
    let grads = loss.mean()?.backward()?;
    assert_eq!(elements(&grads.get(&logits).unwrap().get(1)?), [0.0; 3]);
    Ok(())
}

#[test]
fn a_batch_without_labels_sums_to_zero_and_has_no_mean() -> Result<()> {
    let logits = Var::from_tensor(&random((2, 3), 1))?;
    let loss = cross_entropy(&logits, &labels(&[-100, -100], 2), IGNORE_INDEX)?;
    assert_eq!(loss.count(), 0);
    assert_eq!(elements(&loss.sum()?), [0.0]);
    assert_eq!(elements(loss.sum()?.backward()?.get(&logits).unwrap()), [0.0; 6]);
    assert!(error(loss.mean()).contains("no label counts, all 2 are ignored"));
    Ok(())
}

#[test]
fn frozen_logits_give_untracked_losses() {
    let loss = cross_entropy(&random((2, 3), 1), &labels(&[0, 1], 2), IGNORE_INDEX).unwrap();
    assert!(!loss.per_token().track_op() && !loss.mean().unwrap().track_op());
}

#[test]
fn huge_logits_do_not_overflow() {
    let logits = Tensor::new(&[[1e4f32, 0.0], [0.0, 1e4]], &Device::Cpu).unwrap();
    let loss = cross_entropy(&logits, &labels(&[0, 0], 2), IGNORE_INDEX).unwrap();
    assert_eq!(elements(loss.per_token()), [0.0, 1e4]);
}

/// `-sum p log p`, in f64.
fn entropy(logits: &[f64]) -> f64 {
    let total = logits.iter().map(|x| x.exp()).sum::<f64>();
    -logits.iter().map(|x| x.exp() / total).filter(|p| *p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

#[test]
fn entropies_of_flat_sharp_and_impossible_logits() {
    const MINUS: f64 = f64::NEG_INFINITY;
    let rows =
        [[0.5, 0.5, 0.5, 0.5], [30.0, 0.0, -1.0, 2.0], [MINUS, 1.0, MINUS, 2.0], [MINUS, MINUS, 9.0, MINUS], [1.0; 4]];
    let targets = labels(&[0, 0, 3, 2, IGNORE_INDEX], 5);
    let options = CrossEntropyOptions::default().with_logit_scale(0.5).with_entropies();
    let loss = cross_entropy_with(&Tensor::new(&rows, &Device::Cpu).unwrap(), &targets, options).unwrap();
    let found = elements(loss.entropies().unwrap());
    for (row, found) in rows.iter().zip(&found).take(4) {
        let expected = entropy(&row.map(|x| 0.5 * x));
        assert!((found - expected).abs() <= 1e-12 * expected.max(1e-3), "{found} is not {expected}");
    }
    assert_eq!(found[3..], [0.0, 0.0]);
    assert!(
        cross_entropy(&Tensor::new(&rows, &Device::Cpu).unwrap(), &targets, IGNORE_INDEX)
            .unwrap()
            .entropies()
            .is_none()
    );
}

/// The largest logit comes last, first, and in the middle of what is read at a time.
#[test]
fn the_entropy_of_a_large_vocabulary_is_exact() {
    const VOCABULARY: usize = 50_000;
    for slope in [1e-3, -1e-3, 0.0] {
        let row: Vec<f32> = (0..VOCABULARY).map(|i| slope * i as f32 + 3.0 * (i as f32).sin()).collect();
        let exact = entropy(&row.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        let logits = Tensor::from_vec(row, (1, VOCABULARY), &Device::Cpu).unwrap();
        let options = CrossEntropyOptions::default().with_entropies();
        let found = cross_entropy_with(&logits, &labels(&[7], 1), options).unwrap();
        let found = elements(found.entropies().unwrap())[0];
        assert!((found - exact).abs() < 2e-6 * exact, "{found} is not {exact}");
    }
}

#[test]
fn a_scale_of_logits_is_finite_and_above_zero() {
    for scale in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        let options = CrossEntropyOptions::default().with_logit_scale(scale);
        assert!(error(cross_entropy_with(&random((1, 3), 1), &labels(&[0], 1), options)).contains("logit scale"));
    }
}

#[test]
fn label_dtypes_and_strides() {
    let logits = random((2, 3, 5), 1);
    let expected = cross_entropy(&logits, &labels(&[0, 1, 2, 3, 4, 0], (2, 3)), IGNORE_INDEX).unwrap();
    let transposed = labels(&[0, 3, 1, 4, 2, 0], (3, 2)).t().unwrap();
    for labels in [transposed.clone(), transposed.to_dtype(DType::U32).unwrap()] {
        let loss = cross_entropy(&logits, &labels, IGNORE_INDEX).unwrap();
        assert_close(loss.per_token(), expected.per_token(), 0.0);
    }
    // The logits of all positions but the last, as a shift by one gives them.
    let shifted = labels(&[1, 2, 3, 4], (2, 2));
    check_gradients(&[logits], |v| cross_entropy(&v[0].narrow(1, 0, 2)?, &shifted, IGNORE_INDEX)?.mean());
}

#[test]
fn sixteen_bit_logits_have_f32_losses() {
    let targets = labels(&[7, -100, 0], 3);
    let logits = random((3, 40), 1);
    let loss = cross_entropy(&logits.to_dtype(DType::BF16).unwrap(), &targets, IGNORE_INDEX).unwrap();
    assert_eq!(loss.per_token().dtype(), DType::F32);
    check_sixteen_bit(&[logits], |v| Ok(cross_entropy(&v[0], &targets, IGNORE_INDEX)?.per_token().clone()));
}

#[test]
fn wrong_operands_are_errors() {
    let logits = random((2, 3), 1);
    let fails = |logits: &Tensor, labels: &Tensor| error(cross_entropy(logits, labels, IGNORE_INDEX));
    assert!(fails(&logits, &labels(&[0, 3], 2)).contains("label 3 at position 1 is out of range"));
    assert!(fails(&logits, &labels(&[-1, 0], 2)).contains("label -1 at position 0 is out of range"));
    assert!(fails(&logits, &labels(&[0, 1, 2], 3)).contains("labels tensor has shape [3], expected [2]"));
    assert!(fails(&logits, &random(2, 1)).contains("labels are f64"));
    assert!(fails(&labels(&[0, 1], (2, 1)), &labels(&[0, 0], 2)).contains("i64"));
}

/// Every term of a long row counts: added up one after another in f32, the small ones would round away.
#[test]
fn the_loss_of_a_large_vocabulary_is_exact() {
    const VOCABULARY: usize = 50_000;
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    for spread in [0.0, 4.0] {
        let row: Vec<f32> = (0..VOCABULARY).map(|_| spread * noise()).collect();
        let exact = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() - f64::from(row[7]);
        let logits = Tensor::from_vec(row, (1, VOCABULARY), &Device::Cpu).unwrap();
        let labels = Tensor::new(&[7i64], &Device::Cpu).unwrap();
        let loss = cross_entropy(&logits, &labels, IGNORE_INDEX).unwrap().mean().unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(loss) - exact).abs() < 1e-6, "spread {spread}: {loss} is not {exact}");
    }
}
