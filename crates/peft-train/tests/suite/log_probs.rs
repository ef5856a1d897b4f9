//! Log probabilities of tokens against candle's own operations on whole logits.

use crate::head::{batch, fill};
use crate::tiny;
use candle_core::{D, DType, Tensor};
use peft_core::PeftModel;
use peft_models::{CausalLanguageModel, CausalLm, Checkpointing, ForwardOptions};
use peft_train::data::{Batch, IGNORE_INDEX};
use peft_train::loss::{NextTokenLoss, TokenLogProbs};

const TEMPERATURE: f64 = 0.7;

fn model() -> PeftModel<CausalLm> {
    let mut model = tiny::adapted();
    model.train().unwrap();
    fill(&model);
    model
}

/// A batch of which some labels in the middle count for nothing.
fn masked() -> Batch {
    let mut batch = batch();
    let mut labels = batch.labels.to_vec2::<i64>().unwrap();
    labels[0][1] = IGNORE_INDEX;
    labels[1].iter_mut().for_each(|label| *label = IGNORE_INDEX);
    batch.labels = Tensor::new(labels, batch.labels.device()).unwrap();
    batch
}

/// The log probability of each token that counts, tracked, and its distribution's entropy; with the rows' lengths.
fn by_candle(model: &CausalLm, batch: &Batch) -> (Tensor, Vec<f64>, Vec<usize>) {
    let logits = model.forward(&batch.input_ids, ForwardOptions::all()).unwrap();
    let logits = (logits.to_dtype(DType::F64).unwrap() / TEMPERATURE).unwrap();
    let logs = logits.broadcast_sub(&logits.log_sum_exp(D::Minus1).unwrap().unsqueeze(2).unwrap()).unwrap();
    let entropies = (logs.exp().unwrap() * &logs).unwrap().sum(D::Minus1).unwrap().neg().unwrap();
    let entropies = entropies.to_vec2::<f64>().unwrap();
    let (mut log_probs, mut of_tokens, mut lengths) = (vec![], vec![], vec![]);
    for (row, labels) in batch.labels.to_vec2::<i64>().unwrap().into_iter().enumerate() {
        let counted = (1..labels.len()).filter(|&at| labels[at] != IGNORE_INDEX);
        lengths.push(counted.clone().count());
        for at in counted {
            log_probs.push(logs.get(row).unwrap().get(at - 1).unwrap().get(labels[at] as usize).unwrap());
            of_tokens.push(entropies[row][at - 1]);
        }
    }
    (Tensor::stack(&log_probs, 0).unwrap(), of_tokens, lengths)
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} is not {expected}");
    }
}

#[test]
fn values_and_gradients_are_those_of_whole_logits() {
    let (model, batch) = (model(), masked());
    let tokens = TokenLogProbs::of_batch(model.base(), &batch, TEMPERATURE, Checkpointing::None).unwrap();
    let (log_probs, entropies, lengths) = by_candle(model.base(), &batch);
    assert_eq!(tokens.rows().iter().map(Vec::len).collect::<Vec<_>>(), lengths);
    assert!(lengths.contains(&0) && tokens.count() == lengths.iter().sum::<usize>());
    assert_close(&tokens.rows().concat(), &log_probs.to_vec1::<f64>().unwrap());
    assert_close(&tokens.entropies().concat(), &entropies);

    // A coefficient of its own for each token, one of them zero.
    let coefficients: Vec<f64> = (0..tokens.count()).map(|i| (i as f64 - 2.0) * 0.3).collect();
    let weights = Tensor::new(coefficients.clone(), log_probs.device()).unwrap();
    let expected = (log_probs * weights).unwrap().sum_all().unwrap().backward().unwrap();
    for grads in [tokens.backward(&coefficients).unwrap(), tokens.backward(&coefficients).unwrap()] {
        for var in model.vars() {
            let [found, expected] = [&grads, &expected].map(|grads| {
                let gradient = grads.get(&var).unwrap().to_dtype(DType::F64).unwrap();
                gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap()
            });
            assert!(expected.iter().any(|x| x.abs() > 0.1));
            assert_close(&found, &expected);
        }
    }
}

#[test]
fn at_temperature_one_they_are_minus_the_losses() {
    let (model, batch) = (model(), batch());
    let losses = NextTokenLoss::of_batch(model.base(), &batch).unwrap();
    let tokens = TokenLogProbs::of_batch(model.base(), &batch, 1.0, Checkpointing::None).unwrap();
    let sums: Vec<f64> = tokens.rows().iter().map(|row| -row.iter().sum::<f64>()).collect();
    assert_close(&sums, &losses.row_sums().unwrap());
    let all_alike = tokens.backward(&vec![-0.2; tokens.count()]).unwrap();
    let losses = losses.backward(0.2).unwrap();
    for var in model.vars() {
        let [a, b] = [&all_alike, &losses].map(|grads| grads.get(&var).unwrap().flatten_all().unwrap());
        assert_eq!(a.to_vec1::<f32>().unwrap(), b.to_vec1::<f32>().unwrap());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (model, batch) = (model(), batch());
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let tokens = TokenLogProbs::of_batch(model.base(), &batch, temperature, Checkpointing::None);
        assert!(tokens.unwrap_err().to_string().contains("temperature"));
    }
    let tokens = TokenLogProbs::of_batch(model.base(), &batch, 1.0, Checkpointing::None).unwrap();
    let error = tokens.backward(&[1.0]).unwrap_err().to_string();
    assert!(error.contains("coefficients") && error.contains(&format!("there are 1 for {} tokens", tokens.count())));
    let mut empty = batch;
    empty.labels = empty.labels.zeros_like().unwrap().affine(0.0, IGNORE_INDEX as f64).unwrap();
    let tokens = TokenLogProbs::of_batch(model.base(), &empty, 1.0, Checkpointing::None);
    assert!(tokens.unwrap_err().to_string().contains("no token of it has a loss"));
}
