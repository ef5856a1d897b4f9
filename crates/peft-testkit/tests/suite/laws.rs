//! Honest methods keep the laws, and each law catches the bugs it is there for.

use crate::planted::{Bug, planted};
use candle_core::DType;
use peft_core::{ModuleNames, TargetSpec};
use peft_testkit::conformance::{Case, Law};
use peft_testkit::strategy;
use peft_testkit::tiny::TinySpec;
use proptest::prelude::*;

/// Checks that a law finds a bug and says so in these words.
#[track_caller]
fn caught(law: Law, bug: Bug, words: &str) {
    let spec = if bug == Bug::OtherDtype { TinySpec::of(DType::BF16) } else { TinySpec::default() };
    let case = Case::new(planted(bug)).unwrap().on(spec);
    let broken = law.check(&case).expect_err("the law holds");
    assert_eq!(broken.law, law);
    assert!(broken.finding.contains(words), "{broken}");
    assert!(broken.to_string().contains("PLANTED") && broken.to_string().contains("TinySpec"), "{broken}");
    assert!(case.check().is_err());
}

#[test]
fn an_honest_method_keeps_every_law() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        Case::new(planted(Bug::None)).unwrap().on(TinySpec::of(dtype)).check().unwrap();
    }
}

proptest! {
    #![proptest_config(strategy::config(40))]

    #[test]
    fn an_honest_method_keeps_them_on_any_model(spec in strategy::spec(), targets in strategy::targets(), seed in 0u64..99) {
        let mut method = planted(Bug::None);
        method.targets = targets;
        Case::new(method).unwrap().on(spec).with_seed(seed).check()?;
    }
}

#[test]
fn whole_modules_beside_the_adapter_are_no_exception() {
    let mut method = planted(Bug::None);
    method.targets = TargetSpec::new(ModuleNames::list(["up_proj"]));
    method.targets.modules_to_save = Some(vec!["norm".into(), "lm_head".into()]);
    Case::new(method).unwrap().on(TinySpec::of(DType::BF16)).check().unwrap();
}

#[test]
fn law_1_catches_deltas_that_are_not_what_forward_adds() {
    caught(Law::Delta, Bug::HalfDelta, "the output of `model.embed_tokens`");
    caught(Law::Delta, Bug::UnscaledFactors, "LoRA factors of `model.embed_tokens`");
    caught(Law::Delta, Bug::OtherDtype, "an output BF16");
}

#[test]
fn law_2_catches_values_out_of_nowhere() {
    caught(Law::Repeatable, Bug::UnseededInit, "planted_A");
}

#[test]
fn law_3_catches_adapters_that_change_the_model_from_the_start() {
    caught(Law::Identity, Bug::NotIdentity, "changes the logits");
    caught(Law::Identity, Bug::ScribblesOnBase, "model.embed_tokens.weight");
    let admitted = Case::new(planted(Bug::NotIdentity)).unwrap().not_identity();
    admitted.check().unwrap();
}

#[test]
fn law_4_catches_deltas_that_drift() {
    caught(Law::Unmerge, Bug::DriftingDelta, "merged a second time");
}

#[test]
fn law_5_catches_what_does_not_survive_a_file() {
    caught(Law::RoundTrip, Bug::UnsavedTensor, "the logits");
    caught(Law::RoundTrip, Bug::ForgivesMissing, "planted_B");
}

#[test]
fn law_6_catches_traces_of_what_failed() {
    caught(Law::Atomic, Bug::HidesNan, "NaN");
    caught(Law::Atomic, Bug::ScribblesOnBase, "model.embed_tokens.weight");
}

#[test]
fn law_7_catches_gradients_that_are_missing_or_wrong() {
    caught(Law::Gradient, Bug::DeadTrainable, "planted_dead");
    caught(Law::Gradient, Bug::DetachedPart, "the loss rises by");
    caught(Law::Gradient, Bug::TrackedInference, "inference builds a graph");
    caught(Law::Gradient, Bug::StaleInference, "inference does not see");
}

#[test]
fn laws_are_numbered_as_documented() {
    assert_eq!(Law::ALL.map(Law::number), [1, 2, 3, 4, 5, 6, 7]);
}
