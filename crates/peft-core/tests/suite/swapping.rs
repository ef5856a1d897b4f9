//! Another checkpoint in the place of an attached adapter.

use crate::methods::{Bottleneck, Scale, Stubborn, registry};
use crate::support::{Tensors, bits, logits, named, pattern, saved, stir, tiny, with_adapter};
use candle_core::Tensor;
use peft_core::checkpoint::{CONFIG_FILE, WEIGHTS_FILE};
use peft_core::{AdapterConfig, Error, PeftModel, TargetSpec};
use peft_testkit::assert::assert_same;
use peft_testkit::tiny::{TinyModel, TinySpec};
use std::fs;

/// A checkpoint in memory.
struct Checkpoint {
    config: AdapterConfig,
    tensors: Tensors,
}

fn checkpoint(config: impl Into<AdapterConfig>) -> Checkpoint {
    let model = with_adapter(config);
    Checkpoint { config: model.adapter("default").unwrap().config.clone(), tensors: saved(&model, "default") }
}

fn bottleneck(r: usize) -> Bottleneck {
    Bottleneck { r, ..Bottleneck::on(named(&["up_proj", "down_proj"])) }
}

/// A bottleneck that trains and saves other modules as a whole.
fn saving(r: usize, bias: &str, modules: &[&str]) -> Bottleneck {
    let modules_to_save = Some(modules.iter().map(|m| (*m).to_owned()).collect());
    let targets = TargetSpec { modules_to_save, ..named(&["up_proj", "down_proj"]) };
    Bottleneck { r, bias: bias.into(), ..Bottleneck::on(targets) }
}

fn swap(model: &mut PeftModel<TinyModel>, name: &str, to: &Checkpoint) -> Result<(), Error> {
    model.hotswap_from_source(name, to.config.clone(), &to.tensors).map(drop)
}

fn load(model: &mut PeftModel<TinyModel>, name: &str, from: &Checkpoint) {
    model.add_from_source(name, from.config.clone(), &from.tensors).unwrap();
}

/// Everything that can be seen of a model: adapters and active set, tensors, and logits bit for bit.
#[track_caller]
fn same(a: &PeftModel<TinyModel>, b: &PeftModel<TinyModel>) {
    let names = |model: &PeftModel<TinyModel>| -> (Vec<String>, Vec<String>) {
        let attached = model.adapters().iter().map(|a| a.name.to_string()).collect();
        (attached, model.active().map(str::to_owned).collect())
    };
    assert_eq!(names(a), names(b));
    for adapter in b.adapters() {
        let (found, expected) = (saved(a, &adapter.name), saved(b, &adapter.name));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (key, tensor) in &expected {
            assert_same(key, &found[key], tensor);
        }
        let json = |model: &PeftModel<TinyModel>| model.adapter(&adapter.name).unwrap().config.to_json().unwrap();
        assert_eq!(json(a), json(b));
    }
    assert_same("logits", &logits(a), &logits(b));
}

#[test]
fn a_swapped_adapter_is_the_one_that_a_fresh_model_loads() {
    let mut model = tiny();
    load(&mut model, "default", &checkpoint(bottleneck(2)));
    for r in [4, 1, 2, 3] {
        let other = checkpoint(bottleneck(r));
        let before = bits(&logits(&model));
        swap(&mut model, "default", &other).unwrap();
        assert_ne!(bits(&logits(&model)), before);
        let mut fresh = tiny();
        load(&mut fresh, "default", &other);
        same(&model, &fresh);
        fresh.merge().unwrap();
        model.merge().unwrap();
        assert_same("merged", &logits(&model), &logits(&fresh));
        model.unmerge().unwrap();
    }
    model.disable().unwrap();
    assert_same("the base", &logits(&model), &logits(&tiny()));
}

