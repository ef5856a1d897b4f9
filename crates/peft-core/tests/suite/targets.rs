//! PEFT's rules for which modules a config selects.

use crate::methods::Bottleneck;
use crate::support::{named, pattern};
use peft_core::{AdapterConfig, ModuleNames, OneOrMany, PeftModel, TargetSpec, plan};
use peft_testkit::skeleton::Skeleton;

/// The paths that a fresh adapter with these targets would adapt.
fn selected(model: &Skeleton, targets: TargetSpec) -> Result<Vec<String>, String> {
    let sites = plan(model, &Bottleneck::on(targets).into()).map_err(|e| e.to_string())?;
    Ok(sites.into_iter().map(|site| site.path).collect())
}

#[track_caller]
fn selects(model: &Skeleton, targets: TargetSpec, expected: &[&str]) {
    assert_eq!(selected(model, targets).unwrap(), expected);
}

fn llama(layers: usize) -> Skeleton {
    Skeleton::llama(layers).unwrap()
}

/// Linear layers at these paths.
fn linears(paths: &[&str]) -> Skeleton {
    paths.iter().fold(Skeleton::new(), |model, path| model.linear(path).unwrap())
}

fn in_layers(mut targets: TargetSpec, layers: &[usize]) -> TargetSpec {
    targets.layers_to_transform = Some(OneOrMany::Many(layers.to_vec()));
    targets
}

fn under(mut targets: TargetSpec, patterns: &[&str]) -> TargetSpec {
    targets.layers_pattern = Some(OneOrMany::Many(patterns.iter().map(|p| (*p).to_owned()).collect()));
    targets
}

#[test]
fn a_list_selects_by_suffix_at_a_dot() {
    let model = llama(2);
    let both = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"];
    selects(&model, named(&["q_proj"]), &both);
    selects(&model, named(&["self_attn.q_proj"]), &both);
    selects(&model, named(&["1.self_attn.q_proj"]), &both[1..]);
    selects(&model, named(&["model.layers.0.self_attn.q_proj"]), &both[..1]);
    assert!(selected(&model, named(&["proj"])).is_err());
    assert!(selected(&model, named(&["attn.q_proj"])).is_err());
}

#[test]
fn targets_come_in_the_order_of_the_model() {
    let expected = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"].map(|n| format!("model.layers.0.{n}"));
    assert_eq!(selected(&llama(1), named(&["down_proj", "v_proj", "q_proj"])).unwrap(), expected);
}

#[test]
fn a_pattern_must_match_the_whole_path() {
    let model = llama(2);
    selects(&model, pattern(r".*\.0\..*q_proj"), &["model.layers.0.self_attn.q_proj"]);
    selects(
        &model,
        pattern(r"model\.layers\.1\.mlp\.(up|down)_proj"),
        &["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"],
    );
    selects(
        &model,
        pattern(r".*0.*k_proj|.*1.*v_proj"),
        &["model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.v_proj"],
    );
    // Neither end is free, in any alternative.
    assert!(selected(&model, pattern("q_proj")).is_err());
    assert!(selected(&model, pattern(r"model\.layers\.0\.self_attn|q_proj")).is_err());
    selects(&linears(&["q_proj", "block.q_proj"]), pattern("q_proj"), &["q_proj"]);
    // Lookarounds, as Python has them.
    selects(&llama(1), pattern(r".*(?<!gate_|up_|down_)(?<=q_)proj"), &["model.layers.0.self_attn.q_proj"]);
}

#[test]
fn a_pattern_that_does_not_compile_is_quoted() {
    let error = selected(&llama(1), pattern("q_(proj")).unwrap_err();
    assert!(error.starts_with("bad pattern `q_(proj`: "), "{error}");
    let mut targets = named(&["q_proj"]);
    targets.exclude_modules = Some(ModuleNames::Pattern("[".into()));
    assert!(selected(&llama(1), targets).unwrap_err().contains("bad pattern `[`"));
}

#[test]
fn exclusion_wins_over_every_target() {
    let model = llama(2);
    let excluding = |mut targets: TargetSpec, exclude: ModuleNames| {
        targets.exclude_modules = Some(exclude);
        targets
    };
    let second = ["model.layers.1.self_attn.q_proj"];
    selects(&model, excluding(named(&["q_proj"]), ModuleNames::list(["0.self_attn.q_proj"])), &second);
    selects(&model, excluding(named(&["q_proj"]), ModuleNames::Pattern(r".*\.0\..*".into())), &second);
    selects(&model, excluding(pattern(".*q_proj"), ModuleNames::list(["model.layers.0.self_attn.q_proj"])), &second);
    // A list excludes by whole components, a pattern by whole paths.
    assert_eq!(selected(&model, excluding(named(&["q_proj"]), ModuleNames::list(["proj"]))).unwrap().len(), 2);
    assert_eq!(
        selected(&model, excluding(named(&["q_proj"]), ModuleNames::Pattern("q_proj".into()))).unwrap().len(),
        2
    );
    let rest = selected(&llama(1), excluding(pattern("all-linear"), ModuleNames::list(["q_proj", "k_proj"]))).unwrap();
    assert_eq!(rest.len(), 5);
}

