//! The metrics file, and the bar.

use peft_train::metrics::{EvalMetrics, Metrics, StepLines, TrainMetrics};
use peft_train::progress::Progress;

fn train(step: u64) -> Metrics {
    let (loss, learning_rate) = (1.0 / step as f64, 1e-3);
    Metrics::Train(TrainMetrics { step, loss, learning_rate, grad_norm: 0.5, tokens: 7, seconds: 0.0 })
}

fn eval(step: u64) -> Metrics {
    Metrics::Eval(EvalMetrics { step, loss: 2.0, perplexity: 2f64.exp(), tokens: 9, seconds: 0.0 })
}

#[test]
fn an_interrupted_and_resumed_file_equals_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let write = |writer: &mut StepLines, lines: &[Metrics]| lines.iter().for_each(|m| writer.write(m).unwrap());

    let mut writer = StepLines::create(&path).unwrap();
    write(&mut writer, &[eval(0), train(1), train(2), eval(2), train(3), train(4), eval(4)]);
    let undisturbed = std::fs::read_to_string(&path).unwrap();
    assert_eq!(undisturbed.lines().count(), 7, "each line is in the file at once");

    for torn in ["", "{\"kind\": \"train\", \"st"] {
        std::fs::write(&path, format!("{undisturbed}{torn}")).unwrap();
        let mut writer = StepLines::resume(&path, 2).unwrap();
        write(&mut writer, &[train(3), train(4), eval(4)]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), undisturbed);
    }

    let lines: Vec<Metrics> = undisturbed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0], &lines[4]), (&eval(0), &train(3)));
}

#[test]
fn a_file_of_something_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    assert!(StepLines::resume(&path, 1).is_err());
    std::fs::write(&path, "notes\nmore\n").unwrap();
    let error = StepLines::resume(&path, 1).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl, line 1"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes\nmore\n");
    assert!(StepLines::create(&dir.path().join("no/such/folder")).is_err());
}

#[test]
fn a_hidden_bar_takes_steps() {
    let progress = Progress::hidden();
    progress.advance(1, 2.0, 1e-3);
    progress.note("unseen");
    assert!(progress.is_hidden());
}
