//! The laws, kept by an additive method with parameters of its own and by a multiplicative one with a shared parameter.

use crate::methods::{Bottleneck, Scale};
use peft_core::TargetSpec;
use peft_testkit::conformance::Case;
use peft_testkit::strategy;
use peft_testkit::tiny::TinySpec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(strategy::config(24))]

    #[test]
    fn an_additive_method_keeps_the_laws(spec in strategy::spec(), targets in strategy::targets(), r in 1usize..4, seed in 0u64..99) {
        Case::new(Bottleneck { r, ..Bottleneck::on(targets) }).unwrap().on(spec).with_seed(seed).check()?;
    }

    #[test]
    fn a_multiplicative_method_keeps_the_laws(spec in strategy::spec(), targets in strategy::linear_targets(), seed in 0u64..99) {
        let spec = TinySpec { bias: false, ..spec };
        Case::new(Scale::on(targets)).unwrap().on(spec).with_seed(seed).check()?;
    }

    #[test]
    fn so_do_methods_that_train_parameters_of_the_base(
        spec in strategy::spec(),
        saved in prop::sample::subsequence(vec!["norm", "lm_head", "0.mlp.down_proj", "embed_tokens"], 0..=3),
        bias in prop::sample::select(vec!["none", "all", "targets"]),
    ) {
        let saved = saved.into_iter().map(str::to_owned).collect();
        let targets = TargetSpec { modules_to_save: Some(saved), ..crate::support::named(&["up_proj"]) };
        Case::new(Bottleneck { bias: bias.into(), ..Bottleneck::on(targets) }).unwrap().on(spec).check()?;
    }
}
