//! The loss of a batch against sums done by hand.

use crate::tiny;
use candle_core::{DType, Device, Tensor};
use peft_models::{CausalLanguageModel, ForwardOptions};
use peft_train::data::Batch;
use peft_train::loss::NextTokenLoss;

fn assert_close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} is not {expected}");
}

/// `-log softmax(logits)[label]`, in f64.
fn negative_log_likelihood(logits: &[f64], label: usize) -> f64 {
    logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[label]
}

#[test]
fn each_token_is_predicted_by_the_position_before_it() {
    let logits = [
        [[0.1, -0.4, 2.0], [1.5, 0.3, -0.2], [0.0, 0.7, 0.9], [3.0, 1.0, 2.0]],
        [[-1.0, 0.2, 0.4], [0.6, -2.0, 1.1], [9.0, 9.5, 8.0], [0.3, 0.3, 0.3]],
    ];
    // The first label of a row has no loss; in the second row two others are ignored.
    let labels = [[2i64, 0, 1, 2], [1, 2, -100, -100]];
    let nll =
        |row: usize, column: usize| negative_log_likelihood(&logits[row][column - 1], labels[row][column] as usize);
    let rows = [nll(0, 1) + nll(0, 2) + nll(0, 3), nll(1, 1)];

    let loss = NextTokenLoss::of_logits(
        &Tensor::new(&logits, &Device::Cpu).unwrap(),
        &Tensor::new(&labels, &Device::Cpu).unwrap(),
    )
    .unwrap();
    assert_eq!(loss.count(), 4);
    let found = loss.row_sums().unwrap();
    assert_eq!(found.len(), 2);
    found.iter().zip(rows).for_each(|(found, expected)| assert_close(*found, expected));
    assert_close(loss.sum().unwrap().to_scalar().unwrap(), rows.iter().sum());
    assert_close(loss.mean().unwrap().to_scalar().unwrap(), rows.iter().sum::<f64>() / 4.0);
}

#[test]
fn the_loss_of_a_model_is_that_of_its_logits() {
    let model = tiny::base();
    let data = tiny::parse(concat!(
        "{\"input_ids\": [1, 5, 9, 20, 33]}\n",
        "{\"input_ids\": [4, 8, 15], \"labels\": [-100, -100, 15]}\n",
    ));
    let batch = Batch::collate(data.examples().iter().map(|e| &e.encoded), 0, &Device::Cpu).unwrap();
    let of_model = NextTokenLoss::of_batch(&model, &batch).unwrap();
    assert_eq!((of_model.count(), batch.target_count), (5, 5));

    let logits = model.forward(&batch.input_ids, ForwardOptions::all()).unwrap();
    let logits = logits.to_dtype(DType::F64).unwrap().to_vec3::<f64>().unwrap();
    let first = [5, 9, 20, 33].iter().enumerate().map(|(at, id)| negative_log_likelihood(&logits[0][at], *id)).sum();
    let second = negative_log_likelihood(&logits[1][1], 15);
    let sums = of_model.row_sums().unwrap();
    assert_close(sums[0], first);
    assert_close(sums[1], second);
}

#[test]
fn a_batch_without_a_loss_is_refused() {
    let logits = Tensor::zeros((1, 2, 4), DType::F32, &Device::Cpu).unwrap();
    for labels in [[-100i64, -100], [3, -100]] {
        let labels = Tensor::new(&[labels], &Device::Cpu).unwrap();
        assert!(NextTokenLoss::of_logits(&logits, &labels).is_err());
    }
    let longer = Tensor::new(&[[1i64, 2, 3]], &Device::Cpu).unwrap();
    assert!(NextTokenLoss::of_logits(&logits, &longer).is_err());
}
