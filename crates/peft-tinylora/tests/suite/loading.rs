//! What a checkpoint must hold, and what is said when it does not.

use crate::support::{
    GOLDEN, Golden, Tensors, assert_close, assert_same, build, fill, linear_site, own, plain, random, registry, saved,
    shared, tensors,
};
use candle_core::{DType, Tensor};
use peft_core::checkpoint::DetachedAdapter;
use peft_core::{AdapterMethod, HostKind, ParamStore, Site};
use peft_tinylora::TinyLoraConfig;

fn sites(n: usize) -> Vec<Site> {
    (0..n).map(|i| linear_site(&format!("layers.{i}.q_proj"), random((6, 5), i as u64))).collect()
}

/// A config with the checkpoint of a trained adapter on four modules.
fn checkpoint(tying: f64) -> (TinyLoraConfig, Tensors) {
    let config = plain().with_u(3).with_weight_tying(tying);
    let (_, params) = build(&config, &sites(4), None).unwrap();
    fill(&params);
    (config, saved(&params))
}

fn refusal(config: &TinyLoraConfig, sites: &[Site], tensors: &Tensors) -> String {
    build(config, sites, Some(tensors)).map(drop).unwrap_err().to_string()
}

fn without(tensors: &Tensors, name: &str) -> Tensors {
    let mut rest = tensors.clone();
    rest.remove(name).unwrap();
    rest
}

#[test]
fn every_checkpoint_of_peft_is_read_and_written_again() {
    for name in GOLDEN {
        let golden = Golden::open(name);
        let own = golden.own();
        let (layers, params) = build(&golden.config, &golden.sites, Some(&own)).unwrap();
        let written = saved(&params);
        assert_eq!(written.keys().collect::<Vec<_>>(), own.keys().collect::<Vec<_>>(), "{name}");
        for (key, tensor) in &own {
            assert_same(key, &written[key], tensor);
        }
        for (layer, site) in layers.iter().zip(&golden.sites) {
            let delta = layer.delta_weight(&site.base.canonical().unwrap()).unwrap();
            let stored = site.spec.layout.out_in(&golden.expected[&format!("delta.{}", site.path)]).unwrap();
            assert_close(&format!("{name}: delta of {}", site.path), &delta, &stored, 1e-6);
        }
    }
}

/// PEFT seeds a second adapter by the positions of the first, so what it saved differs from what its config says.
#[test]
fn projections_in_a_file_win_over_the_seed() {
    let dir = shared("tinylora_two_adapters/other");
    let golden = Golden::open("tinylora_two_adapters");
    let config = crate::support::config(&dir);
    let weights = tensors(shared("base_llama").join("model.safetensors"));
    let paths = ["0.self_attn.q_proj", "0.self_attn.v_proj", "1.self_attn.q_proj", "1.self_attn.v_proj"];
    let paths = paths.map(|p| format!("model.layers.{p}"));
    let sites = paths.map(|p| linear_site(&p, weights[&format!("{p}.weight")].clone()));
    assert_eq!(golden.sites.len(), 2);
    let (stored, expected) =
        (tensors(dir.join("adapter_model.safetensors")), tensors(dir.join("expected.safetensors")));
    let (layers, _) = build(&config, &sites, Some(&stored)).unwrap();
    for (layer, site) in layers.iter().zip(&sites) {
        let delta = layer.delta_weight(&site.base.canonical().unwrap()).unwrap();
        assert_close(&site.path, &delta, &expected[&format!("delta.{}", site.path)], 1e-6);
    }
    let mut config = config;
    config.save_projection = false;
    let error = refusal(&config, &sites, &stored);
    assert!(error.contains("layers.1.self_attn.q_proj.tinylora_P") && error.contains("save_projection"), "{error}");
}

