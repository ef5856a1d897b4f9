//! Adapter folders that are broken, and what is said about them.

use crate::methods::registry;
use crate::support::{bits, logits, named, tiny, with_bottleneck};
use peft_core::checkpoint::{CONFIG_FILE, DetachedAdapter, PICKLE_FILE, SafetensorsFile, WEIGHTS_FILE};
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn whole() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    with_bottleneck(named(&["up_proj"])).save_adapter("default", folder.path()).unwrap();
    folder
}

/// Loads an adapter that must be refused without touching the model; what was said.
#[track_caller]
fn refusal(dir: &Path) -> String {
    let mut model = tiny();
    let error = model.load_adapter("x", dir, &registry()).unwrap_err().to_string();
    assert!(model.adapters().is_empty());
    assert_eq!(bits(&logits(&model)), bits(&logits(&tiny())));
    error
}

/// What is said when the file of tensors has these bytes.
#[track_caller]
fn with_weights(bytes: &[u8]) -> String {
    let folder = whole();
    fs::write(folder.path().join(WEIGHTS_FILE), bytes).unwrap();
    let error = refusal(folder.path());
    assert!(error.contains(&folder.path().display().to_string()), "{error}");
    error
}

/// A safetensors file with this header and `data` zeros.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn missing_parts_are_named() {
    let folder = whole();
    let missing = folder.path().join("nowhere");
    assert_eq!(refusal(&missing), format!("{}: no such folder", missing.display()));
    let empty = tempfile::tempdir().unwrap();
    assert!(refusal(empty.path()).contains("not an adapter folder: it has no adapter_config.json"));
    fs::remove_file(folder.path().join(WEIGHTS_FILE)).unwrap();
    assert!(refusal(folder.path()).ends_with("it has neither adapter_model.safetensors nor adapter_model.bin"));
    assert!(refusal(&folder.path().join(CONFIG_FILE)).contains(CONFIG_FILE));
}

