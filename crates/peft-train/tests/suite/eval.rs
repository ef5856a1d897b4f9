//! Evaluation.

use crate::tiny;
use peft_core::PeftModel;
use peft_train::eval::evaluate;

#[test]
fn the_batch_size_and_the_padding_do_not_matter() {
    let data = tiny::dataset(&tiny::rows(10, 1));
    let mut model = tiny::adapted();
    let alone = evaluate(&mut model, &data, 1).unwrap();
    assert_eq!(alone.rows.len(), 10);
    assert_eq!(alone.rows.iter().map(|row| row.line).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    for batch_size in [2, 3, 10, 64] {
        let together = evaluate(&mut model, &data, batch_size).unwrap();
        assert_eq!(together.tokens, alone.tokens);
        assert!((together.loss - alone.loss).abs() < 1e-6, "{batch_size}: {} {}", together.loss, alone.loss);
        for (one, other) in alone.rows.iter().zip(&together.rows) {
            assert_eq!((one.line, one.tokens), (other.line, other.tokens));
            assert!((one.loss - other.loss).abs() < 1e-6, "{batch_size}, line {}", one.line);
        }
    }
}

#[test]
fn every_token_counts_the_same() {
    let data = tiny::dataset(&tiny::rows(7, 2));
    let evaluation = evaluate(&mut PeftModel::new(tiny::base()), &data, 4).unwrap();
    let tokens: usize = data.examples().iter().map(|example| example.ids.len() - 1).sum();
    let total: f64 = evaluation.rows.iter().map(|row| row.loss * row.tokens as f64).sum();
    assert_eq!(evaluation.tokens, tokens);
    assert!((evaluation.loss - total / tokens as f64).abs() < 1e-12);
    assert_eq!(evaluation.perplexity, evaluation.loss.exp());
    // A model of 64 tokens that has learnt nothing is about as good as guessing.
    assert!((evaluation.loss - 64f64.ln()).abs() < 1.0, "{}", evaluation.loss);
}

#[test]
fn dropout_is_off() {
    let data = tiny::dataset(&tiny::rows(4, 3));
    let mut model = tiny::with_dropout();
    let mut plain = PeftModel::new(tiny::base());
    // The adapter begins as the identity, so that only dropout could make a difference.
    let [adapted, plain] = [evaluate(&mut model, &data, 4).unwrap(), evaluate(&mut plain, &data, 4).unwrap()];
    assert_eq!(adapted, plain);
}
