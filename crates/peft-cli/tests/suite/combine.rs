//! `combine`: several LoRA adapters as one.

use crate::support::{Files, Workplace, fixture, names, run};
use candle_core::Tensor;
use serde_json::json;
use std::path::Path;

fn adapter(name: &str) -> String {
    fixture(&format!("weighted/adapters/{name}"))
}

/// `--adapter` and `--weight` for each of these.
fn parts(weighted: &[(&str, &str)]) -> String {
    weighted.iter().map(|(name, weight)| format!("--adapter {} --weight {weight} ", adapter(name))).collect()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn combine_writes_what_peft_writes() {
    let place = Workplace::new();
    let three = parts(&[("one", "0.7"), ("two", "0.3"), ("patterned", "-0.4")]);
    for (words, expected, rank) in [
        (format!("{} --type linear", parts(&[("one", "1"), ("two", "-0.5")])), "weighted/linear", 4),
        (format!("{three} --type cat"), "weighted/cat", 11),
    ] {
        let out = place.at(&format!("out{rank}"));
        let report = run(&format!("combine {words} --out {out} --json"), &[]).expect_success().json();
        assert_eq!((&report["rank"], &report["modules"]), (&json!(rank), &json!(6)), "{report}");
        assert_eq!(report["adapters"][1]["adapter"], json!(adapter("two")));
        let errors = report["combined"].as_array().unwrap().iter().map(|module| module["error"].as_f64().unwrap());
        assert_eq!(errors.clone().count(), 6);
        assert_eq!(errors.fold(0.0, f64::max) == 0.0, rank == 11, "side by side is exact, {report}");
        let (made, expected) = (Files::read(&out), Files::read(&fixture(expected)));
        assert_eq!(made.tensors.len(), expected.tensors.len());
        for (key, tensor) in &expected.tensors {
            assert!(difference(tensor, &made.tensors[key]) < 1e-6, "{key}");
        }
        for field in ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "base_model_name_or_path"] {
            assert_eq!(made.config[field], expected.config[field], "{field}");
        }
        assert_eq!(names(Path::new(&out)), ["adapter_config.json", "adapter_model.safetensors"]);
    }
}

#[test]
fn the_loss_is_that_of_the_adapter_that_peft_made() {
    let place = Workplace::new();
    let (base, data, out) = (fixture("base_llama"), place.at("data.jsonl"), place.at("out"));
    let loss = |adapter: &str| {
        let words = format!("eval --base {base} --adapter {adapter} --data {data} --json");
        run(&words, &[]).expect_success().json()["loss"].as_f64().unwrap()
    };
    for (weighted, options, expected) in [
        (&[("one", "0.7"), ("two", "0.3"), ("patterned", "-0.4")][..], "", "weighted/svd"),
        (&[("one", "0.4"), ("patterned", "-0.3")], "--type svd --rank 6", "weighted/svd_rank"),
        (&[("embedding", "0.7"), ("other_embedding", "-0.3")], "--type svd", "weighted/svd_embedding"),
    ] {
        let words = format!("combine {} {options} --out {out}", parts(weighted));
        let text = run(&words, &[]).expect_success().stdout;
        for part in ["combined by svd: rank ", "largest distance from the sum", &format!("saved to {out}")] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!((loss(&out) - loss(&fixture(expected))).abs() < 1e-5, "{expected}");
    }
    let text = run(&format!("inspect {out} --base {base}"), &[]).expect_success().stdout;
    assert!(text.contains("LORA") && text.contains("fits"), "{text}");
}

#[test]
fn mistakes_in_the_command_line_are_usage_errors() {
    let place = Workplace::new();
    let out = place.at("out");
    let both = parts(&[("one", "0.7"), ("two", "0.3")]);
    for (words, says) in [
        (format!("{both} --adapter {}", adapter("patterned")), &["--weight", "2 for 3"][..]),
        (format!("{both} --weight 1"), &["--weight", "3 for 2"]),
        (format!("{both} --type cat --rank 4"), &["--rank 4", "--type cat", "--type svd"]),
        (format!("{both} --type linear --rank 4"), &["--rank 4", "--type linear"]),
        (format!("{both} --rank 0"), &["--rank"]),
        (format!("{both} --type mean"), &["--type", "linear", "cat", "svd"]),
        (parts(&[("one", "nan")]), &["--weight", "finite number"]),
        (parts(&[("one", "much")]), &["--weight", "not a number"]),
        (String::new(), &["--adapter"]),
    ] {
        let outcome = run(&format!("combine {words} --out {out}"), &[]);
        outcome.expect_error(2, says);
        assert!(!place.exists("out"));
    }
}

#[test]
fn adapters_that_cannot_be_combined_are_named() {
    let place = Workplace::new();
    let out = place.at("out");
    let one = parts(&[("one", "0.7")]);
    let with = |dir: &str| format!("{one} --adapter {dir} --weight 0.3");
    let (tinylora, missing) = (fixture("tinylora_default"), place.at("missing"));
    for (words, says) in [
        (with(&tinylora), &[tinylora.as_str(), "TINYLORA", "LORA"][..]),
        (with(&missing), &[&missing, "no such folder"]),
        (with(&fixture("base_llama")), &["adapter_config.json"]),
        (with(&adapter("patterned")) + " --type linear", &["linear", "[4, 3]"]),
    ] {
        run(&format!("combine {words} --out {out}"), &[]).expect_error(1, says);
        assert!(!place.exists("out"));
    }
    for same in ["one", "two"] {
        let words = format!("combine {} --out {}", parts(&[("one", "1"), ("two", "1")]), adapter(same));
        run(&words, &[]).expect_error(1, &["--out and --adapter are the same folder", &adapter(same)]);
    }
    let file = place.write("file", "precious");
    run(&format!("combine {one} --out {file}/below"), &[]).expect_error(1, &["not a folder"]);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
}
