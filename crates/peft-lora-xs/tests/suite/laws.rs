//! The laws of every method, over shapes, ranks, hosts and dtypes.

use peft_core::{ModuleNames, TargetSpec};
use peft_lora_xs::{LoraXsBias, LoraXsConfig};
use peft_testkit::conformance::Case;
use peft_testkit::strategy;
use peft_testkit::tiny::TinySpec;
use proptest::prelude::*;

/// Configs of every kind, beginning at the identity. Ranks go beyond the smallest side of most weights.
fn configs() -> impl Strategy<Value = LoraXsConfig> {
    let numbers = (1usize..10, prop_oneof![Just(1.0), Just(16.0), Just(0.3)], prop_oneof![Just(0.0), Just(0.4)]);
    let bias = prop_oneof![Just(LoraXsBias::None), Just(LoraXsBias::All), Just(LoraXsBias::LoraXsOnly)];
    (strategy::targets(), numbers, bias).prop_map(|(targets, (r, alpha, dropout), bias)| {
        let mut config = LoraXsConfig::with_rank(r, targets).with_init_std(0.0);
        config.lora_xs_alpha = alpha;
        config.lora_xs_dropout = dropout;
        config.bias = bias;
        config
    })
}

proptest! {
    #![proptest_config(strategy::config(48))]

    #[test]
    fn every_config_keeps_them_on_every_model(config in configs(), spec in strategy::spec(), seed in 0u64..99) {
        Case::new(config).unwrap().on(spec).with_seed(seed).check()?;
    }

    #[test]
    fn so_does_every_beginning(
        config in configs(),
        spec in strategy::spec(),
        init_std in prop_oneof![Just(1e-5), Just(0.5)],
        seed in 0u64..99,
    ) {
        Case::new(config.with_init_std(init_std)).unwrap().on(spec).with_seed(seed).not_identity().check()?;
    }
}

#[test]
fn whole_modules_beside_them_change_nothing() {
    let targets = TargetSpec {
        modules_to_save: Some(vec!["norm".into(), "lm_head".into()]),
        ..TargetSpec::new(ModuleNames::list(["embed_tokens", "down_proj"]))
    };
    let spec = TinySpec { embed_scale: 2.0, ..TinySpec::default() };
    Case::new(LoraXsConfig::with_rank(4, targets).with_init_std(0.0)).unwrap().on(spec).check().unwrap();
}