#[test]
fn folders_are_swapped_and_saved_again() {
    let folder = tempfile::tempdir().unwrap();
    let (source, again) = (folder.path().join("source"), folder.path().join("again"));
    with_adapter(bottleneck(3)).save_adapter("default", &source).unwrap();
    let mut model = with_adapter(bottleneck(2));
    let adapter = model.hotswap_adapter("default", &source, &registry()).unwrap();
    assert_eq!(adapter.config.method.downcast_ref::<Bottleneck>().unwrap().r, 3);
    model.save_adapter("default", &again).unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        assert_eq!(fs::read(again.join(file)).unwrap(), fs::read(source.join(file)).unwrap(), "{file}");
    }
}

/// Scaling does not commute with adding: a swap that changed the order would change the numbers.
#[test]
fn the_order_of_active_adapters_is_kept() {
    let (inner, outer, other) =
        (checkpoint(bottleneck(2)), checkpoint(Scale::on(named(&["up_proj", "down_proj"]))), checkpoint(bottleneck(3)));
    for (first, second, swapped) in [(&inner, &outer, "first"), (&outer, &inner, "second")] {
        let both = |first: &Checkpoint, second: &Checkpoint| {
            let mut model = tiny();
            load(&mut model, "first", first);
            load(&mut model, "second", second);
            model.activate(&["first", "second"]).unwrap();
            model
        };
        let mut model = both(first, second);
        swap(&mut model, swapped, &other).unwrap();
        let expected = if swapped == "first" { both(&other, second) } else { both(first, &other) };
        same(&model, &expected);
        let reversed = if swapped == "first" { both(second, &other) } else { both(&other, first) };
        assert_ne!(bits(&logits(&model)), bits(&logits(&reversed)));
    }
}

#[test]
fn an_inactive_adapter_is_swapped_unseen() {
    let (a, b, other) = (checkpoint(bottleneck(2)), checkpoint(bottleneck(1)), checkpoint(bottleneck(3)));
    let mut model = tiny();
    load(&mut model, "a", &a);
    load(&mut model, "b", &b);
    let before = logits(&model);
    swap(&mut model, "a", &other).unwrap();
    assert_same("another adapter is active", &logits(&model), &before);
    model.activate(&["a"]).unwrap();
    let mut fresh = tiny();
    load(&mut fresh, "a", &other);
    assert_same("switched on", &logits(&model), &logits(&fresh));

    model.disable().unwrap();
    swap(&mut model, "a", &a).unwrap();
    assert_same("switched off", &logits(&model), &logits(&tiny()));
    model.enable().unwrap();
    load(&mut fresh, "again", &a);
    assert_same("switched on again", &logits(&model), &logits(&fresh));
}

#[test]
fn the_mode_is_kept_and_the_variables_are_new() {
    let ids = TinySpec::default().ids().unwrap();
    let mut model = with_adapter(bottleneck(2));
    let old = model.vars();
    swap(&mut model, "default", &checkpoint(bottleneck(3))).unwrap();
    let output = model.base().forward(&ids).unwrap();
    assert!(output.track_op(), "a model in training stays there");
    let grads = output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    model.audit_gradients(&grads).unwrap();
    assert!(old.iter().all(|var| grads.get(var).is_none()), "the old variables are out of use");

    model.eval().unwrap();
    swap(&mut model, "default", &checkpoint(bottleneck(1))).unwrap();
    assert!(!model.base().forward(&ids).unwrap().track_op());
}

/// A variable in the source is copied: training the swapped adapter must not train the other model.
#[test]
fn nothing_is_shared_with_the_source() {
    let source = with_adapter(bottleneck(2));
    let live: Tensors = {
        let params = &source.adapter("default").unwrap().params;
        params.persisted().map(|(key, tensor)| (key.to_string(), tensor.clone())).collect()
    };
    let mut model = with_adapter(bottleneck(1));
    model.hotswap_from_source("default", source.adapter("default").unwrap().config.clone(), &live).unwrap();
    let before = logits(&source);
    stir(&model, 9);
    assert_same("the source", &logits(&source), &before);
}

