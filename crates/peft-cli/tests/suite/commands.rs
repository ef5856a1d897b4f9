//! What each command does when all is well.

use crate::support::{Files, METHOD, Sizes, Workplace, fixture, names, run, write_llama, write_tokenizer};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn loss(base: &str, adapter: Option<&str>, data: &str) -> f64 {
    let adapter = adapter.map(|dir| format!("--adapter {dir}")).unwrap_or_default();
    let outcome = run(&format!("eval --base {base} {adapter} --data {data} --json"), &[]).expect_success();
    outcome.json()["loss"].as_f64().unwrap()
}

#[test]
fn init_makes_an_adapter_that_changes_nothing_yet() {
    let place = Workplace::new();
    let (base, out, data) = (fixture("base_llama"), place.at("adapter"), place.at("data.jsonl"));
    let sets = "--set r=2 --set u=13 --set weight_tying=1.0 --set target_modules=all-linear";
    let words = format!("init --base {base} --method tinylora {sets} --out {out} --json");
    let report = run(&words, &[]).expect_success().json();
    assert_eq!(report["peft_type"], "TINYLORA");
    assert_eq!(report["trainable_parameters"], 13);
    assert_eq!(report["modules"].as_array().unwrap().len(), 14);
    assert_eq!(names(Path::new(&out)), ["adapter_config.json", "adapter_model.safetensors"]);
    let files = Files::read(&out);
    assert_eq!(files.config["u"], 13);
    assert_eq!(files.config["base_model_name_or_path"], json!(base));
    assert!(files.tensors.contains_key("base_model.tinylora_v.0"));
    assert_eq!(loss(&base, Some(&out), &data), loss(&base, None, &data));
}

#[test]
fn init_reads_the_config_of_an_adapter() {
    let place = Workplace::new();
    let base = fixture("base_llama");
    let config = fixture("tinylora_regex/adapter_config.json");
    for (name, config, sets) in [("a", config.as_str(), ""), ("b", fixture("tinylora_regex").as_str(), "--set u=5")] {
        let out = place.at(name);
        run(&format!("init --base {base} --config {config} {sets} --out {out}"), &[]).expect_success();
        let (made, given) = (Files::read(&out), Files::read(&fixture("tinylora_regex")));
        assert_eq!(made.config["target_modules"], given.config["target_modules"]);
        let u = if sets.is_empty() { given.config["u"].clone() } else { json!(5) };
        assert_eq!(made.config["u"], u);
        let keys = |files: &Files| {
            let mut keys: Vec<String> = files.tensors.keys().cloned().collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(&made), keys(&given));
    }
}

