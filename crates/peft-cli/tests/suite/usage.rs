//! Mistakes in the command line: exit code 2.

use crate::support::{Workplace, fixture, run};

#[test]
fn clap_errors_have_exit_code_2() {
    for words in [
        "",
        "fine-tune",
        "init --method tinylora",
        "train --data x --out y --steps 0 --learning-rate 1 --method tinylora",
        "train --data x --out y --steps 5 --learning-rate -1 --method tinylora",
        "train --data x --out y --steps 5 --learning-rate nan --method tinylora",
        "train --data x --out y --steps 5 --learning-rate 1 --batch-size 0 --method tinylora",
        "train --data x --out y --steps 5 --learning-rate 1 --grad-clip 0 --method tinylora",
        "train --data x --out y --steps 5 --learning-rate 1 --optimizer adam --method tinylora",
        "train --data x --out y --steps 5 --learning-rate 1 --adapter a --method tinylora",
        "train --data x --out y --steps 5 --learning-rate 1 --eval-every 2 --method tinylora",
        "eval --data x --device tpu",
        "eval --data x --device cuda:one",
        "eval --data x --dtype f8",
        "generate --prompt x --top-p 0",
        "generate --prompt x --temperature -0.5",
        "generate --prompt x --top-k 0",
        "generate --prompt x --min-p 1.1",
        "generate --prompt x --repetition-penalty 0",
        "generate --prompt x --samples 0",
        "generate --prompt x --stop=",
        "convert --adapter a --to ia3 --out b",
        "convert --adapter a --to lora --out b --rank 0",
        "convert --adapter a --to lora --out b --rank -1",
        "convert --adapter a --to lora --out b --rank 0.5",
        "convert --adapter a --to lora --out b --threshold 0",
        "convert --adapter a --to lora --out b --threshold 1.5",
        "convert --adapter a --to lora --out b --threshold nan",
        "convert --adapter a --to lora --out b --threshold 0.9 --rank 2",
    ] {
        let outcome = run(words, &[]);
        assert_eq!(outcome.code, Some(2), "{words}: {outcome:?}");
        assert!(outcome.stdout.is_empty() && !outcome.stderr.is_empty(), "{words}: {outcome:?}");
    }
}

#[test]
fn mistakes_in_settings_name_the_field_and_the_choices() {
    let place = Workplace::new();
    let out = place.at("out");
    let base = fixture("base_llama");
    for (method, says) in [
        (
            "--method tinylora --set rank=4",
            &["--set rank", "no such field", "projection_seed, r, ", "weight_tying"][..],
        ),
        ("--method lora --set u=4", &["--set u", "no such field", "lora_alpha"]),
        ("--method tinylora --set r=-1", &["--set r=-1"]),
        ("--method tinylora --set u=0 --set r=2", &["--set u=0", "positive integer"]),
        ("--method tinylora --set weight_tying=1.5", &["--set weight_tying=1.5", "weight_tying"]),
        ("--method tinylora --set target_modules=(", &["--set target_modules=", "bad pattern `(`"]),
        ("--method tinylora --set r", &["--set r: expected KEY=VALUE"]),
        ("--method tinylora --set peft_type=LORA", &["--set peft_type", "no such field"]),
        ("--method ia3 --set layers_to_transform=1", &["no such field", "feedforward_modules", "init_ia3_weights"]),
        ("--method breeze", &["--method breeze", "ia3, lora, lora_xs, tinylora, vera"]),
        ("", &["--method", "--config"]),
    ] {
        run(&format!("init --base {base} {method} --out {out}"), &[]).expect_error(2, says);
        assert!(!place.exists("out"));
    }
    let train =
        format!("train --base {base} --data {} --out {out} --steps 3 --learning-rate 1", place.at("data.jsonl"));
    run(&train, &[]).expect_error(2, &["nothing to train"]);
    run(&format!("{train} --method tinylora --warmup 4"), &[]).expect_error(2, &["--warmup 4", "--steps 3"]);
}

#[test]
fn errors_are_json_objects_where_json_is_asked_for() {
    let usage = run("eval --json", &[]);
    assert_eq!(usage.code, Some(2));
    assert!(usage.json()["error"].as_str().unwrap().contains("--data"));
    let place = Workplace::new();
    let base = fixture("base_llama");
    for (words, code, says) in [
        (format!("eval --base {base} --data {} --json", place.at("none.jsonl")), 1, "none.jsonl"),
        (format!("--json init --base {base} --method breeze --out {}", place.at("x")), 2, "breeze"),
    ] {
        let outcome = run(&words, &[]);
        assert_eq!(outcome.code, Some(code));
        let error = outcome.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(says), "{error}");
        assert!(outcome.stderr.contains(&error), "{outcome:?}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for words in ["--help", "--version", "train --help", "help merge"] {
        let outcome = run(words, &[]).expect_success();
        assert!(!outcome.stdout.is_empty() && outcome.stderr.is_empty());
    }
}