#[test]
fn missing_vectors_are_explained_by_groups() {
    let (config, tensors) = checkpoint(0.0);
    let error = refusal(&config, &sites(4), &without(&tensors, "base_model.tinylora_v.3"));
    assert!(
        error.contains("base_model.tinylora_v.3") && error.contains("makes 4 groups") && error.contains("has 3"),
        "{error}"
    );
    let error = refusal(&config, &sites(4), &without(&tensors, "base_model.tinylora_v.1"));
    assert!(error.contains("base_model.tinylora_v.1"), "{error}");
}

#[test]
fn a_changed_tying_is_explained_by_groups() {
    let (config, tensors) = checkpoint(0.5);
    for (tying, groups) in [(0.0, 4), (1.0, 1)] {
        let error = refusal(&config.clone().with_weight_tying(tying), &sites(4), &tensors);
        assert!(
            error.contains("weight_tying")
                && error.contains(&format!("makes {groups} groups"))
                && error.contains("has 2"),
            "{error}"
        );
    }
}

#[test]
fn extra_groups_and_tensors_are_refused() {
    let (config, mut tensors) = checkpoint(1.0);
    let v = tensors["base_model.tinylora_v.0"].clone();
    tensors.insert("base_model.tinylora_v.7".into(), v.clone());
    let error = refusal(&config, &sites(4), &tensors);
    assert!(error.contains("base_model.tinylora_v.7"), "{error}");
    tensors.insert("base_model.tinylora_v.1".into(), v);
    let error = refusal(&config, &sites(4), &tensors);
    assert!(error.contains("makes 1 groups") && error.contains("base_model.tinylora_v.1"), "{error}");
}

#[test]
fn a_base_with_more_or_fewer_layers_is_refused() {
    let (config, tensors) = checkpoint(1.0);
    let error = refusal(&config, &sites(5), &tensors);
    assert!(error.contains("layers.4.q_proj.tinylora_A"), "{error}");
    let error = refusal(&config, &sites(3), &tensors);
    assert!(error.contains("layers.3.q_proj.tinylora_A"), "{error}");
    let (config, tensors) = checkpoint(0.0);
    for n in [3, 5] {
        let error = refusal(&config, &sites(n), &tensors);
        assert!(error.contains(&format!("over {n} adapted modules")), "{error}");
    }
}

#[test]
fn every_tensor_is_needed() {
    for tying in [0.0, 1.0] {
        let (config, tensors) = checkpoint(tying);
        for name in tensors.keys() {
            let error = refusal(&config, &sites(4), &without(&tensors, name));
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}

#[test]
fn a_missing_projection_says_how_to_go_on() {
    let (mut config, tensors) = checkpoint(0.0);
    let name = "base_model.model.layers.2.q_proj.tinylora_P";
    let rest = without(&tensors, name);
    let error = refusal(&config, &sites(4), &rest);
    assert!(error.contains(name) && error.contains("save_projection"), "{error}");
    config.save_projection = false;
    let (_, params) = build(&config, &sites(4), Some(&rest)).unwrap();
    let key = peft_core::ParamKey::site("layers.2.q_proj", "tinylora_P");
    assert_same(name, params.tensor(&key).unwrap(), &tensors[name]);
    assert!(saved(&params).keys().all(|k| !k.contains("tinylora_P")));
}

#[test]
fn projections_that_contradict_the_seed_are_refused() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let sites: Vec<Site> =
            (0..2).map(|i| linear_site(&format!("l{i}"), random((6, 5), i).to_dtype(dtype).unwrap())).collect();
        let mut config = plain();
        let (_, params) = build(&config, &sites, None).unwrap();
        let tensors = saved(&params);
        config.save_projection = false;
        build(&config, &sites, Some(&tensors)).unwrap();
        config.projection_seed = 43;
        let error = refusal(&config, &sites, &tensors);
        assert!(error.contains("base_model.model.l0.tinylora_P") && error.contains("43"), "{error}");
    }
}

