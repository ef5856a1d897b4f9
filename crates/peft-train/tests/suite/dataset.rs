//! Data files and batches.

use crate::data::model_files;
use candle_core::Device;
use peft_train::data::{Batch, Dataset, DatasetOptions, Encoded, Encoder};
use peft_train::{Error, Result};
use std::io::Write;

const OPTIONS: DatasetOptions = DatasetOptions { max_length: None, context_length: 8, vocab_size: 292 };

fn load(text: &[u8], options: DatasetOptions) -> Result<Dataset> {
    let (tokenizer, chat) = model_files();
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: Some(&chat) };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    Dataset::from_jsonl(file.path(), &encoder, options)
}

fn error(text: &str, options: DatasetOptions) -> String {
    load(text.as_bytes(), options).unwrap_err().to_string()
}

#[test]
fn blank_lines_are_skipped_and_lines_keep_their_numbers() {
    let dataset = load(b"\n{\"input_ids\": [1, 2]}\n  \r\n{\"input_ids\": [3, 4, 5]}", OPTIONS).unwrap();
    let found: Vec<_> = dataset.examples().iter().map(|e| (e.line, e.ids.clone())).collect();
    assert_eq!(found, [(2, vec![1, 2]), (4, vec![3, 4, 5])]);
}

#[test]
fn faulty_lines_are_named() {
    for (text, reasons) in [
        ("{\"input_ids\": [1, 2]}\n\n{\"text\": 1}", ["line 3", "expected a string"]),
        ("{\"input_ids\": [1, 2]}\n{\"input_ids\": [1,", ["line 2", "EOF"]),
        ("{\"input_ids\": [1, 292]}", ["line 1", "token id 292 is out of range"]),
        ("{\"input_ids\": [1, 2], \"labels\": [1, 292]}", ["line 1", "label 292"]),
        ("{\"input_ids\": [1, 2], \"labels\": [1, -1]}", ["line 1", "label -1"]),
        ("{\"input_ids\": [1, 2], \"labels\": [1, -100]}", ["line 1", "no token of this row has a loss"]),
        ("{\"input_ids\": [1]}", ["line 1", "no token of this row has a loss"]),
        ("{\"input_ids\": []}", ["line 1", "no token of this row has a loss"]),
        ("{\"input_ids\": [1,2,3,4,5,6,7,8,9]}", ["line 1", "9 tokens, but the model takes 8"]),
        ("{\"messages\": []}", ["line 1", "no token of this row has a loss"]),
        ("\n\n", ["", "no usable rows"]),
    ] {
        let error = error(text, OPTIONS);
        assert!(reasons.iter().all(|reason| error.contains(reason)), "{text}: {error}");
    }
    let error = load(b"{\"input_ids\": [1, 2]}\n\xff\xfe\n", OPTIONS).unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("UTF-8"), "{error}");
    let missing = Dataset::from_jsonl("/does/not/exist.jsonl".as_ref(), &Encoder::default(), OPTIONS).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
}

#[test]
fn max_length_cuts_on_the_right_and_reports_rows_that_lose_all() {
    let options = DatasetOptions { max_length: Some(3), ..OPTIONS };
    let rows = b"{\"input_ids\": [1,2,3,4,5,6,7,8,9]}\n{\"input_ids\": [1,2,3,4], \"labels\": [-100,-100,-100,4]}\n";
    let dataset = load(rows, options).unwrap();
    assert_eq!(dataset.examples().len(), 1);
    assert_eq!((&dataset.examples()[0].ids, &dataset.examples()[0].labels), (&vec![1, 2, 3], &vec![1, 2, 3]));
    assert_eq!(dataset.without_targets(), [2]);
    for (max_length, reason) in [(9, "8 tokens that the model takes"), (1, "at least 2"), (0, "at least 2")] {
        let error = error("{\"input_ids\": [1, 2]}", DatasetOptions { max_length: Some(max_length), ..OPTIONS });
        assert!(error.contains("max_length") && error.contains(reason), "{error}");
    }
}

#[test]
fn the_fingerprint_tells_data_apart() {
    let fingerprint = |rows: &str| load(rows.as_bytes(), OPTIONS).unwrap().fingerprint();
    let rows = "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 5]}";
    assert_eq!(fingerprint(rows), fingerprint(&rows.replace('\n', "\n\n")));
    for other in [
        "{\"input_ids\": [4, 5]}\n{\"input_ids\": [1, 2, 3]}",
        "{\"input_ids\": [1, 2]}\n{\"input_ids\": [3, 4, 5]}",
        "{\"input_ids\": [1, 2, 3], \"labels\": [-100, 2, 3]}\n{\"input_ids\": [4, 5]}",
    ] {
        assert_ne!(fingerprint(rows), fingerprint(other), "{other}");
    }
}

#[test]
fn a_batch_is_padded_on_the_right_and_masks_its_padding() {
    let examples = [
        Encoded { ids: vec![5, 6, 7], labels: vec![-100, 6, 7] },
        Encoded { ids: vec![8], labels: vec![8] },
        Encoded { ids: vec![9, 10], labels: vec![9, 10] },
    ];
    let batch = Batch::collate(examples.iter(), 0, &Device::Cpu).unwrap();
    assert_eq!(batch.input_ids.to_vec2::<u32>().unwrap(), [[5, 6, 7], [8, 0, 0], [9, 10, 0]]);
    assert_eq!(batch.labels.to_vec2::<i64>().unwrap(), [[-100, 6, 7], [8, -100, -100], [9, 10, -100]]);
    assert_eq!(batch.attention_mask.to_vec2::<u8>().unwrap(), [[1, 1, 1], [1, 0, 0], [1, 1, 0]]);
    assert_eq!((batch.token_count, batch.target_count), (6, 3));
    assert!(Batch::collate(std::iter::empty::<&Encoded>(), 0, &Device::Cpu).is_err());
}
