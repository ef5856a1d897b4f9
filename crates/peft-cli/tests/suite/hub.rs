//! Models and adapters by their names on the Hub, which is one on loopback.

use crate::support::{METHOD, Outcome, Workplace, command, fixture, names};
use peft_testkit::hub::{Fault, LoopbackHub};
use serde_json::Value;
use std::fs;
use std::path::Path;

const TOKEN: &str = "hf_secretSECRETsecret";
const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-llama");

/// A Hub with a base model, and an empty cache.
struct Online {
    hub: LoopbackHub,
    place: Workplace,
    /// The base model's commit.
    base: String,
}

impl Online {
    fn new() -> Self {
        let hub = LoopbackHub::start().unwrap();
        let base = upload(&hub, "maker/base", ASSETS);
        Self { hub, place: Workplace::new(), base }
    }

    /// As [`Online::new`], with an adapter of the base model.
    fn with_adapter() -> Self {
        let online = Self::new();
        let out = online.place.at("made");
        online.run(&format!("init --base maker/base {METHOD} --out {out}"), &[]).expect_success();
        upload(&online.hub, "user/adapter", &out);
        fs::remove_dir_all(online.place.at("home")).unwrap();
        online.hub.forget();
        online
    }

    fn run(&self, words: &str, extra: &[&str]) -> Outcome {
        self.run_with(words, extra, &[])
    }

    fn run_with(&self, words: &str, extra: &[&str], variables: &[(&str, &str)]) -> Outcome {
        let mut command = command();
        command.env_remove("HF_HUB_OFFLINE").env("HF_HOME", self.place.at("home"));
        command.env("HF_ENDPOINT", self.hub.endpoint()).envs(variables.iter().copied());
        command.args(words.split_whitespace()).args(extra).output().unwrap().into()
    }

    fn generate(&self, options: &str) -> Outcome {
        self.run(&format!("generate --max-new-tokens 4 --json --prompt 3+4= {options}"), &[])
    }

    /// The requests for files, with what came before the name cut off.
    fn files(&self) -> Vec<String> {
        let requests = self.hub.requests().into_iter().filter(|r| r.method == "GET" && !r.path.starts_with("/api/"));
        let mut files: Vec<String> = requests.map(|r| r.path.split('/').next_back().unwrap().to_owned()).collect();
        files.sort();
        files
    }
}

/// Puts a folder's files onto the Hub.
fn upload(hub: &LoopbackHub, repo: &str, dir: &str) -> String {
    let names = names(Path::new(dir));
    let read = |name: &String| fs::read(Path::new(dir).join(name)).unwrap();
    hub.commit(repo, "main", names.iter().map(|name| (name.as_str(), read(name))))
}