#[test]
fn wrong_r_and_u_name_the_tensor_and_the_shapes() {
    let (config, tensors) = checkpoint(1.0);
    let error = refusal(&config.clone().with_u(4), &sites(4), &tensors);
    assert!(error.contains("tinylora_v.0") && error.contains("[3]") && error.contains("[4]"), "{error}");
    let error = refusal(&config.clone().with_r(3), &sites(4), &tensors);
    assert!(error.contains("tinylora_A") && error.contains("[2, 5]") && error.contains("[3, 5]"), "{error}");
    let other = [linear_site("layers.0.q_proj", random((7, 5), 1))];
    let only: Tensors = tensors.into_iter().filter(|(k, _)| k.contains("layers.0.") || k.contains("_v.")).collect();
    let error = refusal(&config, &other, &only);
    assert!(error.contains("layers.0.q_proj.tinylora_B") && error.contains("[7, 2]"), "{error}");
}

#[test]
fn absurd_sizes_are_refused_before_they_are_allocated() {
    for (r, u) in [(2, usize::MAX), (2, 1 << 40), (5, (1 << 28) / 25 + 1)] {
        let error = build(&plain().with_r(r).with_u(u), &sites(1), None).map(drop).unwrap_err().to_string();
        assert!(error.contains("layers.0.q_proj") && error.contains("`u`"), "{error}");
    }
}

/// A 16-bit base rounds the projections drawn for it; the file does not say what the base was, but its factors were rounded too.
#[test]
fn without_the_base_the_factors_tell_its_precision() {
    let adapter = DetachedAdapter::open(own("bf16_no_projection"), &registry()).unwrap();
    let expected = tensors(own("bf16_no_projection").join("expected.safetensors"));
    assert_eq!(adapter.sites.len(), 1);
    let delta = adapter.sites[0].layer.delta_weight(&random((10, 6), 1)).unwrap();
    assert_close("delta", &delta, &expected["delta.lin"], 1e-6);

    let golden = Golden::open("tinylora_no_projection");
    let adapter = DetachedAdapter::open(shared("tinylora_no_projection"), &registry()).unwrap();
    assert_eq!(adapter.sites.len(), 4);
    for site in &adapter.sites {
        let drawn = projection(&adapter.params, &site.path);
        assert_same(&site.path, drawn, &golden.expected[&format!("P.{}", site.path)]);
    }
}

#[test]
fn without_the_base_an_unknown_order_is_refused_where_it_matters() {
    let error = DetachedAdapter::open(own("f64"), &registry()).map(drop).unwrap_err().to_string();
    assert!(error.contains("order"), "{error}");
}

fn projection<'a>(params: &'a ParamStore, path: &str) -> &'a Tensor {
    params.tensor(&peft_core::ParamKey::site(path, "tinylora_P")).unwrap()
}

#[test]
fn order_matters_unless_one_vector_and_stored_projections_serve_all() {
    assert!(!plain().with_weight_tying(1.0).order_matters());
    assert!(plain().with_weight_tying(0.9).order_matters());
    let mut config = plain().with_weight_tying(1.0);
    config.save_projection = false;
    assert!(config.order_matters());
}

#[test]
fn host_shapes_follow_from_the_factors() {
    let shape = |dims: &[usize]| candle_core::Shape::from(dims);
    let tensors = [("tinylora_A".to_owned(), shape(&[2, 5])), ("tinylora_B".to_owned(), shape(&[7, 2]))];
    assert_eq!(plain().host_shape(&tensors.clone().into()), Some((7, 5)));
    assert_eq!(plain().host_shape(&[tensors[0].clone()].into()), None);
    assert_eq!(plain().host_shape(&[("weight".to_owned(), shape(&[3, 3]))].into()), None);
}

#[test]
fn normalisation_layers_are_not_supported() {
    let spec = |kind| peft_core::HostSpec::new(kind, 4, 4);
    assert!(plain().supports(&spec(HostKind::Linear)) && plain().supports(&spec(HostKind::Embedding)));
    assert!(!plain().supports(&spec(HostKind::Norm)));
}