#[test]
fn modules_saved_as_a_whole_come_and_go() {
    let plain = checkpoint(bottleneck(2));
    let mut model = tiny();
    load(&mut model, "default", &plain);
    let stages = [
        saving(2, "none", &["lm_head", "norm"]),
        saving(3, "all", &[]),
        saving(1, "targets", &["norm"]),
        bottleneck(2),
        saving(1, "all", &["lm_head"]),
    ];
    for stage in stages {
        let stage = checkpoint(stage);
        swap(&mut model, "default", &stage).unwrap();
        let mut fresh = tiny();
        load(&mut fresh, "default", &stage);
        same(&model, &fresh);
    }
    model.delete_adapter("default").unwrap();
    assert_same("the base", &logits(&model), &logits(&tiny()));
}

/// A part at a host that the old adapter had none at goes before those of adapters that were added later.
#[test]
fn new_parts_take_the_place_of_their_adapter() {
    let mut model = tiny();
    load(&mut model, "a", &checkpoint(bottleneck(2)));
    load(&mut model, "b", &checkpoint(saving(2, "none", &["lm_head"])));
    model.activate(&["a"]).unwrap();
    swap(&mut model, "a", &checkpoint(saving(2, "none", &["lm_head"]))).unwrap();
    let at_head = crate::support::at(model.base(), "lm_head", |host| {
        host.slots().adapters().map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(at_head, ["a", "b"]);
}

#[test]
fn base_weights_of_embeddings_go_with_their_adapter() {
    let config = || Bottleneck::on(named(&["embed_tokens"]));
    let key = "base_model.model.model.embed_tokens.base_layer.weight";
    let (own, mut other) = (checkpoint(config()), checkpoint(config()));
    let moved = (&other.tensors[key] + 1.0).unwrap();
    other.tensors.insert(key.to_owned(), moved);
    let mut model = tiny();
    load(&mut model, "default", &own);
    let before = logits(&model);
    swap(&mut model, "default", &other).unwrap();
    assert_ne!(bits(&logits(&model)), bits(&before));
    swap(&mut model, "default", &own).unwrap();
    assert_same("the model's own again", &logits(&model), &before);
}

/// What must not work, and what the error says.
fn refusals() -> Vec<(&'static str, Checkpoint, &'static str)> {
    let up = Bottleneck::on(named(&["up_proj"]));
    let more = Bottleneck::on(pattern(".*(up_proj|down_proj)|lm_head"));
    let others = Bottleneck::on(pattern(".*up_proj|lm_head"));
    let mut lacking = checkpoint(bottleneck(3));
    lacking.tensors.remove("base_model.model.model.layers.1.mlp.up_proj.bottleneck_B");
    let mut extra = checkpoint(bottleneck(3));
    extra.tensors.insert("base_model.stowaway".into(), moved_in());
    let mut misshapen = checkpoint(bottleneck(3));
    misshapen.config = Bottleneck { r: 2, ..bottleneck(3) }.into();
    let nothing = Checkpoint { config: Bottleneck::on(named(&["q_proj"])).into(), tensors: Tensors::new() };
    let invalid = Checkpoint { config: Bottleneck { r: 0, ..bottleneck(3) }.into(), tensors: Tensors::new() };
    vec![
        ("b", checkpoint(bottleneck(1)), "no adapter named `b`; the model has a, other"),
        (
            "a",
            checkpoint(Scale::on(named(&["up_proj"]))),
            "adapter `a` is a BOTTLENECK adapter and cannot be swapped for a SCALE checkpoint; delete it and load the other",
        ),
        (
            "a",
            checkpoint(up),
            "adapts other modules: it lacks `model.layers.0.mlp.down_proj`, `model.layers.1.mlp.down_proj`",
        ),
        ("a", checkpoint(more), "adapts other modules: it also adapts `lm_head`"),
        ("a", checkpoint(others), "`model.layers.1.mlp.down_proj` and also adapts `lm_head`"),
        ("a", lacking, "no tensor `base_model.model.model.layers.1.mlp.up_proj.bottleneck_B`"),
        ("a", extra, "`base_model.stowaway`"),
        ("a", misshapen, "has shape [3, 6], but the config and the model ask for [2, 6]"),
        ("a", nothing, "no module matches [q_proj]"),
        ("a", invalid, "`r` is 0"),
        (
            "a",
            checkpoint(saving(2, "none", &["lm_head"])),
            "adapters `other` and `a` both replace the weight of `lm_head`",
        ),
    ]
}

fn moved_in() -> Tensor {
    Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap()
}

/// An adapter to swap beside an active one that replaces the output head.
fn pair() -> PeftModel<TinyModel> {
    let mut model = tiny();
    load(&mut model, "a", &checkpoint(bottleneck(2)));
    load(&mut model, "other", &checkpoint(saving(1, "none", &["lm_head"])));
    model.activate(&["a", "other"]).unwrap();
    model
}

#[test]
fn what_is_refused_leaves_the_old_adapter_as_it_was() {
    let expected = pair();
    for (name, to, says) in refusals() {
        let mut model = pair();
        let vars: Vec<_> = model.vars().iter().map(|var| var.as_tensor().id()).collect();
        let error = swap(&mut model, name, &to).unwrap_err().to_string();
        assert!(error.contains(says), "`{says}` is not in: {error}");
        same(&model, &expected);
        assert_eq!(model.vars().iter().map(|var| var.as_tensor().id()).collect::<Vec<_>>(), vars);
        // It still can be swapped.
        swap(&mut model, "a", &checkpoint(bottleneck(3))).unwrap();
    }
}

/// Two that replace one parameter may both be attached, as long as one of them is off.
#[test]
fn a_conflict_with_an_inactive_adapter_is_none() {
    let conflicting = checkpoint(saving(2, "none", &["lm_head"]));
    let mut model = pair();
    model.activate(&["a"]).unwrap();
    swap(&mut model, "a", &conflicting).unwrap();
    assert!(matches!(model.activate(&["a", "other"]), Err(Error::ConflictingReplacement { .. })));
    let mut model = pair();
    model.activate(&["other"]).unwrap();
    swap(&mut model, "a", &conflicting).unwrap();
    assert!(matches!(model.activate(&["a", "other"]), Err(Error::ConflictingReplacement { .. })));

    // Switched off, the set is what will be switched on again.
    let mut model = pair();
    model.disable().unwrap();
    assert!(matches!(swap(&mut model, "a", &conflicting), Err(Error::ConflictingReplacement { .. })));
    model.enable().unwrap();
    same(&model, &pair());
}

#[test]
fn merged_adapters_are_not_swapped() {
    let mut model = pair();
    model.activate(&["a"]).unwrap();
    let separate = logits(&model);
    model.merge().unwrap();
    let merged = logits(&model);
    for name in ["a", "other"] {
        let error = swap(&mut model, name, &checkpoint(bottleneck(3))).unwrap_err();
        assert_eq!(error.to_string(), "cannot swap an adapter: adapters are merged; unmerge first");
    }
    assert_same("merged", &logits(&model), &merged);
    model.unmerge().unwrap();
    assert_same("unmerged", &logits(&model), &separate);
}

#[test]
fn a_folder_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = with_adapter(Stubborn { mergeable: 0, lacking: 0, targets: named(&["up_proj"]) });
    let before = logits(&model);
    let dir = folder.path().join("missing");
    let error = model.hotswap_adapter("default", &dir, &registry()).unwrap_err().to_string();
    assert!(error.contains(&dir.display().to_string()) && error.contains("no such folder"), "{error}");
    with_adapter(bottleneck(2)).save_adapter("default", &dir).unwrap();
    let error = model.hotswap_adapter("default", &dir, &registry()).unwrap_err().to_string();
    assert!(error.contains(&dir.display().to_string()) && error.contains("STUBBORN"), "{error}");
    assert_same("the old adapter", &logits(&model), &before);
}
