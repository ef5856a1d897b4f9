//! LoRA-XS's own file layout.

use crate::support::{model, output, registry, trained};
use peft_core::HostKind;
use peft_core::checkpoint::{DetachedAdapter, WEIGHTS_FILE};
use peft_testkit::assert::{assert_relatively_close, assert_same};
use peft_testkit::fixture::tensors;

#[test]
fn every_module_has_three_tensors_under_its_own_name() {
    let folder = tempfile::tempdir().unwrap();
    trained().save_adapter("default", folder.path()).unwrap();
    let found = tensors(folder.path().join(WEIGHTS_FILE)).unwrap();
    let shapes: Vec<_> = found.iter().map(|(name, tensor)| (name.as_str(), tensor.dims().to_vec())).collect();
    let name = |path: &str, tensor: &str| format!("base_model.model.{path}.lora_xs_{tensor}");
    let expected = [("down", 4, 9), ("embedding", 11, 6), ("up", 9, 6)].map(|(path, rows, cols)| {
        [(name(path, "A"), vec![3, cols]), (name(path, "B"), vec![rows, 3]), (name(path, "R"), vec![3, 3])]
    });
    let expected = expected.as_flattened();
    assert_eq!(shapes, expected.iter().map(|(name, shape)| (name.as_str(), shape.clone())).collect::<Vec<_>>());
    let mut again = model();
    again.load_adapter("default", folder.path(), &registry()).unwrap();
    assert_same("the output", &output(&again), &output(&trained()));
}

#[test]
fn an_adapter_opens_without_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained();
    model.save_adapter("default", folder.path()).unwrap();
    let detached = DetachedAdapter::open(folder.path(), &registry()).unwrap();
    assert_eq!(detached.sites.len(), 3);
    for site in &detached.sites {
        let base = crate::support::weight(&site.path);
        assert_eq!((site.spec.rows, site.spec.cols), base.dims2().unwrap(), "{}", site.path);
        let kind = if site.path == "embedding" { HostKind::Embedding } else { HostKind::Linear };
        assert_eq!(site.spec.kind, kind, "{}", site.path);
        let (factors, delta) = (site.layer.lora_factors().unwrap().unwrap(), site.layer.delta_weight(&base).unwrap());
        let product = (factors.b.matmul(&factors.a).unwrap() * factors.scale).unwrap();
        // Without the base the tensors are read in f32.
        assert_relatively_close(&site.path, &product, &delta, 1e-6);
        let attached = model.detached("default").unwrap().sites.into_iter().find(|s| s.path == site.path).unwrap();
        assert_relatively_close(&site.path, &delta, &attached.layer.delta_weight(&base).unwrap(), 1e-6);
    }
}
