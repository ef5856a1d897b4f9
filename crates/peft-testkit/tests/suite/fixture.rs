//! Every case can be opened and is whole.

use peft_testkit::fixture;
use std::fs;

#[test]
fn every_case_opens() {
    let mut opened = 0;
    for entry in fs::read_dir(fixture::root()).unwrap() {
        let entry = entry.unwrap();
        if !entry.path().join("case.json").exists() {
            continue;
        }
        let case = fixture::case(entry.file_name().to_str().unwrap()).unwrap();
        assert!(case.base.join("model.safetensors").exists(), "{case:?}");
        assert!(case.adapter.join("adapter_model.safetensors").exists(), "{case:?}");
        case.expected("adapted_logits").unwrap();
        opened += 1;
    }
    assert!(opened >= 20, "{opened}");
}

#[test]
fn a_case_lists_its_modules_and_tensors() {
    let case = fixture::case("tinylora_default").unwrap();
    assert_eq!(case.modules.len(), 4);
    assert_eq!(case.expected_under("delta.").count(), 4);
    assert!(case.loss.unwrap() > 0.0);
    let other = fixture::case("tinylora_two_adapters/other").unwrap();
    assert!(other.adapter.ends_with("other") && other.modules.is_empty());
}

#[test]
fn unknown_cases_and_tensors_are_named() {
    assert!(fixture::case("no_such_case").unwrap_err().to_string().contains("no_such_case"));
    let case = fixture::case("tinylora_default").unwrap();
    assert!(case.expected("nothing").unwrap_err().to_string().contains("nothing"));
}
