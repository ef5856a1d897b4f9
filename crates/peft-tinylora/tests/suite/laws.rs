//! The laws of every method, over shapes, ranks, vectors, tying, hosts and dtypes.

use crate::support::plain;
use candle_core::DType;
use peft_core::{ModuleNames, TargetSpec};
use peft_testkit::conformance::Case;
use peft_testkit::strategy;
use peft_testkit::tiny::TinySpec;
use peft_tinylora::{TinyLoraBias, TinyLoraConfig, TinyLoraInit};
use proptest::prelude::*;

/// Configs of every kind on these targets, identity-initialised.
fn configs(targets: impl Strategy<Value = TargetSpec>) -> impl Strategy<Value = TinyLoraConfig> {
    // Ranks go beyond the smallest side of most weights, vectors beyond what fills one block of random numbers.
    let sizes = (1usize..7, 1usize..20, prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64]);
    let rest = (-3i64..50, any::<bool>(), prop_oneof![Just(0.0), Just(0.4)]);
    let bias = prop_oneof![Just(TinyLoraBias::None), Just(TinyLoraBias::All), Just(TinyLoraBias::TinyLoraOnly)];
    (targets, sizes, rest, bias).prop_map(|(targets, (r, u, tying), (seed, save_projection, dropout), bias)| {
        let mut config = TinyLoraConfig::new(targets).with_r(r).with_u(u).with_weight_tying(tying);
        config.projection_seed = seed;
        config.save_projection = save_projection;
        config.tinylora_dropout = dropout;
        config.bias = bias;
        config
    })
}

fn case(config: TinyLoraConfig, spec: TinySpec) -> Case {
    Case::new(config).unwrap().on(spec)
}

proptest! {
    #![proptest_config(strategy::config(48))]

    #[test]
    fn every_config_keeps_them_on_every_model(config in configs(strategy::targets()), spec in strategy::spec(), seed in 0u64..99) {
        case(config, spec).with_seed(seed).check()?;
    }

    #[test]
    fn so_do_vectors_that_start_anywhere(
        config in configs(strategy::targets()),
        spec in strategy::spec(),
        init in prop_oneof![Just(TinyLoraInit::Uniform), Just(TinyLoraInit::Unspecified)],
    ) {
        case(config.with_init_weights(init), spec).not_identity().check()?;
    }
}

#[test]
fn thirteen_numbers_keep_them_in_every_dtype() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let config = plain().with_u(13).with_weight_tying(1.0);
        case(config, TinySpec::of(dtype)).check().unwrap();
    }
}

#[test]
fn whole_modules_beside_them_change_nothing() {
    let targets = TargetSpec {
        modules_to_save: Some(vec!["norm".into(), "lm_head".into()]),
        ..TargetSpec::new(ModuleNames::list(["embed_tokens", "down_proj"]))
    };
    case(TinyLoraConfig::new(targets).with_u(5), TinySpec { embed_scale: 2.0, ..TinySpec::default() }).check().unwrap();
}
