//! What property tests draw from.

use crate::tiny::TinySpec;
use candle_core::DType;
use peft_core::{ModuleNames, TargetSpec};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

/// The settings of a property test with this many cases: the same cases in every run, and no files written.
///
/// `PROPTEST_CASES` and `PROPTEST_RNG_SEED` explore further.
pub fn config(cases: u32) -> Config {
    let surroundings = Config::default();
    let chosen = |name: &str| std::env::var_os(name).is_some();
    Config {
        cases: if chosen("PROPTEST_CASES") { surroundings.cases } else { cases },
        rng_seed: if chosen("PROPTEST_RNG_SEED") { surroundings.rng_seed } else { RngSeed::Fixed(20_260_401) },
        failure_persistence: None,
        ..surroundings
    }
}

/// The dtypes that weights come in.
pub fn dtype() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F64), Just(DType::BF16), Just(DType::F16)]
}

/// Tiny models of all sizes: wide and narrow, with and without biases, tied or not, scaled or not, in every dtype.
pub fn spec() -> impl Strategy<Value = TinySpec> {
    let sizes = (2usize..12, 3usize..9, 1usize..9, 1usize..4);
    let properties = (any::<bool>(), any::<bool>(), prop_oneof![Just(1.0), Just(2.5)]);
    (sizes, properties, dtype(), 0u64..1000).prop_map(|(sizes, properties, dtype, seed)| {
        let (vocab, hidden, inner, layers) = sizes;
        let (bias, tied, embed_scale) = properties;
        TinySpec { vocab, hidden, inner, layers, bias, tied, embed_scale, dtype, seed }
    })
}

/// Targets that match linear layers of every [`TinySpec`], Conv1D among them.
pub fn linear_targets() -> impl Strategy<Value = TargetSpec> {
    let names = prop::sample::subsequence(vec!["up_proj", "down_proj", "lm_head"], 1..=3);
    prop_oneof![
        Just(ModuleNames::all_linear()),
        Just(ModuleNames::Pattern(r".*\.0\.mlp\..*|lm_head".into())),
        names.prop_map(ModuleNames::list),
    ]
    .prop_map(TargetSpec::new)
}

/// Targets that match hosts of every [`TinySpec`], the embedding among them.
pub fn targets() -> impl Strategy<Value = TargetSpec> {
    let names = prop::sample::subsequence(vec!["mlp.up_proj", "down_proj", "model.embed_tokens"], 0..=2);
    let with_embedding = names.prop_map(|mut names| {
        names.push("embed_tokens");
        TargetSpec::new(ModuleNames::list(names))
    });
    prop_oneof![linear_targets(), with_embedding]
}