fn config(dir: &str) -> Value {
    serde_json::from_slice(&fs::read(Path::new(dir).join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn an_adapters_name_is_enough_to_generate() {
    let online = Online::with_adapter();
    let first = online.generate("--adapter user/adapter").expect_success();
    assert!(first.stderr.contains("user/adapter is at commit"), "{}", first.stderr);
    // The base model was pinned when the adapter was made.
    assert!(online.hub.count(&format!("GET /api/models/maker/base/revision/{}", online.base)) == 1);
    let text = first.json()["text"].as_str().unwrap().to_owned();
    let local = online.place.at("made");
    let by_hand = online.generate(&format!("--base {ASSETS} --adapter {local}")).expect_success().json();
    assert_eq!(by_hand["text"], text);
    // Again: one request, for the commit of the adapter.
    online.hub.forget();
    assert_eq!(online.generate("--adapter user/adapter").expect_success().json()["text"], text);
    let lines: Vec<String> = online.hub.requests().iter().map(|r| r.line()).collect();
    assert_eq!(lines, ["GET /api/models/user/adapter/revision/main"]);
    // And without the network.
    online.hub.forget();
    let words = "generate --adapter user/adapter --max-new-tokens 4 --json --prompt 3+4=";
    let offline = online.run_with(words, &[], &[("HF_HUB_OFFLINE", "1")]).expect_success();
    assert_eq!(offline.json()["text"], text);
    assert_eq!(online.hub.requests().len(), 0);
}

#[test]
fn what_is_made_names_the_base_and_its_commit() {
    let online = Online::with_adapter();
    let made = config(&online.place.at("made"));
    assert_eq!(made["base_model_name_or_path"], "maker/base");
    assert_eq!(made["revision"], *online.base);
    // Training goes on from an adapter by name, and a config may be on the Hub too.
    let (data, out) = (online.place.at("data.jsonl"), online.place.at("trained"));
    let words = format!("train --adapter user/adapter --data {data} --out {out} --steps 1 --learning-rate 0.1");
    online.run(&words, &[]).expect_success();
    assert_eq!(config(&out)["revision"], *online.base);
    let again = online.place.at("again");
    online.run(&format!("init --base maker/base@main --config user/adapter --out {again}"), &[]).expect_success();
    assert_eq!(config(&again)["u"], 13);
    // A branch that moved is pinned anew to what was loaded.
    let moved = online.hub.commit("maker/base", "main", [("README.md", b"new".to_vec())]);
    let words = format!("init --base maker/base {METHOD} --out {again}");
    online.run(&words, &[]).expect_success();
    assert_eq!(config(&again)["revision"], *moved);
}

#[test]
fn every_command_takes_names() {
    let online = Online::with_adapter();
    let (data, out) = (online.place.at("data.jsonl"), |name: &str| online.place.at(name));
    let report = online.run(&format!("eval --adapter user/adapter --data {data} --json"), &[]).expect_success().json();
    assert_eq!(report["base"], "maker/base");
    assert_eq!(report["adapter"], "user/adapter");
    let report = online.run("inspect user/adapter --base maker/base --json", &[]).expect_success().json();
    assert_eq!(report["fits"], "maker/base");
    assert_eq!(report["trainable_parameters"], 13 * 8);
    assert_eq!(online.run("inspect maker/base --json", &[]).expect_success().json()["kind"], "model");
    let (lora, merged) = (out("lora"), out("merged"));
    online.run(&format!("convert --adapter user/adapter --to lora --out {lora}"), &[]).expect_success();
    upload(&online.hub, "user/lora", &lora);
    let words = "combine --adapter user/lora --weight 0.5 --adapter user/lora@main --weight 0.5 --type cat";
    online.run(&format!("{words} --out {}", out("both")), &[]).expect_success();
    online.run(&format!("merge --adapter user/adapter --out {merged}"), &[]).expect_success();
    assert!(names(Path::new(&merged)).contains(&"tokenizer.json".to_owned()));
    let text = |words: &str| online.generate(words).expect_success().json()["text"].clone();
    assert_eq!(text(&format!("--base {merged}")), text("--adapter user/adapter"));
    assert_eq!(text("--base hf://maker/base --adapter user/lora"), text("--adapter user/adapter"));
}

#[test]
fn only_what_a_command_reads_is_fetched() {
    let online = Online::with_adapter();
    let mlx = online.place.at("mlx");
    online.run(&format!("convert --adapter user/adapter --to mlx --out {mlx}"), &[]).expect_success();
    let weights = online.hub.requests().into_iter().filter(|r| r.method == "GET" && r.path.contains("X-Amz")).count();
    assert_eq!(weights, 1, "the adapter's alone: {:?}", online.files());
    assert!(online.hub.count("HEAD /maker/base") == 1, "{:#?}", online.hub.requests());
}

#[test]
fn a_base_that_is_lost_or_another_says_so() {
    let online = Online::with_adapter();
    let lost = online.place.changed_adapter("lost", |files| {
        files.config.insert("base_model_name_or_path".into(), "/home/maker/base".into());
    });
    online.generate_fails(&format!("--adapter {lost}"), &[&lost, "/home/maker/base", "no such folder", "--base"]);
    let unnamed = online.place.changed_adapter("unnamed", |files| {
        files.config.insert("base_model_name_or_path".into(), Value::Null);
    });
    online.generate_fails(&format!("--adapter {unnamed}"), &[&unnamed, "does not name the base model", "--base"]);
    let gone = online.place.changed_adapter("gone", |files| {
        files.config.insert("base_model_name_or_path".into(), "maker/gone".into());
    });
    online.generate_fails(&format!("--adapter {gone}"), &[&gone, "maker/gone", "no such repository", "--base"]);
    let other = fixture("base_llama");
    let words = format!("eval --base {other} --adapter user/adapter --data {}", online.place.at("data.jsonl"));
    let says = ["made for maker/base", &format!("does not fit {other}"), "tensors for modules that the model lacks"];
    let outcome = online.run(&words, &[]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    for part in says {
        assert!(outcome.stderr.contains(part), "`{part}` is not in: {}", outcome.stderr);
    }
}

impl Online {
    fn generate_fails(&self, options: &str, says: &[&str]) {
        self.run(&format!("generate --prompt x {options}"), &[]).expect_error(1, says);
    }
}

#[test]
fn names_that_lead_nowhere_say_what_was_tried() {
    let online = Online::new();
    online.generate_fails("--adapter user/none", &["user/none", "no such repository on the Hub"]);
    online.generate_fails("--adapter user/none@v1", &["user/none@v1"]);
    online.generate_fails("--adapter ./none", &["./none", "no such folder"]);
    online.generate_fails("--adapter no/such/../thing", &["no such folder", "Hub", "user/name"]);
    online.generate_fails("--adapter maker/base", &["maker/base", "this is a model, not an adapter"]);
    let down =
        online.run_with("inspect user/x", &[], &[("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", "1")]);
    down.expect_error(1, &["user/x", "HF_HUB_OFFLINE"]);
}

#[test]
fn what_was_pushed_is_loaded_by_name() {
    let online = Online::with_adapter();
    let made = online.place.at("made");
    online.hub.require_token(TOKEN);
    let push = format!("push {made} me/pushed --private");
    online.run(&push, &[]).expect_error(1, &["pushing to me/pushed needs a token", "HF_TOKEN"]);
    assert_eq!(online.hub.is_private("me/pushed"), None);
    let with_token = [("HF_TOKEN", TOKEN)];
    let report = online.run_with(&format!("{push} --json --message"), &["two words"], &with_token).expect_success();
    assert_eq!(
        report.json()["files"],
        serde_json::json!(["adapter_config.json", "adapter_model.safetensors", "README.md"])
    );
    assert_eq!(online.hub.is_private("me/pushed"), Some(true));
    let (card, _) = online.hub.file("me/pushed", "main", "README.md").unwrap();
    let card = String::from_utf8(card).unwrap();
    for part in [
        "base_model: maker/base\n",
        "`TINYLORA` adapter",
        "with 104 trained numbers",
        "| `u` | 13 |",
        &format!("revision=\"{}\"", online.base),
    ] {
        assert!(card.contains(part), "`{part}` is not in: {card}");
    }
    let words = "generate --max-new-tokens 4 --json --prompt 3+4= --adapter";
    let pushed = online.run_with(words, &["me/pushed"], &with_token).expect_success().json();
    assert_eq!(pushed["text"], online.generate("--adapter user/adapter").expect_success().json()["text"]);
    // A broken adapter is not published.
    fs::write(Path::new(&made).join("adapter_model.safetensors"), "not tensors").unwrap();
    let broken = online.run_with(&format!("push {made} me/broken"), &[], &with_token);
    broken.expect_error(1, &["adapter_model.safetensors"]);
    assert_eq!(online.hub.is_private("me/broken"), None);
}

#[test]
fn the_token_is_in_no_output() {
    let online = Online::with_adapter();
    online.hub.make_private("user/adapter", TOKEN);
    let made = online.place.at("made");
    let echo = vec![("x-error-message".to_owned(), format!("Bearer {TOKEN} is bad"))];
    for (request, status) in [("", 0), ("GET /api", 403), ("HEAD /", 401), ("GET /api", 500), ("POST /", 403)] {
        if status > 0 {
            online.hub.plant(request, 2, Fault::Status(status, echo.clone()));
        }
        for words in ["inspect user/adapter", "inspect user/adapter --json", &format!("push {made} me/new --json")] {
            let variables = [("HF_TOKEN", TOKEN), ("RUST_LOG", "trace"), ("RUST_BACKTRACE", "1")];
            let outcome = online.run_with(words, &[], &variables);
            assert!(!outcome.stdout.contains(TOKEN) && !outcome.stderr.contains(TOKEN), "{outcome:?}");
        }
    }
    // Nor in the file that login writes, and nothing that was written.
    fs::write(Path::new(&online.place.at("home")).join("token"), TOKEN).unwrap();
    let outcome = online.run("inspect user/adapter", &[]).expect_success();
    assert!(!outcome.stdout.contains(TOKEN) && !outcome.stderr.contains(TOKEN), "{outcome:?}");
}