#[test]
fn train_lowers_the_loss_and_leaves_a_loadable_adapter() {
    let place = Workplace::new();
    let (base, out, data) = (fixture("base_llama"), place.at("trained"), place.at("data.jsonl"));
    let sets = "--set u=13 --set weight_tying=1.0 --set target_modules=all-linear";
    let options = "--steps 20 --batch-size 6 --learning-rate 0.05 --grad-clip 1 --warmup 2 --schedule cosine";
    let words = format!(
        "train --base {base} --method tinylora {sets} --data {data} --eval-data {data} --out {out} {options} --json"
    );
    let outcome = run(&words, &[]).expect_success();
    assert_eq!(outcome.stderr, "", "progress is for terminals");
    let report = outcome.json();
    assert_eq!((&report["steps"], &report["trainable_parameters"]), (&json!(20), &json!(13)));
    let [before, after] = ["eval_loss_before", "eval_loss_after"].map(|key| report[key].as_f64().unwrap());
    assert!(after < before - 0.1, "{report}");
    assert_eq!(report["resumed_from"], Value::Null);
    // What was measured in training is what the saved adapter has.
    assert!((loss(&base, Some(&out), &data) - after).abs() < 1e-6);
    assert!((loss(&base, None, &data) - before).abs() < 1e-6);
    let expected =
        ["adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "run.json", "trainer_state.safetensors"];
    assert_eq!(names(Path::new(&out)), expected);
    let metrics = fs::read_to_string(Path::new(&out).join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 22);
}

#[test]
fn train_goes_on_from_an_adapter() {
    let place = Workplace::new();
    let (base, data) = (fixture("base_llama"), place.at("data.jsonl"));
    let start = place.adapter("start");
    let mut last = loss(&base, Some(&start), &data);
    for (from, to) in [("start", "first"), ("first", "second")] {
        let options = "--steps 8 --batch-size 6 --learning-rate 0.05 --optimizer sgd --schedule constant --no-shuffle";
        let (from, to) = (place.at(from), place.at(to));
        run(&format!("train --base {base} --adapter {from} --data {data} --out {to} {options}"), &[]).expect_success();
        let now = loss(&base, Some(&to), &data);
        assert!(now < last, "{now} {last}");
        last = now;
    }
}

#[test]
fn train_takes_lora_too() {
    let place = Workplace::new();
    let (base, out, data) = (fixture("base_llama"), place.at("lora"), place.at("data.jsonl"));
    let options = "--steps 10 --batch-size 6 --learning-rate 0.02";
    let words = format!(
        "train --base {base} --method lora --set r=4 --set target_modules=q_proj,v_proj --data {data} --out {out} {options}"
    );
    run(&words, &[]).expect_success();
    assert!(loss(&base, Some(&out), &data) < loss(&base, None, &data));
}

#[test]
fn eval_reports_every_row() {
    let place = Workplace::new();
    let base = fixture("base_llama");
    let data = place.write(
        "rows.jsonl",
        "{\"input_ids\": [1, 2, 3]}\n\n{\"input_ids\": [4, 5, 6, 7], \"labels\": [-100, -100, 6, 7]}\n",
    );
    let report = run(&format!("eval --base {base} --data {data} --json"), &[]).expect_success().json();
    let rows = report["rows"].as_array().unwrap();
    let lines: Vec<_> =
        rows.iter().map(|row| (row["line"].as_u64().unwrap(), row["tokens"].as_u64().unwrap())).collect();
    assert_eq!(lines, [(1, 2), (3, 2)]);
    let mean = rows.iter().map(|row| row["loss"].as_f64().unwrap()).sum::<f64>() / 2.0;
    assert!((report["loss"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert!((report["perplexity"].as_f64().unwrap() - mean.exp()).abs() < 1e-6 * mean.exp());
    assert_eq!(report["tokens"], 4);
    let text = run(&format!("eval --base {base} --data {data}"), &[]).expect_success().stdout;
    assert!(text.contains("loss") && text.contains("perplexity") && text.contains("4 in 2 rows"), "{text}");
}

#[test]
fn eval_leaves_out_rows_that_are_cut_to_nothing_and_says_so() {
    let place = Workplace::new();
    let rows = "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 5, 6], \"labels\": [-100, -100, 6]}\n";
    let data = place.write("rows.jsonl", rows);
    let words = format!("eval --base {} --data {data} --max-length 2 --json", fixture("base_llama"));
    let outcome = run(&words, &[]).expect_success();
    assert_eq!(outcome.json()["lines_without_loss"], json!([2]));
    assert!(outcome.stderr.contains("1 row left out") && outcome.stderr.contains("line 2"), "{}", outcome.stderr);
}

#[test]
fn merge_and_convert_keep_the_loss() {
    let place = Workplace::new();
    let (base, data) = (fixture("base_llama"), place.at("data.jsonl"));
    let adapter = place.adapter("adapter");
    let (merged, lora) = (place.at("merged"), place.at("lora"));
    let expected = loss(&base, Some(&adapter), &data);
    assert!((expected - loss(&base, None, &data)).abs() > 1e-3, "the adapter must do something");

    for safe in ["", "--safe"] {
        let words = format!("merge --base {base} --adapter {adapter} --out {merged} {safe} --json");
        let report = run(&words, &[]).expect_success().json();
        assert_eq!(report["files"].as_array().unwrap().len(), 2);
        assert!((loss(&merged, None, &data) - expected).abs() < 1e-5);
    }

    let words = format!("convert --adapter {adapter} --to lora --out {lora} --json");
    let report = run(&words, &[]).expect_success().json();
    assert_eq!((&report["from"], &report["to"], &report["modules"]), (&json!("TINYLORA"), &json!("LORA"), &json!(4)));
    assert!((loss(&base, Some(&lora), &data) - expected).abs() < 1e-5);
}

/// IA3 scales weights and biases: it can be merged, but is no LoRA, and its tensors tell one side of a weight.
#[test]
fn ia3_is_merged_and_inspected_and_not_converted() {
    let place = Workplace::new();
    let (base, adapter) = (fixture("base_gpt2"), fixture("ia3_gpt2"));
    let (merged, data) = (place.at("merged"), place.at("data.jsonl"));
    let expected = loss(&base, Some(&adapter), &data);
    assert!((expected - loss(&base, None, &data)).abs() > 1e-3, "the adapter must do something");
    run(&format!("merge --base {base} --adapter {adapter} --out {merged}"), &[]).expect_success();
    assert!((loss(&merged, None, &data) - expected).abs() < 1e-5);

    let text = run(&format!("inspect {adapter} --base {base}"), &[]).expect_success().stdout;
    for part in ["method      IA3", "parameters  448", "2 x c_attn  Linear 96x?", "2 x c_proj  Linear ?x128"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let report = run(&format!("inspect {adapter} --json"), &[]).expect_success().json();
    assert_eq!((&report["modules"][0]["rows"], &report["modules"][0]["cols"]), (&json!(96), &Value::Null));

    let words = format!("convert --adapter {adapter} --to lora --out {}", place.at("lora"));
    run(&words, &[]).expect_error(1, &["transformer.h.0.attn.c_attn", "IA3", "not a product of two factors"]);
    assert!(!place.exists("lora"));
}

/// The vectors of a VeRA adapter do not tell how wide the layers are.
#[test]
fn vera_is_converted_and_inspected_with_its_base() {
    let place = Workplace::new();
    let (base, adapter) = (fixture("base_llama"), fixture("vera_no_projection"));
    let (lora, data) = (place.at("lora"), place.at("data.jsonl"));
    let expected = loss(&base, Some(&adapter), &data);
    assert!((expected - loss(&base, None, &data)).abs() > 1e-3, "the adapter must do something");

    let words = format!("convert --adapter {adapter} --to lora --out {lora}");
    // It cannot be converted alone, and the base model that it names is not there.
    run(&words, &[]).expect_error(1, &[&adapter, "base_llama", "--base"]);
    assert!(!place.exists("lora"));
    let report = run(&format!("{words} --base {base} --json"), &[]).expect_success().json();
    assert_eq!((&report["from"], &report["to"], &report["modules"]), (&json!("VERA"), &json!("LORA"), &json!(4)));
    assert!((loss(&base, Some(&lora), &data) - expected).abs() < 1e-5);
    assert_eq!(Files::read(&lora).config["r"], 6);

    let text = run(&format!("inspect {adapter}"), &[]).expect_success().stdout;
    for part in ["method      VERA", "targets     [", "--base", "tensors     8, "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("parameters"), "{text}");
    let report = run(&format!("inspect {adapter} --json"), &[]).expect_success().json();
    assert_eq!((&report["modules"], &report["trainable_parameters"]), (&Value::Null, &Value::Null));
    let text = run(&format!("inspect {adapter} --base {base}"), &[]).expect_success().stdout;
    for part in ["fits", "parameters  120", "2 x q_proj  Linear 32x32", "2 x v_proj  Linear 16x32"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    run(&format!("inspect {adapter} --base {}", fixture("base_gpt2")), &[])
        .expect_error(1, &[&adapter, "modules that the model lacks (`q_proj`, `v_proj`)"]);
}

#[test]
fn lora_xs_is_trained_inspected_and_converted() {
    let place = Workplace::new();
    let (base, out, lora, data) =
        (fixture("base_llama"), place.at("trained"), place.at("lora"), place.at("data.jsonl"));
    let sets = "--set r=4 --set target_modules=q_proj,v_proj";
    let options = "--steps 10 --batch-size 6 --learning-rate 0.02";
    run(&format!("train --base {base} --method lora-xs {sets} --data {data} --out {out} {options}"), &[])
        .expect_success();
    let trained = loss(&base, Some(&out), &data);
    assert!(trained < loss(&base, None, &data));
    let text = run(&format!("inspect {out}"), &[]).expect_success().stdout;
    for part in ["method      LORA_XS", "parameters  64", "2 x v_proj  Linear 16x32"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    run(&format!("convert --adapter {out} --to lora --out {lora}"), &[]).expect_success();
    assert!((loss(&base, Some(&lora), &data) - trained).abs() < 1e-5);
}

#[test]
fn merge_carries_the_tokenizer_along_and_unties_what_it_must() {
    let place = Workplace::new();
    let base = write_llama(&place.at("base"), Sizes { tied: true, ..Sizes::default() });
    write_tokenizer(&base);
    let (adapter, merged, data) = (place.at("adapter"), place.at("merged"), place.at("data.jsonl"));
    let sets = "--set target_modules=embed_tokens,q_proj --set init_weights=uniform";
    run(&format!("init --base {base} --method tinylora {sets} --out {adapter}"), &[]).expect_success();
    let expected = loss(&base, Some(&adapter), &data);
    let outcome = run(&format!("merge --base {base} --adapter {adapter} --out {merged}"), &[]).expect_success();
    assert!(outcome.stderr.contains("shared one weight"), "{}", outcome.stderr);
    let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(Path::new(&merged)), files);
    assert!((loss(&merged, None, &data) - expected).abs() < 1e-5);
}

#[test]
fn generate_is_repeatable_and_follows_the_chat_template() {
    let place = Workplace::new();
    let base = write_llama(&place.at("base"), Sizes::default());
    write_tokenizer(&base);
    let adapter = place.at("adapter");
    run(&format!("init --base {base} {METHOD} --out {adapter}"), &[]).expect_success();
    let generate = |options: &str, prompt: &str| {
        let words = format!("generate --base {base} --adapter {adapter} --max-new-tokens 12 --json {options} --prompt");
        run(&words, &[prompt]).expect_success().json()
    };
    let report = generate("", "w5 w9");
    assert_eq!(report["prompt_tokens"], 2);
    let words: Vec<String> = report["tokens"].as_array().unwrap().iter().map(|id| format!("w{id}")).collect();
    assert_eq!(report["text"], words.join(" "));
    assert_eq!(report, generate("", "w5 w9"));
    let sampled = |seed| generate(&format!("--temperature 1.5 --top-p 0.95 --seed {seed}"), "w5 w9")["text"].clone();
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
    assert_eq!(generate("--chat", "w5 w9")["tokens"], generate("", "w1 w5 w9 w3")["tokens"]);
    let words = format!("generate --base {base} --adapter {adapter} --max-new-tokens 12 --prompt");
    let text = run(&words, &["w5 w9"]).expect_success();
    assert_eq!(text.stdout, format!("{}\n", report["text"].as_str().unwrap()));
}

#[test]
fn generate_takes_samples_cuts_and_stop_strings() {
    let place = Workplace::new();
    let base = write_llama(&place.at("base"), Sizes::default());
    write_tokenizer(&base);
    let words = format!("generate --base {base} --max-new-tokens 12 --prompt w5");
    let drawn = |options: &str| format!("{words} --temperature 1.5 {options}");
    let generate =
        |options: &str, more: &[&str]| run(&format!("{} --json", drawn(options)), more).expect_success().json();
    let report = generate("--samples 3", &[]);
    let samples = report["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3);
    for field in ["text", "tokens", "finish_reason"] {
        assert_eq!(report[field], samples[0][field]);
    }
    assert_ne!(samples[1]["text"], samples[0]["text"]);
    let one = generate("", &[]);
    assert_eq!(one["text"], report["text"]);
    assert!(one.get("samples").is_none());
    let texts: Vec<&str> = samples.iter().map(|sample| sample["text"].as_str().unwrap()).collect();
    let printed = run(&drawn("--samples 3"), &[]).expect_success().stdout;
    assert_eq!(printed.trim_end(), texts.join("\n---\n").trim_end());

    // The text ends before the string, across the borders of its words.
    let text = texts[0];
    let stop = &text[text.len() / 2..][..4];
    let stopped = generate("", &["--stop", "never", "--stop", stop]);
    assert_eq!(stopped["text"], text[..text.find(stop).unwrap()]);
    assert_eq!(stopped["finish_reason"], "stop");

    let greedy = run(&format!("{words} --json"), &[]).expect_success().json();
    assert_eq!(generate("--top-k 1", &[])["text"], greedy["text"]);
    assert_eq!(generate("--min-p 1", &[])["text"], greedy["text"]);
    let spread = run(&format!("{words} --json --repetition-penalty 1e9"), &[]).expect_success().json();
    let mut ids: Vec<u64> = spread["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 12, "{spread}");
}

#[test]
fn train_reads_texts_completions_and_chats() {
    let place = Workplace::new();
    let base = write_llama(&place.at("base"), Sizes::default());
    write_tokenizer(&base);
    let data = place.write(
        "texts.jsonl",
        concat!(
            "{\"text\": \"w4 w5 w6\"}\n",
            "{\"prompt\": \"w7 w8\", \"completion\": \" w9 w10\"}\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"w11\"}, {\"role\": \"assistant\", \"content\": \"w12\"}]}\n",
        ),
    );
    let out = place.at("out");
    let words = format!("train --base {base} {METHOD} --data {data} --out {out} --steps 2 --learning-rate 0.01");
    run(&words, &[]).expect_success();
    let report = run(&format!("eval --base {base} --adapter {out} --data {data} --json"), &[]).expect_success().json();
    // Three words and an end, of which the first has no loss; two words and an end; one word and what the template adds.
    let tokens: Vec<_> = report["rows"].as_array().unwrap().iter().map(|row| row["tokens"].as_u64().unwrap()).collect();
    assert_eq!(tokens[..2], [3, 3]);
}

#[test]
fn the_embedded_model_is_the_default() {
    let place = Workplace::new();
    let data = place.write("sums.jsonl", "{\"prompt\": \"3+4=\", \"completion\": \"7\"}\n");
    let (adapter, trained, merged) = (place.at("adapter"), place.at("trained"), place.at("merged"));
    let sets = "--method tinylora --set u=13 --set weight_tying=1.0 --set target_modules=all-linear";
    let report = run(&format!("init {sets} --out {adapter} --json"), &[]).expect_success().json();
    assert_eq!(report["base"], "candle-peft/tiny-llama");
    assert_eq!(report["trainable_parameters"], 13);
    let options = "--steps 5 --learning-rate 0.05";
    run(&format!("train --adapter {adapter} --data {data} --out {trained} {options}"), &[]).expect_success();
    let eval = |options: &str| {
        run(&format!("eval --data {data} --json {options}"), &[]).expect_success().json()["loss"].as_f64().unwrap()
    };
    let after = eval(&format!("--adapter {trained}"));
    assert!(after < eval(""), "{after}");
    run(&format!("merge --adapter {trained} --out {merged}"), &[]).expect_success();
    assert!((eval(&format!("--base {merged}")) - after).abs() < 1e-5);
    let text = run(&format!("generate --adapter {trained} --max-new-tokens 4 --prompt 3+4="), &[]).expect_success();
    assert!(text.stdout.lines().next().is_some_and(|answer| answer.parse::<u32>().is_ok()), "{text:?}");
}

#[test]
fn inspect_describes_adapters_and_models() {
    let place = Workplace::new();
    let adapter = fixture("tinylora_partial_tying");
    let report = run(&format!("inspect {adapter} --json"), &[]).expect_success().json();
    let config = Files::read(&adapter).config;
    assert_eq!((&report["kind"], &report["peft_type"]), (&json!("adapter"), &json!("TINYLORA")));
    assert_eq!(report["config"]["u"], config["u"]);
    let groups = report["groups"].as_u64().unwrap();
    assert_eq!(report["trainable_parameters"].as_u64().unwrap(), groups * config["u"].as_u64().unwrap());
    let used: Vec<u64> = report["modules"].as_array().unwrap().iter().map(|m| m["group"].as_u64().unwrap()).collect();
    assert!(used.is_sorted() && used.first() == Some(&0) && used.last() == Some(&(groups - 1)), "{used:?}");
    assert_eq!(report["tensors"].as_array().unwrap().len(), Files::read(&adapter).tensors.len());

    let words = format!("inspect {adapter} --base {}", fixture("base_llama"));
    assert!(run(&words, &[]).expect_success().stdout.contains("fits"));

    let report = run(&format!("inspect {} --json", fixture("base_gpt2")), &[]).expect_success().json();
    assert_eq!((&report["kind"], &report["model_type"]), (&json!("model"), &json!("gpt2")));
    assert!(report["parameters"].as_u64().unwrap() > 1000);
    let text = run(&format!("inspect {}", place.adapter("adapter")), &[]).expect_success().stdout;
    for part in
        ["method      TINYLORA", "groups      4", "parameters  52", "2 x q_proj  Linear 32x32", "tensors     16, "]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn sixteen_bit_bases_can_be_trained() {
    let place = Workplace::new();
    let (base, data) = (fixture("base_llama"), place.at("data.jsonl"));
    for dtype in ["bf16", "f16"] {
        let out = place.at(dtype);
        let options = "--steps 4 --batch-size 6 --learning-rate 0.05";
        let words = format!("train --base {base} --dtype {dtype} {METHOD} --data {data} --out {out} {options} --json");
        let report = run(&words, &[]).expect_success().json();
        assert!(report["last_loss"].as_f64() < report["first_loss"].as_f64(), "{report}");
        let merged = place.at("merged");
        let words = format!("merge --base {base} --dtype {dtype} --adapter {out} --out {merged} --json");
        assert_eq!(run(&words, &[]).expect_success().json()["dtype"], dtype);
    }
}