#[test]
fn modules_that_are_saved_whole_are_not_adapted() {
    let saving = |mut targets: TargetSpec, names: &[&str]| {
        targets.modules_to_save = Some(names.iter().map(|n| (*n).to_owned()).collect());
        targets
    };
    // A composite module takes everything below it out.
    let attention = selected(&llama(1), saving(pattern("all-linear"), &["mlp"])).unwrap();
    assert_eq!(attention.len(), 4);
    assert!(attention.iter().all(|path| path.contains("self_attn")));
    // The test against targets ends at dots, though the one for saving does not.
    let with_head = saving(named(&["q_proj", "lm_head"]), &["head"]);
    selects(&llama(1), with_head, &["model.layers.0.self_attn.q_proj", "lm_head"]);
    selects(&llama(1), saving(pattern(".*(q_proj|lm_head)"), &["lm_head"]), &["model.layers.0.self_attn.q_proj"]);
}

#[test]
fn all_linear_leaves_out_head_embedding_and_norms() {
    for spelling in ["all-linear", "All-Linear", "ALL-LINEAR"] {
        let paths = selected(&llama(2), pattern(spelling)).unwrap();
        assert_eq!(paths.len(), 14, "{spelling}");
        assert!(paths.iter().all(|path| path.ends_with("_proj")));
    }
    // In a list it is a name like any other.
    assert!(selected(&llama(2), named(&["all-linear"])).unwrap_err().contains("all-linear"));
}

#[test]
fn layers_filter_suffixes() {
    let model = llama(3);
    let q = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj");
    assert_eq!(selected(&model, in_layers(named(&["q_proj"]), &[0])).unwrap(), [q(0)]);
    assert_eq!(selected(&model, in_layers(named(&["q_proj"]), &[2, 0])).unwrap(), [q(0), q(2)]);
    let mut one = named(&["q_proj"]);
    one.layers_to_transform = Some(OneOrMany::One(1));
    assert_eq!(selected(&model, one).unwrap(), [q(1)]);
    // An empty list filters nothing.
    assert_eq!(selected(&model, in_layers(named(&["q_proj"]), &[])).unwrap().len(), 3);
    assert_eq!(selected(&model, in_layers(pattern("all-linear"), &[1])).unwrap().len(), 7);
}

