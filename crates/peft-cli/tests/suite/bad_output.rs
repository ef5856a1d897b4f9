//! Output folders that cannot be written.

use crate::support::{METHOD, Outcome, Workplace, fixture, names, run};
use std::path::Path;
use std::process::Command;

/// The commands that write, into `out`.
fn writers(place: &Workplace, out: &str) -> [String; 4] {
    let (base, adapter, data) = (fixture("base_llama"), place.at("adapter"), place.at("data.jsonl"));
    [
        format!("init --base {base} {METHOD} --out {out}"),
        format!("train --base {base} {METHOD} --data {data} --out {out} --steps 3 --learning-rate 0.1 --save-every 1"),
        format!("merge --base {base} --adapter {adapter} --out {out}"),
        format!("convert --adapter {adapter} --to lora --out {out}"),
    ]
}

#[test]
fn a_folder_below_a_file_is_refused() {
    let place = Workplace::new();
    place.adapter("adapter");
    let file = place.write("file", "precious");
    let before = place.names();
    for out in [file.clone(), format!("{file}/below"), format!("{file}/far/below")] {
        for words in writers(&place, &out) {
            run(&words, &[]).expect_error(1, &[&out, "not a folder"]);
            assert_eq!(place.names(), before, "{words}");
        }
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn an_output_that_is_an_input_is_refused() {
    let place = Workplace::new();
    let (adapter, base) = (place.adapter("adapter"), fixture("base_llama"));
    let before = names(Path::new(&adapter));
    let [_, _, merge, convert] = writers(&place, &adapter);
    run(&merge, &[]).expect_error(1, &["--out and --adapter are the same folder", &adapter]);
    run(&convert, &[]).expect_error(1, &["--out and --adapter are the same folder"]);
    let data = place.at("data.jsonl");
    let words =
        format!("train --base {base} --adapter {adapter} --data {data} --out {adapter} --steps 3 --learning-rate 0.1");
    run(&words, &[]).expect_error(1, &["--out and --adapter are the same folder"]);
    let words = format!("merge --base {base} --adapter {adapter} --out {base}");
    run(&words, &[]).expect_error(1, &["--out and --base are the same folder"]);
    assert_eq!(names(Path::new(&adapter)), before);
}

/// Runs the binary where no file may grow beyond so many blocks, as on a full disk.
fn run_limited(words: &str, blocks: usize) -> Outcome {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {} {words}", env!("CARGO_BIN_EXE_candle-peft"));
    let mut command = Command::new("sh");
    // No test writes into the cache of whoever runs it; this one holds the factors already.
    command.env_remove("RUST_BACKTRACE").env("CANDLE_PEFT_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command.args(["-c", &script]).output().unwrap().into()
}

#[test]
#[cfg(unix)]
fn a_full_disk_is_an_error_that_names_the_file() {
    let place = Workplace::new();
    let adapter = place.adapter("adapter");
    let out = place.at("out");
    let before = place.names();
    let [init, train, merge, convert] = writers(&place, &out);
    for (words, file) in
        [(&init, "adapter_model.safetensors"), (&merge, "model.safetensors"), (&convert, "adapter_model.safetensors")]
    {
        run_limited(words, 1).expect_error(1, &["cannot write", &format!("{out}/{file}")]);
        assert_eq!(place.names(), before, "{words}");
    }
    let base = fixture("base_llama");
    for (to, out, file) in [("mlx", "mlx", "mlx/adapters.safetensors"), ("gguf", "a.gguf", "a.gguf")] {
        let words = format!("convert --adapter {adapter} --base {base} --to {to} --out {}", place.at(out));
        run_limited(&words, 1).expect_error(1, &["cannot write", &place.at(file)]);
        assert_eq!(place.names(), before, "{words}");
    }
    run_limited(&train, 4).expect_error(1, &["cannot write", &format!("{out}/adapter_model.safetensors")]);
    // The options and the line of the step that was taken are all there is.
    assert_eq!(names(Path::new(&out)), ["metrics.jsonl", "run.json"]);

    // What was there before stays whole.
    let files = |dir: &str| {
        let read = |name: String| (std::fs::read(Path::new(dir).join(&name)).unwrap(), name);
        names(Path::new(dir)).into_iter().map(read).collect::<Vec<_>>()
    };
    let whole = files(&adapter);
    let words = format!("init --base {} {METHOD} --set u=40 --out {adapter}", fixture("base_llama"));
    run_limited(&words, 1).expect_error(1, &["cannot write", &adapter]);
    assert!(files(&adapter) == whole);
}