#[test]
fn files_that_are_cut_short_are_refused() {
    let folder = whole();
    let bytes = fs::read(folder.path().join(WEIGHTS_FILE)).unwrap();
    for length in [0, 4, 8, 9, bytes.len() / 4, bytes.len() / 2, bytes.len() - 1] {
        let error = with_weights(&bytes[..length]);
        assert!(error.contains("is not a valid safetensors file"), "{length}: {error}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(with_weights(&longer).contains("is not a valid safetensors file"));
}

#[test]
fn headers_that_lie_are_refused() {
    let tensor = |shape: &str, from: usize, to: usize| {
        format!(r#"{{"t": {{"dtype": "F32", "shape": {shape}, "data_offsets": [{from}, {to}]}}}}"#)
    };
    for (header, data) in [
        (tensor("[4]", 0, 16), 8),
        (tensor("[4]", 0, 8), 8),
        (tensor("[2]", 8, 16), 16),
        (tensor("[2]", 16, 8), 16),
        (tensor("[18446744073709551615, 2]", 0, 8), 8),
        (tensor("[4611686018427387904]", 0, 8), 8),
        (tensor("[-1]", 0, 8), 8),
        (tensor("[2]", 18446744073709551608, 18446744073709551615), 8),
        (tensor("[2]", 0, 18446744073709551615), 8),
        (r#"{"t": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}"#.into(), 8),
        (r#"{"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8.5]}}"#.into(), 8),
        (r#"{"t": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}"#.into(), 8),
        ("{".into(), 8),
        ("[]".into(), 8),
        ("no header".into(), 8),
    ] {
        let error = with_weights(&file(&header, data));
        assert!(error.contains("is not a valid safetensors file"), "{header}: {error}");
    }
    let mut endless = u64::MAX.to_le_bytes().to_vec();
    endless.extend([0; 64]);
    assert!(with_weights(&endless).contains("is not a valid safetensors file"));
}

#[test]
fn tensors_that_overlap_or_leave_holes_are_refused() {
    let two = |a: [usize; 2], b: [usize; 2]| {
        let one = |name: &str, [from, to]: [usize; 2]| {
            let shape = (to - from) / 4;
            format!(r#""{name}": {{"dtype": "F32", "shape": [{shape}], "data_offsets": [{from}, {to}]}}"#)
        };
        format!("{{{}, {}}}", one("a", a), one("b", b))
    };
    for (a, b, data) in [([0, 8], [4, 12], 12), ([0, 8], [0, 8], 8), ([0, 8], [12, 16], 16), ([4, 8], [8, 16], 16)] {
        let error = with_weights(&file(&two(a, b), data));
        assert!(error.contains("is not a valid safetensors file") && error.contains('`'), "{a:?} {b:?}: {error}");
    }
    // Not in the order of their data, which is allowed: what is wrong is that nothing reads them.
    assert!(with_weights(&file(&two([8, 16], [0, 8]), 16)).contains("`a`, `b`"));
}

#[test]
fn a_name_of_a_million_parts_costs_no_memory() {
    let name = "a.".repeat(1_000_000);
    let header = format!(r#"{{"{name}": {{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}}}"#);
    let error = with_weights(&file(&header, 8));
    assert!(error.contains("modules that the model lacks") && error.len() < 2000, "{} bytes", error.len());
    // Nor do names reach a terminal as they are.
    let error = with_weights(&file(r#"{"\u001b[31m": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#, 8));
    assert!(error.contains("[31m") && !error.contains('\u{1b}'), "{error}");
    let folder = whole();
    fs::write(folder.path().join(WEIGHTS_FILE), file(&header, 8)).unwrap();
    assert!(DetachedAdapter::open(folder.path(), &registry()).is_err());
}

/// Readers disagree about which of two counts.
#[test]
fn a_name_that_occurs_twice_is_refused() {
    let tensor =
        |name: &str, shape: &str| format!(r#""{name}": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 8]}}"#);
    for (first, second) in [("t", "t"), ("t", "\\u0074")] {
        let header = format!("{{{}, {}}}", tensor(first, "[2]"), tensor(second, "[1, 2]"));
        let error = with_weights(&file(&header, 8));
        assert!(error.contains("the tensor `t` is described twice"), "{error}");
    }
    let twice = r#"{"t": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}"#;
    assert!(with_weights(&file(twice, 8)).contains("is not a valid safetensors file"));
}

#[test]
fn a_dtype_that_does_not_exist_is_named() {
    let error = with_weights(&file(r#"{"t": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}"#, 8));
    assert!(error.contains("F99"), "{error}");
}

/// A header decides by itself whether the rest is read: these files are larger than any memory, and refused at once.
#[cfg(unix)]
#[test]
fn huge_files_are_refused_by_their_beginning() {
    let folder = whole();
    let path = folder.path().join(WEIGHTS_FILE);
    let huge = |start: &[u8], length: u64| {
        fs::write(&path, start).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        refusal(folder.path())
    };
    let (terabyte, tensor) = (1 << 40, r#"{"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#);
    let error = huge(&file(tensor, 8), terabyte);
    assert!(error.contains("its header describes 8 bytes of tensors, but there are 1099511627"), "{error}");
    let error = huge(&file("not a header", 8), terabyte);
    assert!(error.contains("is not a valid safetensors file"), "{error}");
    let error = huge(&100_000_001u64.to_le_bytes(), terabyte);
    assert!(error.contains("its header is said to be 100000001 bytes long; there can be 100000000"), "{error}");
    let error = huge(&50_000_000u64.to_le_bytes(), 1000);
    assert!(error.contains("its header is said to be 50000000 bytes long; there can be 992"), "{error}");
    fs::rename(&path, folder.path().join(PICKLE_FILE)).unwrap();
    let pickle = fs::File::options().write(true).open(folder.path().join(PICKLE_FILE)).unwrap();
    pickle.set_len(terabyte).unwrap();
    assert!(refusal(folder.path()).contains("adapter_model.bin: it is not a zip archive"));
}

/// A pipe would be waited for, and a device never ends.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_opened() {
    let folder = whole();
    for name in [WEIGHTS_FILE, CONFIG_FILE] {
        let path = folder.path().join(name);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = refusal(folder.path());
        assert!(error.contains(name) && error.contains("it is not a regular file"), "{error}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refusal(folder.path()).contains("it is not a regular file"));
    }
}

#[test]
fn configs_that_would_take_the_stack_or_the_memory_are_refused() {
    let folder = whole();
    let path = folder.path().join(CONFIG_FILE);
    let with = |text: &str| {
        fs::write(&path, text).unwrap();
        let error = refusal(folder.path());
        assert!(error.contains(CONFIG_FILE), "{error}");
        error
    };
    let deep = format!(r#"{{"peft_type": "BOTTLENECK", "x": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(with(&deep).contains("recursion limit exceeded"));
    let long = format!(r#"{{"peft_type": "BOTTLENECK", "x": "{}"}}"#, "x".repeat(10_000_000));
    assert!(with(&long).contains("more than 10000000 are not read"));
    // Finding the field that is at fault may not take a parse per field.
    let fields: String = (0..200_000).map(|i| format!(r#""x{i}": 1, "#)).collect();
    assert!(with(&format!(r#"{{{fields} "r": "two", "peft_type": "BOTTLENECK"}}"#)).contains("invalid adapter config"));
}

/// A valid file whose tensors are far larger than the model's asks for no memory.
#[test]
fn shapes_that_do_not_fit_are_refused_by_name() {
    let key = "base_model.model.model.layers.0.mlp.up_proj.bottleneck_A";
    let header = format!(r#"{{"{key}": {{"dtype": "F32", "shape": [2, 600], "data_offsets": [0, 4800]}}}}"#);
    let error = with_weights(&file(&header, 4800));
    assert!(
        error.contains(&format!("`{key}` has shape [2, 600], but the config and the model ask for [2, 6]")),
        "{error}"
    );
    let empty = format!(r#"{{"{key}": {{"dtype": "F32", "shape": [2, 0], "data_offsets": [0, 0]}}}}"#);
    assert!(with_weights(&file(&empty, 0)).contains("has shape [2, 0]"));
}

#[test]
fn tensors_of_a_dtype_that_cannot_be_computed_with_are_refused() {
    let key = "base_model.model.model.layers.0.mlp.up_proj.bottleneck_A";
    let header = format!(r#"{{"{key}": {{"dtype": "BOOL", "shape": [2, 6], "data_offsets": [0, 12]}}}}"#);
    let error = with_weights(&file(&header, 12));
    assert!(error.contains(key), "{error}");
}

#[test]
fn configs_that_are_broken_are_named() {
    for (text, words) in [
        ("", "invalid adapter config"),
        ("{\"peft_type\": \"BOTTLENECK\"", "invalid adapter config"),
        ("{\"peft_type\": \"FOO\"}", "unknown adapter method `FOO`; registered: BOTTLENECK"),
        ("{\"peft_type\": \"BOTTLENECK\", \"r\": 0}", "`r` is 0"),
    ] {
        let folder = whole();
        fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
        let error = refusal(folder.path());
        assert!(error.contains(words) && error.contains(CONFIG_FILE), "{error}");
    }
    let folder = whole();
    fs::write(folder.path().join(CONFIG_FILE), [0xff, 0xfe, 0x00]).unwrap();
    assert!(refusal(folder.path()).contains(CONFIG_FILE));
}

#[test]
fn configs_that_contradict_the_tensors_are_refused() {
    for (from, to, words) in [
        ("\"r\": 2", "\"r\": 3", "has shape [2, 6], but the config and the model ask for [3, 6]"),
        (
            "\"up_proj\"",
            "\"down_proj\"",
            "the checkpoint has no tensor `base_model.model.model.layers.0.mlp.down_proj.bottleneck_A`",
        ),
        (
            "\"up_proj\"",
            "\"up_proj\", \"lm_head\"",
            "the checkpoint has no tensor `base_model.model.lm_head.bottleneck_A`",
        ),
        (
            "\"up_proj\"",
            "\"0.mlp.up_proj\"",
            "tensors that nothing reads: `base_model.model.model.layers.1.mlp.up_proj.bottleneck_A`",
        ),
    ] {
        let folder = whole();
        let path = folder.path().join(CONFIG_FILE);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        let error = refusal(folder.path());
        assert!(error.contains(words) && error.contains(&folder.path().display().to_string()), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn changed_or_cut_files_never_stop_the_process(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let folder = whole();
        let path = folder.path().join(WEIGHTS_FILE);
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        let _ = tiny().load_adapter("x", folder.path(), &registry());
    }

    #[test]
    fn random_bytes_never_stop_the_process(bytes in prop::collection::vec(any::<u8>(), 0..200), small in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(WEIGHTS_FILE);
        let header = [&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat();
        fs::write(&path, if small { header } else { bytes }).unwrap();
        prop_assert!(SafetensorsFile::open(&path).is_err());
    }
}

#[test]
fn a_missing_file_of_tensors_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nothing.safetensors");
    let Err(error) = SafetensorsFile::open(&path) else { panic!("it was opened") };
    assert!(error.to_string().starts_with(&format!("cannot read {}", path.display())), "{error}");
}
