//! Padding changes nothing for tokens, and logits can be had for some positions only.

use crate::support::{assert_close, tiny_models, token_ids};
use candle_core::{DType, Device, Tensor};
use peft_models::{CausalLanguageModel, ForwardOptions};

const PAD: u32 = 0;

/// Rows of tokens with padding where the pattern has a dot, and the mask that marks it.
fn padded(patterns: &[&str]) -> (Tensor, Tensor, Vec<Vec<u32>>) {
    let (mut ids, mut mask, mut rows) = (vec![], vec![], vec![]);
    for (row, pattern) in patterns.iter().enumerate() {
        let mut tokens = vec![];
        for (column, symbol) in pattern.chars().enumerate() {
            let token = (11 * row + 5 * column + column * column) as u32 % 40;
            let is_token = symbol != '.';
            ids.push(if is_token { token } else { PAD });
            mask.push(u32::from(is_token));
            if is_token {
                tokens.push(token);
            }
        }
        rows.push(tokens);
    }
    let shape = (patterns.len(), patterns[0].len());
    let tensor = |values| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    (tensor(ids), tensor(mask), rows)
}

/// The logits of a row's tokens alone, out of those of a padded batch.
fn of_tokens(logits: &Tensor, row: usize, pattern: &str) -> Tensor {
    let columns: Vec<u32> = (0..).zip(pattern.chars()).filter(|(_, symbol)| *symbol != '.').map(|(i, _)| i).collect();
    let columns = Tensor::new(columns, &Device::Cpu).unwrap();
    logits.narrow(0, row, 1).unwrap().index_select(&columns, 1).unwrap()
}

fn row_tensor(tokens: &[u32]) -> Tensor {
    Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

#[test]
fn tokens_do_not_notice_padding() {
    let layouts = [["xxxxx", "xxx..", "x...."], ["..xxx", "xxxxx", "....x"], ["x.xx.", ".x.xx", "xxxxx"]];
    for model in tiny_models(DType::F32) {
        for patterns in layouts {
            let (ids, mask, rows) = padded(&patterns);
            let logits = model.forward(&ids, ForwardOptions::all().with_padding(mask)).unwrap();
            for (row, tokens) in rows.iter().enumerate() {
                let alone = model.forward(&row_tensor(tokens), ForwardOptions::all()).unwrap();
                assert_close(&of_tokens(&logits, row, patterns[row]), &alone, 1e-5);
            }
        }
    }
}

#[test]
fn right_padding_needs_no_mask() {
    let patterns = ["xxxxx", "xx..."];
    for model in tiny_models(DType::F32) {
        let (ids, mask, _) = padded(&patterns);
        let marked = model.forward(&ids, ForwardOptions::all().with_padding(mask)).unwrap();
        let unmarked = model.forward(&ids, ForwardOptions::all()).unwrap();
        for (row, pattern) in patterns.iter().enumerate() {
            assert_close(&of_tokens(&unmarked, row, pattern), &of_tokens(&marked, row, pattern), 0.0);
        }
    }
}

#[test]
fn the_last_position_is_that_of_the_last_token() {
    for model in tiny_models(DType::F32) {
        for patterns in [["xxxx", "xx.."], ["xxxx", "..xx"], ["x..x", ".x.."]] {
            let (ids, mask, rows) = padded(&patterns);
            let last = model.forward(&ids, ForwardOptions::last().with_padding(mask)).unwrap();
            assert_eq!(last.dims(), [2, 1, 40]);
            for (row, tokens) in rows.iter().enumerate() {
                let alone = model.forward(&row_tensor(tokens), ForwardOptions::last()).unwrap();
                assert_close(&last.narrow(0, row, 1).unwrap(), &alone, 1e-5);
            }
        }
    }
}

#[test]
fn padded_batches_generate_as_their_rows_do_alone() {
    for model in tiny_models(DType::F32) {
        for patterns in [["..xxx", "xxxxx"], ["xxx..", "xxxxx"]] {
            let (ids, mask, rows) = padded(&patterns);
            let mut cache = model.new_cache();
            model.forward(&ids, ForwardOptions::last().with_padding(mask).with_cache(&mut cache)).unwrap();
            // The padding of the first pass is remembered; the last of three further tokens is looked at.
            let further = token_ids(2, 3, 40);
            model.forward(&further.narrow(1, 0, 1).unwrap(), ForwardOptions::all().with_cache(&mut cache)).unwrap();
            let rest = further.narrow(1, 1, 2).unwrap();
            let logits = model.forward(&rest, ForwardOptions::last().with_cache(&mut cache)).unwrap();
            for (row, tokens) in rows.iter().enumerate() {
                let whole = Tensor::cat(&[row_tensor(tokens), further.narrow(0, row, 1).unwrap()], 1).unwrap();
                let alone = model.forward(&whole, ForwardOptions::last()).unwrap();
                assert_close(&logits.narrow(0, row, 1).unwrap(), &alone, 1e-5);
            }
        }
    }
}

#[test]
fn a_row_of_padding_alone_is_finite() {
    for model in tiny_models(DType::F32) {
        let (ids, mask, _) = padded(&["xxx", "..."]);
        let logits = model.forward(&ids, ForwardOptions::all().with_padding(mask)).unwrap();
        assert!(logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite()));
    }
}

