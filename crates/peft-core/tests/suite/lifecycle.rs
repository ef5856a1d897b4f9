//! Adapters of one model: added, activated, switched off, deleted.

use crate::methods::{Bottleneck, Scale, Stubborn, registry};
use crate::support::{bits, logits, named, on, saved, stir, tiny, with_bottleneck};
use peft_core::{Error, HostView, PeftModel, WeightLayout};
use peft_testkit::assert::assert_close;
use peft_testkit::tiny::{TinyModel, TinySpec};

fn active(model: &PeftModel<TinyModel>) -> Vec<String> {
    model.active().map(str::to_owned).collect()
}

/// Two trained adapters, `b` active.
fn two() -> PeftModel<TinyModel> {
    let mut model = tiny();
    model.add_adapter("a", Bottleneck::on(named(&["up_proj"]))).unwrap();
    stir(&model, 1);
    model.add_adapter("b", Bottleneck::on(named(&["up_proj", "down_proj"]))).unwrap();
    stir(&model, 2);
    model
}

#[test]
fn a_new_adapter_is_the_only_active_one() {
    let model = two();
    assert_eq!(active(&model), ["b"]);
    let names: Vec<&str> = model.adapters().iter().map(|a| &*a.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(model.adapter("a").unwrap().sites.len(), 2);
}

#[test]
fn effects_of_active_adapters_add_up() {
    let ids = TinySpec::default().ids().unwrap();
    // One block, and everything behind the adapted layer linear in it: without the tanh, norm and head between, effects on the
    // output of one layer are compared directly.
    let mut model = two();
    let mut up = |names: &[&str]| {
        model.activate(names).unwrap();
        model.eval().unwrap();
        crate::support::at(model.base(), "model.layers.0.mlp.up_proj", |host| {
            let x = peft_testkit::tiny::noise((3, 6), candle_core::DType::F32, 5).unwrap();
            let base = host.base().canonical().unwrap();
            {
                let view = HostView::new(&base, WeightLayout::OutIn, None);
                host.slots().forward(view, &x, |x| x.matmul(&base.t().unwrap())).unwrap()
            }
        })
    };
    let (none, a, b, both) = (up(&[]), up(&["a"]), up(&["b"]), up(&["a", "b"]));
    assert_eq!(bits(&both), bits(&up(&["b", "a"])));
    let sum = ((&a - &none).unwrap() + &b).unwrap();
    assert_close("both", &both, &sum, 1e-5);
    assert_ne!(bits(&a), bits(&b));
    model.activate(&["a", "b"]).unwrap();
    assert_ne!(bits(&model.base().forward(&ids).unwrap()), bits(&logits(&tiny())));
}

#[test]
fn switching_changes_logits_back_and_forth() {
    let mut model = two();
    let base = logits(&tiny());
    let b = logits(&model);
    model.activate(&["a"]).unwrap();
    let a = logits(&model);
    assert_ne!(bits(&a), bits(&b));
    model.disable().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&base));
    assert!(active(&model).is_empty() && model.vars().is_empty());
    model.enable().unwrap();
    assert_eq!(active(&model), ["a"]);
    assert_eq!(bits(&logits(&model)), bits(&a));
    model.activate(&[]).unwrap();
    assert_eq!(bits(&logits(&model)), bits(&base));
    model.activate(&["b"]).unwrap();
    assert_eq!(bits(&logits(&model)), bits(&b));
}

#[test]
fn naming_an_adapter_twice_is_naming_it_once() {
    let mut model = two();
    let once = logits(&model);
    model.activate(&["b", "b"]).unwrap();
    assert_eq!(bits(&logits(&model)), bits(&once));
    assert_eq!(active(&model), ["b"]);
    assert!(model.trainable().iter().all(|(name, _)| name.starts_with("base_model.")));
}

#[test]
fn only_active_adapters_are_trained() {
    let mut model = two();
    assert_eq!(model.vars().len(), 4);
    model.activate(&["a"]).unwrap();
    assert_eq!(model.vars().len(), 2);
    model.activate(&["a", "b"]).unwrap();
    let names: Vec<String> = model.trainable().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 6);
    assert_eq!(names[0], "a/base_model.model.model.layers.0.mlp.up_proj.bottleneck_B");
    assert_eq!(names[2], "b/base_model.model.model.layers.0.mlp.down_proj.bottleneck_B");
}

#[test]
fn a_deleted_adapter_leaves_nothing_behind() {
    let mut model = two();
    model.activate(&["a", "b"]).unwrap();
    model.delete_adapter("b").unwrap();
    assert_eq!(active(&model), ["a"]);
    let alone = logits(&model);
    model.activate(&["a"]).unwrap();
    assert_eq!(bits(&logits(&model)), bits(&alone));
    model.delete_adapter("a").unwrap();
    assert_eq!(bits(&logits(&model)), bits(&logits(&tiny())));
    assert!(model.adapters().is_empty() && active(&model).is_empty());
    let error = model.delete_adapter("a").unwrap_err();
    assert_eq!(error.to_string(), "no adapter named `a`; the model has none");
    model.add_adapter("a", Scale::on(named(&["lm_head"]))).unwrap();
}

#[test]
fn deleting_while_switched_off_stays_switched_off() {
    let mut model = two();
    model.activate(&["a", "b"]).unwrap();
    model.disable().unwrap();
    model.delete_adapter("a").unwrap();
    assert_eq!(bits(&logits(&model)), bits(&logits(&tiny())));
    model.enable().unwrap();
    assert_eq!(active(&model), ["b"]);
}

