//! Adapter folders on disk: what is written, and what a failure leaves.

use crate::methods::{Bottleneck, registry};
use crate::support::{bits, logits, named, saved, stir, tiny, with_bottleneck};
use peft_core::Error;
use peft_core::checkpoint::{CONFIG_FILE, WEIGHTS_FILE, write_folder};
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_has_the_layout_of_peft() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new/deeper");
    let model = with_bottleneck(named(&["up_proj"]));
    model.save_adapter("default", &dir).unwrap();
    assert_eq!(entries(&dir), [CONFIG_FILE, WEIGHTS_FILE]);
    assert_eq!(entries(dir.parent().unwrap()), ["deeper"], "nothing temporary stays");
    let bytes = fs::read(dir.join(WEIGHTS_FILE)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let config: serde_json::Value = serde_json::from_str(&fs::read_to_string(dir.join(CONFIG_FILE)).unwrap()).unwrap();
    assert_eq!(config["inference_mode"], true);
    assert_eq!(config["target_modules"], serde_json::json!(["up_proj"]));
}

#[test]
fn saving_over_an_older_adapter_replaces_it_and_keeps_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_bottleneck(named(&["up_proj"]));
    model.save_adapter("default", folder.path()).unwrap();
    fs::write(folder.path().join("README.md"), "mine").unwrap();
    stir(&model, 8);
    model.save_adapter("default", folder.path()).unwrap();
    assert_eq!(entries(folder.path()), ["README.md", CONFIG_FILE, WEIGHTS_FILE]);
    let mut loaded = tiny();
    loaded.load_adapter("x", folder.path(), &registry()).unwrap();
    assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
}

#[test]
fn adapters_are_saved_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = with_bottleneck(named(&["up_proj"]));
    model.add_adapter("other", Bottleneck::on(named(&["lm_head"]))).unwrap();
    model.save(folder.path()).unwrap();
    assert_eq!(entries(folder.path()), [CONFIG_FILE, WEIGHTS_FILE, "other"]);
    assert_eq!(entries(&folder.path().join("other")), [CONFIG_FILE, WEIGHTS_FILE]);
}

/// The list of targets in a file may name modules the model lacks: the tensors decide.
#[test]
fn a_name_that_matches_nothing_is_accepted_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_bottleneck(named(&["up_proj"]));
    model.save_adapter("default", folder.path()).unwrap();
    let path = folder.path().join(CONFIG_FILE);
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("\"up_proj\"", "\"up_proj\", \"v_proj\", \"model.layers.7.mlp.up_proj\"");
    fs::write(&path, text).unwrap();
    let mut loaded = tiny();
    loaded.load_adapter("x", folder.path(), &registry()).unwrap();
    assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
    let none =
        fs::read_to_string(&path).unwrap().replace("\"up_proj\",", "").replace("model.layers.7.mlp.up_proj", "k_proj");
    fs::write(&path, none).unwrap();
    let error = tiny().load_adapter("x", folder.path(), &registry()).unwrap_err().to_string();
    assert!(error.contains("no module matches [v_proj, k_proj]"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_made_is_not_half_made() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new");
    let error = write_folder(&dir, &[("good", b"1"), ("no/such/bad", b"2")]).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(error.to_string().contains("no/such/bad"), "{error}");
    assert!(entries(folder.path()).is_empty(), "{:?}", entries(folder.path()));
}

#[test]
fn old_files_stay_whole_when_one_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("first"), "old").unwrap();
    fs::write(folder.path().join("second"), "old").unwrap();
    assert!(write_folder(folder.path(), &[("first", b"new"), ("no/such/bad", b"new"), ("second", b"new")]).is_err());
    assert_eq!(fs::read_to_string(folder.path().join("first")).unwrap(), "old");
    assert_eq!(entries(folder.path()), ["first", "second"]);
}

#[test]
fn old_files_stay_whole_when_a_folder_is_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_bottleneck(named(&["up_proj"]));
    model.save_adapter("default", folder.path()).unwrap();
    let old = fs::read(folder.path().join(WEIGHTS_FILE)).unwrap();
    fs::remove_file(folder.path().join(CONFIG_FILE)).unwrap();
    fs::create_dir(folder.path().join(CONFIG_FILE)).unwrap();
    stir(&model, 5);
    let error = model.save_adapter("default", folder.path()).unwrap_err().to_string();
    assert!(error.starts_with("cannot write ") && error.contains(CONFIG_FILE), "{error}");
    assert_eq!(fs::read(folder.path().join(WEIGHTS_FILE)).unwrap(), old);
    assert_eq!(entries(folder.path()), [CONFIG_FILE, WEIGHTS_FILE]);
}

#[test]
fn a_file_where_the_folder_should_be_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter");
    fs::write(&path, "mine").unwrap();
    for dir in [path.clone(), path.join("below")] {
        let error = with_bottleneck(named(&["up_proj"])).save_adapter("default", &dir).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(error.to_string().contains("adapter"), "{error}");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    assert_eq!(entries(folder.path()), ["adapter"]);
}

#[cfg(unix)]
#[test]
fn a_new_folder_has_the_usual_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new");
    write_folder(&dir, &[("file", b"1")]).unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn saving_twice_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_bottleneck(named(&["embed_tokens", "up_proj"]));
    let save = |name: &str| {
        let dir = folder.path().join(name);
        model.save_adapter("default", &dir).unwrap();
        [CONFIG_FILE, WEIGHTS_FILE].map(|file| fs::read(dir.join(file)).unwrap())
    };
    assert_eq!(save("a"), save("b"));
    assert_eq!(saved(&model, "default").len(), 3 * 2 + 1);
}
