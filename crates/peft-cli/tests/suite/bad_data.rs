//! Data files that cannot be used.

use crate::support::{METHOD, Sizes, Workplace, fixture, run, write_llama, write_tokenizer};

#[test]
fn the_line_and_what_is_wrong_with_it_are_named() {
    let place = Workplace::new();
    let base = fixture("base_llama");
    let good = "{\"input_ids\": [1, 2, 3]}\n";
    let long = format!("{{\"input_ids\": {:?}}}\n", vec![1; 65]);
    for (row, says) in [
        ("{\"input_ids\": [1, 2\n", &["line 3", "EOF"][..]),
        ("not json\n", &["line 3", "expected"]),
        ("[1, 2]\n", &["line 3"]),
        ("{\"tokens\": [1, 2]}\n", &["line 3", "input_ids", "messages"]),
        ("{\"input_ids\": [1, 64]}\n", &["line 3", "token id 64 is out of range", "64 entries"]),
        ("{\"input_ids\": [1, -1]}\n", &["line 3", "-1"]),
        ("{\"input_ids\": [1, 2, 3], \"labels\": [1, 2]}\n", &["line 3", "2 `labels` for 3 `input_ids`"]),
        ("{\"input_ids\": [1, 2], \"labels\": [1, 99]}\n", &["line 3", "label 99"]),
        ("{\"text\": \"a\"}\n", &["line 3", "no tokenizer.json"]),
        (long.as_str(), &["line 3", "65 tokens, but the model takes 64"]),
        ("{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n", &["line 3", "no token of this row has a loss"]),
    ] {
        let data = place.write("bad.jsonl", &format!("{good}\n{row}{good}"));
        let before = place.names();
        let says: Vec<&str> = says.iter().copied().chain([data.as_str()]).collect();
        run(&format!("eval --base {base} --data {data}"), &[]).expect_error(1, &says);
        let train = format!("train --base {base} {METHOD} --out {} --steps 2 --learning-rate 0.1", place.at("out"));
        run(&format!("{train} --data {data}"), &[]).expect_error(1, &says);
        let both = format!("{train} --data {} --eval-data {data}", place.at("data.jsonl"));
        run(&both, &[]).expect_error(1, &says);
        assert_eq!(place.names(), before, "{row}");
    }
}

#[test]
fn files_without_rows_are_refused() {
    let place = Workplace::new();
    let base = fixture("base_llama");
    for text in ["", "\n\n"] {
        let data = place.write("empty.jsonl", text);
        run(&format!("eval --base {base} --data {data}"), &[]).expect_error(1, &[&data, "no usable rows"]);
    }
    let data = place.at("data.jsonl");
    for (length, says) in [("65", "more than the 64 tokens"), ("1", "at least 2")] {
        let words = format!("eval --base {base} --data {data} --max-length {length}");
        run(&words, &[]).expect_error(1, &["max_length", says]);
    }
    let folder = place.at("folder");
    std::fs::create_dir(&folder).unwrap();
    run(&format!("eval --base {base} --data {folder}"), &[]).expect_error(1, &[&folder]);
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let place = Workplace::new();
    let base = write_llama(&place.at("base"), Sizes::default());
    write_tokenizer(&base);
    let words = format!("generate --base {base} --prompt");
    run(&words, &[&"w1 ".repeat(65)]).expect_error(1, &["65 tokens", "64"]);
    run(&words, &[""]).expect_error(1, &["prompt", "no tokens"]);
    std::fs::write(format!("{base}/tokenizer_config.json"), "{}").unwrap();
    run(&format!("generate --base {base} --chat --prompt w1"), &[]).expect_error(1, &["chat template"]);
    std::fs::write(format!("{base}/tokenizer.json"), "{").unwrap();
    run(&format!("{words} w1"), &[]).expect_error(1, &["tokenizer.json"]);
}
