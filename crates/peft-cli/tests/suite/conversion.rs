//! `convert --to lora` with a rank or a threshold, against what PEFT's `convert_to_lora` made of the same adapters.

use crate::support::{Files, METHOD, Workplace, fixture, run};
use serde_json::Value;
use std::collections::BTreeMap;

/// The rank of each module, from the tensors of an adapter folder.
fn ranks(dir: &str) -> BTreeMap<String, usize> {
    let rank = |(name, tensor): (&String, &candle_core::Tensor)| {
        let path = name.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight")?;
        Some((path.to_owned(), tensor.dims()[0]))
    };
    Files::read(dir).tensors.iter().filter_map(rank).collect()
}

/// The rank and the error of each module, from a report.
fn reported(report: &Value) -> BTreeMap<String, (usize, f64)> {
    let modules = report["converted"].as_array().unwrap().iter();
    let module = |m: &Value| {
        let (rank, error) = (m["rank"].as_u64().unwrap() as usize, m["error"].as_f64().unwrap());
        (m["path"].as_str().unwrap().to_owned(), (rank, error))
    };
    modules.map(module).collect()
}

#[test]
fn ranks_are_those_of_peft_and_all_are_reported() {
    let place = Workplace::new();
    for (case, option) in [("converted_lora", "--rank 2"), ("converted_lora_threshold", "--threshold 0.9")] {
        let (source, out) = (fixture(&format!("{case}/source")), place.at(case));
        let words = format!("convert --adapter {source} --to lora {option} --out {out} --json");
        let report = run(&words, &[]).expect_success().json();
        let expected = ranks(&fixture(case));
        assert_eq!(ranks(&out), expected, "{case}");
        let reported = reported(&report);
        assert_eq!(
            reported.iter().map(|(path, (rank, _))| (path.clone(), *rank)).collect::<BTreeMap<_, _>>(),
            expected
        );
        // Three directions were cut down; a threshold of 0.9 leaves out a tenth of the squares at the most.
        assert!(reported.values().all(|(_, error)| *error > 0.0 && *error < 0.1f64.sqrt()), "{reported:?}");

        let text = run(&format!("convert --adapter {source} --to lora {option} --out {out}"), &[]).expect_success();
        let (worst, (_, error)) = reported.iter().max_by(|a, b| a.1.1.total_cmp(&b.1.1)).unwrap();
        for part in [" of rank 2", &format!("largest error {error:.1e}"), &format!("at {worst};")] {
            assert!(text.stdout.contains(part), "`{part}` is not in: {}", text.stdout);
        }
    }
}

#[test]
fn without_a_rank_it_is_exact_and_says_so() {
    let place = Workplace::new();
    let (source, out) = (fixture("converted_lora/source"), place.at("out"));
    let convert = |option: &str| run(&format!("convert --adapter {source} --to lora {option} --out {out}"), &[]);
    let text = convert("").expect_success().stdout;
    assert!(text.contains("6 of rank 3\nexact: nothing is left out"), "{text}");
    // The factors are of rank 3, and no larger ones are made up.
    let text = convert("--rank 5").expect_success().stdout;
    assert!(text.contains("6 of rank 3 (where it is below 5, it is all there is)\nexact"), "{text}");
    assert!(reported(&convert("--rank 5 --json").json()).values().all(|module| *module == (3, 0.0)));
}

#[test]
fn a_rank_that_a_weight_does_not_allow_is_refused_and_names_the_module() {
    let place = Workplace::new();
    let (source, out) = (fixture("converted_lora/source"), place.at("out"));
    let words = format!("convert --adapter {source} --to lora --rank 17 --out {out}");
    run(&words, &[]).expect_error(1, &["model.layers.0.self_attn.v_proj", "rank is 17", "16 x 32", "no more than 16"]);
    assert!(!place.exists("out"));
}

#[test]
fn the_base_model_changes_nothing_for_a_product_of_factors() {
    let place = Workplace::new();
    let (base, adapter) = (fixture("base_llama"), place.adapter("adapter"));
    assert!(METHOD.contains("tinylora"));
    let convert = |name: &str, option: &str| {
        let out = place.at(name);
        let words = format!("convert --adapter {adapter} --to lora --rank 1 {option} --out {out} --json");
        (reported(&run(&words, &[]).expect_success().json()), out)
    };
    let (alone, with_base) = (convert("alone", ""), convert("with_base", &format!("--base {base}")));
    assert_eq!(alone.0, with_base.0);
    let (alone, with_base) = (Files::read(&alone.1), Files::read(&with_base.1));
    assert_eq!(alone.config, with_base.config);
    assert!(alone.tensors.len() == with_base.tensors.len() && alone.tensors.len() == 8);
}