#[test]
fn names_are_checked() {
    let mut model = two();
    let config = || Bottleneck::on(named(&["lm_head"]));
    assert!(matches!(model.add_adapter("a", config()), Err(Error::DuplicateAdapter(name)) if name == "a"));
    for name in ["", "a.b", "a/b", "a\\b", ".", ".."] {
        assert!(matches!(model.add_adapter(name, config()), Err(Error::AdapterName(_))), "{name}");
    }
    let error = model.activate(&["a", "nope"]).unwrap_err();
    assert_eq!(error.to_string(), "no adapter named `nope`; the model has a, b");
    assert_eq!(active(&model), ["b"], "a failed switch switches nothing");
    assert!(matches!(model.adapter("nope"), Err(Error::UnknownAdapter { .. })));
    assert!(model.save_adapter("nope", "unused").unwrap_err().to_string().contains("`nope`"));
}

/// PEFT loses tensors when a name is also part of a key.
#[test]
fn names_that_occur_in_keys_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["default", "0", "model", "layers", "up_proj", "bottleneck_A"];
    let mut model = tiny();
    for (i, name) in names.iter().enumerate() {
        model.add_adapter(name, Bottleneck::on(named(&["up_proj"]))).unwrap();
        stir(&model, i as u64);
    }
    model.save(folder.path()).unwrap();
    for name in names {
        let at = if name == "default" { folder.path().to_owned() } else { folder.path().join(name) };
        let mut fresh = tiny();
        fresh.load_adapter("x", at, &registry()).unwrap();
        let (found, expected) = (saved(&fresh, "x"), saved(&model, name));
        assert_eq!(found.len(), 4);
        for (key, tensor) in expected {
            assert_eq!(bits(&found[&key]), bits(&tensor), "{name}: {key}");
        }
    }
}

#[test]
fn modes_follow_how_an_adapter_came() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = with_bottleneck(named(&["up_proj"]));
    let ids = TinySpec::default().ids().unwrap();
    let tracked = |model: &PeftModel<TinyModel>| model.base().forward(&ids).unwrap().track_op();
    assert!(tracked(&model), "a fresh adapter is there to be trained");
    model.save_adapter("default", folder.path()).unwrap();
    model.load_adapter("again", folder.path(), &registry()).unwrap();
    assert!(!tracked(&model), "a loaded one is there to be used");
    model.train().unwrap();
    assert!(tracked(&model));
    model.eval().unwrap();
    assert!(!tracked(&model));
}

#[test]
fn merged_adapters_stay_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = two();
    model.save_adapter("a", folder.path()).unwrap();
    let separate = logits(&model);
    model.merge().unwrap();
    let merged = logits(&model);
    let refused = |outcome: Result<(), Error>, what: &str| {
        let error = outcome.unwrap_err();
        assert!(
            matches!(error.to_string().as_str(), text if text.contains("adapters are merged; unmerge first")),
            "{error}"
        );
        assert!(error.to_string().contains(what), "{error}");
    };
    refused(model.merge(), "cannot merge again");
    refused(model.safe_merge(), "cannot merge again");
    refused(model.activate(&["a"]), "cannot change the active adapters");
    refused(model.disable(), "cannot disable adapters");
    refused(model.enable(), "adapters");
    refused(model.delete_adapter("b"), "cannot delete an adapter");
    refused(model.add_adapter("c", Bottleneck::on(named(&["lm_head"]))).map(drop), "cannot add an adapter");
    refused(model.load_adapter("c", folder.path(), &registry()).map(drop), "cannot add an adapter");
    assert_eq!(bits(&logits(&model)), bits(&merged));
    model.unmerge().unwrap();
    assert_eq!(bits(&logits(&model)), bits(&separate));
    model.activate(&["a"]).unwrap();
}

#[test]
fn a_failed_addition_leaves_no_trace() {
    let mut model = two();
    let before = logits(&model);
    assert!(model.add_adapter("c", Bottleneck::on(named(&["nothing"]))).is_err());
    let lacking = Stubborn { mergeable: 0, lacking: 1, targets: named(&["up_proj"]) };
    let error = model.add_adapter("c", lacking).unwrap_err();
    assert_eq!(error.to_string(), "STUBBORN built 1 layers for 2 sites");
    let everything = Stubborn { mergeable: 0, lacking: 0, targets: crate::support::pattern(".*") };
    let error = model.add_adapter("c", everything).unwrap_err();
    assert!(error.to_string().contains("the normalisation layer at `model.layers.0.input_layernorm`"), "{error}");
    assert_eq!(model.adapters().len(), 2);
    assert_eq!(active(&model), ["b"]);
    assert_eq!(bits(&logits(&model)), bits(&before));
    let config = Bottleneck::on(named(&["up_proj"]));
    model.add_adapter("c", config).unwrap();
}

#[test]
fn initial_values_follow_from_the_seed() {
    let drawn = |seed| {
        let mut model = on(&TinySpec::default()).with_init_seed(seed);
        model.add_adapter("default", Bottleneck::on(named(&["up_proj"]))).unwrap();
        bits(&saved(&model, "default")["base_model.model.model.layers.0.mlp.up_proj.bottleneck_A"])
    };
    assert_eq!(drawn(4), drawn(4));
    assert_ne!(drawn(4), drawn(5));
}

#[test]
fn saved_configs_mention_the_base() {
    let mut model = tiny().with_base_name("org/base");
    let adapter = model.add_adapter("default", Bottleneck::on(named(&["up_proj"]))).unwrap();
    assert_eq!(adapter.config.meta.base_model_name_or_path.as_deref(), Some("org/base"));
}
