//! The laws of every method, over shapes, biases, orientations and dtypes.

use peft_core::{ModuleNames, TargetSpec};
use peft_ia3::Ia3Config;
use peft_testkit::conformance::Case;
use peft_testkit::strategy;
use peft_testkit::tiny::TinySpec;
use proptest::prelude::*;

/// Any choice of modules, and any choice of feed-forward ones among them.
fn configs() -> impl Strategy<Value = Ia3Config> {
    let feedforward = prop_oneof![
        Just(ModuleNames::list(["down_proj"])),
        Just(ModuleNames::list(Vec::<String>::new())),
        Just(ModuleNames::Pattern(r".*\.(up|down)_proj|lm_head".into())),
    ];
    (strategy::linear_targets(), feedforward).prop_map(|(targets, feedforward)| {
        let mut config = Ia3Config::default();
        config.feedforward_modules = Some(match (&targets.target_modules, feedforward) {
            // A list must be a subset of a list.
            (Some(ModuleNames::List(names)), ModuleNames::List(wanted)) => {
                ModuleNames::List(wanted.into_iter().filter(|name| names.contains(name)).collect())
            }
            (_, feedforward) => feedforward,
        });
        config.targets = targets;
        config
    })
}

proptest! {
    #![proptest_config(strategy::config(64))]

    #[test]
    fn every_config_keeps_them_on_every_model(config in configs(), spec in strategy::spec(), seed in 0u64..99) {
        Case::new(config).unwrap().on(spec).with_seed(seed).check()?;
    }

    #[test]
    fn so_do_vectors_that_start_anywhere(mut config in configs(), spec in strategy::spec(), seed in 0u64..99) {
        config.init_ia3_weights = false;
        Case::new(config).unwrap().on(spec).with_seed(seed).not_identity().check()?;
    }
}

#[test]
fn whole_modules_beside_them_change_nothing() {
    for bias in [false, true] {
        let mut config = Ia3Config::new(["up_proj", "down_proj"], ["down_proj"]);
        config.targets = TargetSpec { modules_to_save: Some(vec!["norm".into(), "lm_head".into()]), ..config.targets };
        config.targets.exclude_modules = Some(ModuleNames::list(["layers.0.mlp.up_proj"]));
        Case::new(config).unwrap().on(TinySpec { bias, ..TinySpec::default() }).check().unwrap();
    }
}
