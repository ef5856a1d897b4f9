//! Adapters opened without their base model.

use crate::methods::{Bottleneck, Scale, Stubborn, registry};
use crate::support::{Tensors, at, bits, named, pattern, saved, tiny, weight, with_adapter, with_bottleneck};
use candle_core::{DType, Device, Tensor};
use peft_core::checkpoint::DetachedAdapter;
use peft_core::{AdapterConfig, HostKind, HostRole, PeftModel, TargetSpec, WeightLayout};
use peft_testkit::skeleton::Skeleton;
use peft_testkit::tiny::TinyModel;

fn open(model: &PeftModel<TinyModel>) -> DetachedAdapter {
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter("default", folder.path()).unwrap();
    DetachedAdapter::open(folder.path(), &registry()).unwrap()
}

#[test]
fn layers_compute_what_they_compute_in_the_model() {
    let model = with_bottleneck(named(&["embed_tokens", "up_proj"]));
    let detached = open(&model);
    assert_eq!(detached.config.method.peft_type(), "BOTTLENECK");
    for site in &detached.sites {
        let base = Tensor::zeros((site.spec.rows, site.spec.cols), DType::F32, &Device::Cpu).unwrap();
        let delta = site.layer.delta_weight(&base).unwrap();
        assert_eq!(bits(&delta), bits(&model.delta_weight("default", &site.path).unwrap()), "{}", site.path);
    }
    assert_eq!(detached.params.trainable_count(), model.adapter("default").unwrap().params.trainable_count());
}

#[test]
fn kinds_shapes_and_roles_are_told_from_names_and_tensors() {
    let detached = open(&with_bottleneck(named(&["embed_tokens", "up_proj", "lm_head"])));
    let told: Vec<_> =
        detached.sites.iter().map(|s| (s.path.as_str(), s.spec.kind, s.spec.rows, s.spec.cols)).collect();
    let expected = [
        ("model.embed_tokens", HostKind::Embedding, 11, 6),
        ("model.layers.0.mlp.up_proj", HostKind::Linear, 8, 6),
        ("model.layers.1.mlp.up_proj", HostKind::Linear, 8, 6),
        ("lm_head", HostKind::Linear, 11, 6),
    ];
    assert_eq!(told, expected);
    assert_eq!(detached.sites[0].spec.role, HostRole::InputEmbedding);
    assert_eq!(detached.sites[3].spec.role, HostRole::OutputHead);
    assert_eq!(detached.sites[1].spec.layout, WeightLayout::OutIn);
}

#[test]
fn a_transposed_model_says_so_in_its_config() {
    let detached = open(&with_bottleneck(named(&["down_proj", "embed_tokens"])));
    let layouts: Vec<_> = detached.sites.iter().map(|s| s.spec.layout).collect();
    assert_eq!(layouts, [WeightLayout::OutIn, WeightLayout::InOut, WeightLayout::InOut]);
    // Shapes are those of outputs by inputs all the same.
    assert_eq!((detached.sites[1].spec.rows, detached.sites[1].spec.cols), (6, 8));
}

#[test]
fn sites_come_in_the_order_of_the_model() {
    let mut model = PeftModel::new(Skeleton::llama(12).unwrap());
    let adapter = model.add_adapter("default", Bottleneck::on(pattern("all-linear"))).unwrap();
    let tensors: Tensors = adapter.params.persisted().map(|(key, t)| (key.to_string(), t.clone())).collect();
    let detached = DetachedAdapter::from_source(adapter.config.clone(), &tensors).unwrap();
    let paths = |sites: &mut dyn Iterator<Item = String>| sites.collect::<Vec<_>>();
    assert_eq!(
        paths(&mut detached.sites.iter().map(|s| s.path.clone())),
        paths(&mut adapter.sites.iter().map(|(path, _)| path.clone()))
    );
}