#[test]
fn exact_names_bypass_the_layer_filter() {
    let model = llama(2);
    let head = in_layers(named(&["lm_head", "q_proj"]), &[1]);
    selects(&model, head, &["model.layers.1.self_attn.q_proj", "lm_head"]);
    let exact = in_layers(named(&["model.layers.0.self_attn.q_proj", "v_proj"]), &[1]);
    selects(&model, exact, &["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]);
    // Without a layer in its path, a module that matches by suffix is dropped.
    assert!(
        selected(&model, in_layers(named(&["embed_tokens", "q_proj"]), &[1])).unwrap_err().contains("`embed_tokens`")
    );
}

#[test]
fn the_layer_is_the_first_number_below_a_list_of_layers() {
    let model = linears(&["model.blocks.3.experts.1.q_proj", "model.blocks.1.experts.3.q_proj"]);
    selects(&model, in_layers(named(&["q_proj"]), &[3]), &["model.blocks.3.experts.1.q_proj"]);
    selects(&model, under(in_layers(named(&["q_proj"]), &[3]), &["experts"]), &["model.blocks.1.experts.3.q_proj"]);
    selects(
        &model,
        under(in_layers(named(&["q_proj"]), &[3]), &["nothing", "blocks"]),
        &["model.blocks.3.experts.1.q_proj"],
    );
    // A bare GPT-2 has its list of layers at the top, which only a pattern finds.
    let bare = linears(&["h.0.attn.c_attn", "h.1.attn.c_attn"]);
    assert!(selected(&bare, in_layers(named(&["c_attn"]), &[0])).unwrap_err().contains("in the layers [0]"));
    selects(&bare, under(in_layers(named(&["c_attn"]), &[0]), &["h"]), &["h.0.attn.c_attn"]);
    // The pattern has to be a whole component.
    assert!(selected(&model, under(in_layers(named(&["q_proj"]), &[3]), &["locks"])).is_err());
}

#[test]
fn contradictions_are_refused() {
    let error = selected(&llama(1), under(named(&["q_proj"]), &["layers"])).unwrap_err();
    assert!(error.contains("`layers_pattern` is set, so `layers_to_transform` must be set too"), "{error}");
    assert!(selected(&llama(1), under(named(&["q_proj"]), &[])).is_ok());
    assert!(selected(&llama(1), in_layers(pattern(".*q_proj"), &[0])).unwrap_err().contains("regular expression"));
}

#[test]
fn what_matches_nothing_is_an_error_with_suggestions() {
    let error = selected(&llama(1), named(&["q_porj"])).unwrap_err();
    assert!(error.starts_with("no module matches `q_porj` (did you mean `q_proj`"), "{error}");
    assert!(error.contains("the model has embed_tokens, q_proj, k_proj"), "{error}");
    let error = selected(&llama(1), named(&["self_attn.query"])).unwrap_err();
    assert!(error.starts_with("no module matches `self_attn.query`; the model has"), "{error}");
    assert!(selected(&llama(1), named(&[])).unwrap_err().starts_with("no module matches []"));
    assert!(selected(&llama(1), pattern("layers")).unwrap_err().starts_with("no module matches `layers`"));
}

#[test]
fn one_wrong_name_among_right_ones_is_an_error_too() {
    let error = selected(&llama(1), named(&["q_proj", "v_poj"])).unwrap_err();
    assert!(error.starts_with("no module matches `v_poj` (did you mean `v_proj`"), "{error}");
    let mut targets = named(&["q_proj"]);
    targets.modules_to_save = Some(vec!["norm".into(), "input".into()]);
    let error = selected(&llama(1), targets).unwrap_err();
    assert!(error.starts_with("no module matches `input` of modules_to_save"), "{error}");
    let error = selected(&llama(1), in_layers(named(&["q_proj"]), &[7])).unwrap_err();
    assert!(error.contains("in the layers [7]"), "{error}");
}

#[test]
fn modules_that_cannot_be_adapted_are_refused_by_path() {
    let error = selected(&llama(1), named(&["norm"])).unwrap_err();
    assert!(error.starts_with("BOTTLENECK cannot adapt the normalisation layer at `model.norm`"), "{error}");
    assert!(selected(&llama(1), pattern(".*layernorm")).unwrap_err().contains("model.layers.0.input_layernorm"));
}

/// What a checkpoint's config says about targets.
fn recorded(layers: usize, targets: TargetSpec) -> Vec<String> {
    let mut model = PeftModel::new(llama(layers));
    let adapter = model.add_adapter("default", Bottleneck::on(targets)).unwrap();
    match adapter.config.method.targets().target_modules.clone() {
        Some(ModuleNames::List(names)) => names,
        other => panic!("{other:?}"),
    }
}

const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

#[test]
fn all_linear_is_recorded_by_full_names_up_to_nineteen_and_by_suffixes_beyond() {
    let two = recorded(2, pattern("all-linear"));
    assert_eq!(two.len(), 14);
    assert_eq!(two[0], "model.layers.0.self_attn.q_proj");
    assert_eq!(recorded(3, pattern("all-linear")), PROJECTIONS);
    assert_eq!(recorded(40, pattern("all-linear")), PROJECTIONS);
}

#[test]
fn suffixes_never_reach_modules_that_were_left_out() {
    let mut targets = pattern("all-linear");
    targets.exclude_modules = Some(ModuleNames::list(["0.self_attn.q_proj"]));
    let names = recorded(4, targets);
    assert!(!names.contains(&"q_proj".to_owned()) && !names.contains(&"self_attn.q_proj".to_owned()), "{names:?}");
    assert!(names.contains(&"1.self_attn.q_proj".to_owned()) && names.contains(&"k_proj".to_owned()), "{names:?}");
    assert_eq!(names.len(), 3 + 6);
    // The recorded names mean what the original said, without its exclusion.
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(selected(&llama(4), named(&names)).unwrap().len(), 27);
}

#[test]
fn long_lists_of_suffixes_keep_their_meaning() {
    let names: Vec<String> = (0..24).map(|layer| format!("{layer}.self_attn.q_proj")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(selected(&llama(24), named(&names)).unwrap().len(), 24);
    assert_eq!(selected(&llama(30), named(&names)).unwrap().len(), 24);
    assert_eq!(recorded(24, named(&names)), ["q_proj"]);
    assert_eq!(recorded(30, named(&names)).len(), 24);
}

#[test]
fn a_config_is_recorded_as_it_was_when_nothing_is_to_be_resolved() {
    assert_eq!(recorded(3, named(&["v_proj", "q_proj"])), ["v_proj", "q_proj"]);
    let mut model = PeftModel::new(llama(1));
    let config: AdapterConfig = Bottleneck::on(pattern(".*[qv]_proj")).into();
    let adapter = model.add_adapter("default", config).unwrap();
    assert_eq!(adapter.config.method.targets(), &pattern(".*[qv]_proj"));
}