#[test]
fn chosen_positions_are_those_of_the_whole() {
    let device = Device::Cpu;
    for model in tiny_models(DType::F32) {
        let ids = token_ids(2, 6, 40);
        let all = model.forward(&ids, ForwardOptions::all()).unwrap();
        let shared = Tensor::new(&[5u32, 0, 3], &device).unwrap();
        let some = model.forward(&ids, ForwardOptions::at(shared.clone())).unwrap();
        assert_close(&some, &all.index_select(&shared, 1).unwrap(), 1e-6);

        let per_row = Tensor::new(&[[1i64, 2], [4, 4]], &device).unwrap();
        let some = model.forward(&ids, ForwardOptions::at(per_row)).unwrap();
        for (row, column, n) in [(0, 1, 0), (0, 2, 1), (1, 4, 0), (1, 4, 1)] {
            let of = |t: &Tensor, column| t.narrow(0, row, 1).unwrap().narrow(1, column, 1).unwrap();
            assert_close(&of(&some, n), &of(&all, column), 1e-6);
        }
    }
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let device = Device::Cpu;
    let ids = token_ids(2, 4, 40);
    let cases = [
        (ForwardOptions::at(Tensor::new(&[4u32], &device).unwrap()), "position 4 of a sequence of 4 tokens"),
        (ForwardOptions::at(Tensor::new(&[-1i64], &device).unwrap()), "position -1"),
        (ForwardOptions::at(Tensor::new(&[[0u32], [1], [2]], &device).unwrap()), "[3, 1], expected (n) or (2, n)"),
        (ForwardOptions::at(Tensor::new(&[0f32], &device).unwrap()), "f32, expected an integer dtype"),
        (
            ForwardOptions::all().with_padding(Tensor::ones((2, 3), DType::U8, &device).unwrap()),
            "[2, 3], expected integers of shape [2, 4]",
        ),
        (
            ForwardOptions::all().with_padding(Tensor::ones((2, 4), DType::F32, &device).unwrap()),
            "the padding mask is f32",
        ),
    ];
    let [model, _] = tiny_models(DType::F32);
    for (options, message) in cases {
        let error = model.forward(&ids, options).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn ids_that_are_none_are_refused() {
    let device = Device::Cpu;
    let cases = [
        (Tensor::new(&[[1u32, 40]], &device).unwrap(), "token id 40 is out of range, the vocabulary has 40 entries"),
        (Tensor::new(&[[u32::MAX]], &device).unwrap(), "token id 4294967295 is out of range"),
        (Tensor::new(&[[-1i64]], &device).unwrap(), "token id -1 is out of range"),
        (Tensor::new(&[[1f32]], &device).unwrap(), "the ids are f32, expected an integer dtype"),
        (Tensor::new(&[1u32], &device).unwrap(), "the token ids are (batch, seq), got [1]"),
        (Tensor::zeros((1, 0), DType::U32, &device).unwrap(), "the token ids are empty: [1, 0]"),
        (Tensor::zeros((0, 3), DType::U32, &device).unwrap(), "the token ids are empty: [0, 3]"),
    ];
    for model in tiny_models(DType::F32) {
        for (ids, message) in &cases {
            let error = model.forward(ids, ForwardOptions::all()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
