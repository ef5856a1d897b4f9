//! Runs that are killed and resumed.

use crate::support::{Workplace, command, fixture, run};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

const OPTIONS: &str = "--method tinylora --set u=13 --set weight_tying=1.0 --set target_modules=all-linear \
    --set tinylora_dropout=0.1 --steps 60 --batch-size 2 --grad-accum 2 --learning-rate 0.02 --schedule cosine --warmup 5 \
    --grad-clip 1 --seed 7 --eval-every 16 --save-every 1";

fn train(place: &Workplace, out: &str) -> String {
    let (base, data, out) = (fixture("base_llama"), place.at("data.jsonl"), place.at(out));
    format!("train --base {base} --data {data} --eval-data {data} --out {out} {OPTIONS}")
}

fn grpo(place: &Workplace, out: &str) -> String {
    let options = "--method tinylora --set u=13 --set weight_tying=1.0 --set target_modules=all-linear --task sums --steps 40 \
        --prompts-per-step 4 --group-size 4 --num-iterations 2 --learning-rate 0.01 --seed 7 --eval-problems 10 --eval-every 16 --save-every 1";
    format!("grpo {options} --out {}", place.at(out))
}

/// What a run leaves behind, without the times.
fn result(out: &str) -> (Vec<u8>, Vec<u8>, Vec<Value>) {
    let read = |name: &str| fs::read(Path::new(out).join(name)).unwrap();
    let timeless = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().retain(|key, _| !key.ends_with("seconds"));
        line
    };
    let metrics = String::from_utf8(read("metrics.jsonl")).unwrap().lines().map(timeless).collect();
    (read("adapter_model.safetensors"), read("adapter_config.json"), metrics)
}

/// Starts a run and kills it the moment that `now` says so. Whether it was killed before its end.
fn kill_when(words: &str, mut now: impl FnMut() -> bool) -> bool {
    let mut child: Child =
        command().args(words.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return false;
        }
        if now() {
            // SIGKILL: the process gets no chance to tidy up.
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        std::thread::yield_now();
    }
}

fn lines(out: &str) -> usize {
    fs::read_to_string(Path::new(out).join("metrics.jsonl")).map(|text| text.lines().count()).unwrap_or(0)
}

/// Whether files are being written at this moment.
fn is_saving(out: &str) -> bool {
    let Ok(entries) = fs::read_dir(out) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(".saving-"))
}

#[test]
fn a_killed_and_resumed_run_ends_with_the_bytes_of_an_undisturbed_one() {
    let place = Workplace::new();
    kill_and_resume(&place, train);
}

/// Also when it is killed while completions are drawn, or between two updates of a step.
#[test]
fn so_does_reinforcement_learning() {
    let place = Workplace::new();
    kill_and_resume(&place, grpo);
    let completions = |out: &str| fs::read(Path::new(&place.at(out)).join("completions.jsonl")).unwrap();
    assert!(completions("whole") == completions("killed"));
}

fn kill_and_resume(place: &Workplace, words: fn(&Workplace, &str) -> String) {
    run(&words(place, "whole"), &[]).expect_success();
    let expected = result(&place.at("whole"));
    let (words, out) = (words(place, "killed"), place.at("killed"));
    // The first kill comes before anything was saved, others in the middle of a step or of saving one.
    let mut kills = usize::from(kill_when(&words, || true));
    for round in 1..8 {
        let step = 4 * round;
        let now = || lines(&out) > step && (round % 2 == 0 || is_saving(&out));
        kills += usize::from(kill_when(&format!("{words} --resume"), now));
    }
    assert!(kills > 4, "the runs were too fast to be killed: {kills}");
    let report = run(&format!("{words} --resume --json"), &[]).expect_success().json();
    assert!(report["resumed_from"].as_u64().unwrap() > 0, "{report}");
    assert!(result(&out) == expected);
}

#[test]
fn resuming_needs_the_same_options_and_data() {
    let place = Workplace::new();
    let (words, out) = (train(&place, "out"), place.at("out"));
    assert!(kill_when(&words, || lines(&out) > 20));
    let saved = fs::read(Path::new(&out).join("trainer_state.safetensors")).unwrap();
    run(&words, &[]).expect_error(1, &[&out, "resume"]);
    for (from, to, says) in [
        ("--learning-rate 0.02", "--learning-rate 0.03", "learning_rate was 0.02, now 0.03"),
        ("--steps 60", "--steps 70", "steps was 60, now 70"),
        ("--set u=13", "--set u=12", "adapter.u was 13, now 12"),
        ("--method", "--dtype bf16 --method", "base was"),
    ] {
        let changed = words.replace(from, to);
        run(&format!("{changed} --resume"), &[]).expect_error(1, &["cannot resume", &out, says]);
    }
    place.write("data.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
    run(&format!("{words} --resume"), &[]).expect_error(1, &["cannot resume", "data was"]);
    assert!(fs::read(Path::new(&out).join("trainer_state.safetensors")).unwrap() == saved);
}

#[test]
fn resuming_nothing_starts_from_the_beginning() {
    let place = Workplace::new();
    let outcome = run(&format!("{} --resume", train(&place, "out")), &[]).expect_success();
    assert!(outcome.stderr.contains("nothing to resume"), "{}", outcome.stderr);
    run(&train(&place, "whole"), &[]).expect_success();
    assert!(result(&place.at("out")) == result(&place.at("whole")));
}