#[test]
fn whole_modules_are_carried() {
    let targets = TargetSpec { modules_to_save: Some(vec!["norm".into()]), ..named(&["embed_tokens", "up_proj"]) };
    let model = with_adapter(Bottleneck { bias: "all".into(), ..Bottleneck::on(targets) });
    let detached = open(&model);
    let mut expected = saved(&model, "default");
    expected.retain(|key, _| !key.contains("bottleneck_"));
    assert_eq!(detached.carried.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (key, tensor) in &expected {
        assert_eq!(bits(&detached.carried[key]), bits(tensor), "{key}");
    }
    assert_eq!(detached.carried.len(), 1 + 2 + 2 + 4);
    assert_eq!(detached.sites.len(), 3);
}

#[test]
fn the_weight_is_known_where_there_is_a_model() {
    let mut model = with_bottleneck(named(&["embed_tokens", "up_proj"]));
    assert!(open(&model).sites.iter().all(|site| site.base.stored().is_err() && site.bias.is_none()));
    let expect = |model: &PeftModel<TinyModel>| {
        for site in model.detached("default").unwrap().sites {
            assert_eq!(bits(site.base.stored().unwrap()), bits(&weight(&tiny(), &site.path)), "{}", site.path);
            let bias = at(tiny().base(), &site.path, |host| host.bias().map(bits));
            assert_eq!(site.bias.as_ref().map(bits), bias, "{}", site.path);
        }
    };
    expect(&model);
    // It is the one from before the merge that a delta belongs to.
    model.merge().unwrap();
    expect(&model);
}

#[test]
fn the_weight_and_the_bias_are_those_that_the_adapter_brought() {
    let trained =
        with_adapter(Bottleneck { bias: "targets".into(), ..Bottleneck::on(named(&["embed_tokens", "up_proj"])) });
    let mut tensors = saved(&trained, "default");
    let key = "base_model.model.model.embed_tokens.base_layer.weight";
    let brought = (&tensors[key] + 0.25).unwrap();
    tensors.insert(key.into(), brought.clone());
    let mut model = tiny();
    model.add_from_source("x", trained.adapter("default").unwrap().config.clone(), &tensors).unwrap();
    // Whether it is active or not.
    model.disable().unwrap();
    let sites = model.detached("x").unwrap().sites;
    assert_eq!(bits(sites[0].base.stored().unwrap()), bits(&brought));
    for site in &sites[1..] {
        let key = format!("base_model.model.{}.base_layer.bias", site.path);
        assert_eq!(bits(site.bias.as_ref().unwrap()), bits(&tensors[&key]));
        assert_eq!(bits(site.base.stored().unwrap()), bits(&weight(&tiny(), &site.path)));
    }
}

fn tensors(paths: &[&str]) -> Tensors {
    let mut all = Tensors::new();
    for path in paths {
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        all.insert(format!("base_model.model.{path}.bottleneck_A"), zeros((2, 3)));
        all.insert(format!("base_model.model.{path}.bottleneck_B"), zeros((4, 2)));
    }
    all
}

fn config(targets: TargetSpec) -> AdapterConfig {
    Bottleneck::on(targets).into()
}

#[test]
fn an_order_that_cannot_be_told_is_an_error() {
    let unknown = tensors(&["layers.0.mixer.alpha", "layers.0.mixer.beta"]);
    let error = DetachedAdapter::from_source(config(named(&["alpha", "beta"])), &unknown).unwrap_err().to_string();
    assert!(error.contains("the order of these modules cannot be told from their names"), "{error}");
    // With one of them there is nothing to order.
    DetachedAdapter::from_source(
        config(named(&["alpha"])),
        &tensors(&["layers.1.mixer.alpha", "layers.0.mixer.alpha"]),
    )
    .unwrap();
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut extra = tensors(&["a"]);
    extra.insert("base_model.model.a.stranger".into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    let error = DetachedAdapter::from_source(config(named(&["a"])), &extra).unwrap_err().to_string();
    assert!(error.contains("tensors that nothing reads: `base_model.model.a.stranger`"), "{error}");
    let mut wrong = tensors(&["a"]);
    wrong.insert("base_model.model.a.bottleneck_A".into(), Tensor::zeros((5, 3), DType::F32, &Device::Cpu).unwrap());
    let error = DetachedAdapter::from_source(config(named(&["a"])), &wrong).unwrap_err().to_string();
    assert!(error.contains("`base_model.model.a.bottleneck_A` has shape [5, 3]"), "{error}");
    let error = DetachedAdapter::from_source(config(named(&["a"])), &Tensors::new()).unwrap_err().to_string();
    assert!(error.contains("no tensors that a BOTTLENECK adapter adapts a module with"), "{error}");
}

#[test]
fn a_method_that_needs_its_base_cannot_be_opened_without() {
    let mut file = Tensors::new();
    file.insert("base_model.scale_factor".into(), Tensor::ones(1, DType::F32, &Device::Cpu).unwrap());
    let error = DetachedAdapter::from_source(Scale::on(named(&["a"])).into(), &file).unwrap_err().to_string();
    assert!(error.contains("SCALE"), "{error}");
    let stubborn = Stubborn { mergeable: 0, lacking: 0, targets: named(&["a"]) };
    assert!(DetachedAdapter::from_source(stubborn.into(), &tensors(&["a"])).is_err());
}
