//! The laws of every method, over ranks, options, hosts and dtypes.

use candle_core::DType;
use peft_core::{ModuleNames, TargetSpec};
use peft_lora::{LoraBias, LoraConfig, LoraInit};
use peft_testkit::conformance::Case;
use peft_testkit::strategy;
use peft_testkit::tiny::TinySpec;
use proptest::prelude::*;

/// Plain LoRA of every kind on these targets, identity-initialised.
fn plain(targets: impl Strategy<Value = TargetSpec>) -> impl Strategy<Value = LoraConfig> {
    let bias = prop_oneof![Just(LoraBias::None), Just(LoraBias::All), Just(LoraBias::LoraOnly)];
    let init = prop_oneof![Just(LoraInit::Identity), Just(LoraInit::Gaussian)];
    let numbers = (1usize..7, 0.5..20.0f64, prop_oneof![Just(0.0), Just(0.4)], any::<bool>());
    (targets, numbers, bias, init).prop_map(|(targets, (r, alpha, dropout, use_rslora), bias, init)| {
        let mut config = LoraConfig::with_rank(r, targets);
        config.lora_alpha = alpha;
        config.lora_dropout = dropout;
        config.use_rslora = use_rslora;
        config.bias = bias;
        config.init_lora_weights = init;
        config
    })
}

fn case(config: LoraConfig, spec: TinySpec) -> Case {
    Case::new(config).unwrap().on(spec)
}

fn linear(names: &[&str]) -> TargetSpec {
    TargetSpec::new(ModuleNames::list(names.iter().copied()))
}

proptest! {
    #![proptest_config(strategy::config(40))]

    #[test]
    fn plain_lora_keeps_them_on_every_model(config in plain(strategy::targets()), spec in strategy::spec(), seed in 0u64..99) {
        case(config, spec).with_seed(seed).check()?;
    }

    #[test]
    fn so_does_dora_up_to_what_it_holds_constant(config in plain(strategy::targets()), spec in strategy::spec(), seed in 0u64..99) {
        let mut config = config;
        config.use_dora = true;
        case(config, spec).with_seed(seed).approximate_gradient().check()?;
    }

    #[test]
    fn so_do_factors_that_start_as_a_part_of_the_weight(
        config in plain(strategy::linear_targets()),
        init in prop_oneof![Just(LoraInit::Pissa), Just(LoraInit::Olora)],
        spec in strategy::spec(),
        use_dora in any::<bool>(),
    ) {
        let mut config = config;
        config.init_lora_weights = init;
        config.use_dora = use_dora;
        config.r = config.r.min(spec.hidden).min(spec.inner).min(spec.vocab);
        let case = case(config, spec);
        if use_dora { case.approximate_gradient().check()? } else { case.check()? }
    }

    #[test]
    fn so_do_trained_biases_on_layers_that_have_one(config in plain(Just(linear(&["up_proj", "down_proj"]))), spec in strategy::spec()) {
        let mut config = config;
        config.lora_bias = true;
        config.init_lora_weights = LoraInit::Identity;
        case(config, TinySpec { bias: true, ..spec }).check()?;
    }

    #[test]
    fn so_do_factors_that_start_anywhere(config in plain(strategy::targets()), spec in strategy::spec()) {
        let mut config = config;
        config.init_lora_weights = LoraInit::Random;
        case(config, spec).not_identity().check()?;
    }
}

#[test]
fn every_dtype_keeps_them_with_patterns() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let mut config = LoraConfig::with_rank(3, linear(&["up_proj", "down_proj"]));
        config.rank_pattern = [("0.mlp.up_proj".to_owned(), 1), ("up_proj".to_owned(), 2)].into_iter().collect();
        config.alpha_pattern = [("down_proj".to_owned(), 5.0)].into_iter().collect();
        case(config, TinySpec::of(dtype)).check().unwrap();
    }
}
