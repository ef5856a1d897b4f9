//! The laws of every method, over shapes, ranks, keys, hosts and dtypes.

use peft_core::{ModuleNames, TargetSpec};
use peft_testkit::conformance::Case;
use peft_testkit::strategy;
use peft_testkit::tiny::TinySpec;
use peft_vera::{VeraBias, VeraConfig};
use proptest::prelude::*;

/// Configs of every kind, identity-initialised.
fn configs() -> impl Strategy<Value = VeraConfig> {
    let numbers = (1usize..40, -3i64..50, prop_oneof![Just(0.0), Just(0.4)], prop_oneof![Just(0.1), Just(-2.0)]);
    let bias = prop_oneof![Just(VeraBias::None), Just(VeraBias::All), Just(VeraBias::VeraOnly)];
    (strategy::linear_targets(), numbers, any::<bool>(), bias).prop_map(
        |(targets, (r, key, dropout, d_initial), save_projection, bias)| {
            let mut config = VeraConfig::new(targets).with_r(r).with_projection_prng_key(key);
            config.save_projection = save_projection;
            config.vera_dropout = dropout;
            config.d_initial = d_initial;
            config.bias = bias;
            config
        },
    )
}

proptest! {
    #![proptest_config(strategy::config(48))]

    #[test]
    fn every_config_keeps_them_on_every_model(config in configs(), spec in strategy::spec(), seed in 0u64..99) {
        Case::new(config).unwrap().on(spec).with_seed(seed).check()?;
    }

    #[test]
    fn so_do_vectors_that_start_anywhere(mut config in configs(), spec in strategy::spec(), seed in 0u64..99) {
        config.init_weights = false;
        Case::new(config).unwrap().on(spec).with_seed(seed).not_identity().check()?;
    }
}

#[test]
fn whole_modules_beside_them_change_nothing() {
    let targets = TargetSpec {
        modules_to_save: Some(vec!["norm".into(), "embed_tokens".into()]),
        ..TargetSpec::new(ModuleNames::list(["up_proj", "lm_head"]))
    };
    Case::new(VeraConfig::new(targets))
        .unwrap()
        .on(TinySpec { embed_scale: 2.0, ..TinySpec::default() })
        .check()
        .unwrap();
}
