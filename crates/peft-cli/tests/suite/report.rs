//! `report` on runs, good and bad.

use crate::support::{Workplace, fixture, run};
use std::fs;

#[test]
fn a_supervised_run_becomes_a_page() {
    let place = Workplace::new();
    let (data, out) = (place.at("data.jsonl"), place.at("run"));
    let base = fixture("base_llama");
    let words = format!(
        "train --base {base} --data {data} --eval-data {data} --out {out} --steps 3 --learning-rate 0.1 --method lora"
    );
    run(&words, &[]).expect_success();
    let outcome = run(&format!("report {out}"), &[]).expect_success();
    assert_eq!(outcome.stdout, format!("wrote {out}/report.html, a page of 3 steps\n"));
    let page = fs::read_to_string(place.at("run/report.html")).unwrap();
    for part in ["<title>run</title>", "<b>Loss</b>", "evaluation", "Perplexity", "Gradient norm", "Speed", "3 steps"] {
        assert!(page.contains(part), "{part}");
    }
    let elsewhere = place.at("new folder/page.html");
    let json = run("--json report", &[&out, "--out", &elsewhere]).expect_success().json();
    assert_eq!((json["steps"].as_u64(), json["out"].as_str()), (Some(3), Some(elsewhere.as_str())));
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), page);
    assert_eq!(json["bytes"], page.len());
}

#[test]
fn what_is_no_run_is_said_and_nothing_written() {
    let place = Workplace::new();
    let folder = place.at("");
    run(&format!("report {folder}"), &[]).expect_error(1, &["cannot read", "metrics.jsonl"]);
    place.write("metrics.jsonl", "{\"kind\": \"train\", \"step\": 1, \"loss\": 1}\n{\"kind\": \"train\"}\n");
    run(&format!("report {folder}"), &[]).expect_error(1, &["metrics.jsonl, line 2", "has no `step`"]);
    place.write("metrics.jsonl", "{\"kind\": \"train\", \"step\": 1, \"loss\": 1}\n");
    run(&format!("report {folder} --out {folder}"), &[]).expect_error(1, &["it is a folder"]);
    run(&format!("report {folder} --out {}", place.at("data.jsonl/page.html")), &[])
        .expect_error(1, &["is not a folder"]);
    assert!(!place.exists("report.html"));
    run(&format!("report {folder}"), &[]).expect_success();
    assert!(place.exists("report.html"));
}
