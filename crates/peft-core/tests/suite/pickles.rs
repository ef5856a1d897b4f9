//! Files of `torch.save`, made by PyTorch (`tests/fixtures/pickles/make.py`).

use crate::methods::registry;
use crate::support::{bits, logits, named, tiny, with_bottleneck};
use candle_core::{DType, Device, Tensor};
use peft_core::TensorSource;
use peft_core::checkpoint::{AdapterFile, CONFIG_FILE, DetachedAdapter, PICKLE_FILE, PickleFile, WEIGHTS_FILE};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickles").join(name)
}

/// An adapter folder with this file of tensors for `up_proj`.
pub(crate) fn folder(pickle: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    with_bottleneck(named(&["up_proj"])).save_adapter("default", folder.path()).unwrap();
    fs::remove_file(folder.path().join(WEIGHTS_FILE)).unwrap();
    fs::write(folder.path().join(PICKLE_FILE), pickle).unwrap();
    folder
}

/// What `numbers` in the script makes.
fn numbers(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values = (0..count).map(|i| (i as f32 - (count / 2) as f32) / 4.0).collect::<Vec<_>>();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[track_caller]
fn assert_same(tensor: &Tensor, want: &Tensor) {
    assert_eq!(tensor.dims(), want.dims());
    assert_eq!(bits(tensor), bits(&want.contiguous().unwrap()));
}

#[test]
fn tensors_are_those_that_were_saved() {
    let file = PickleFile::open(fixture("kinds.bin")).unwrap();
    let load = |name: &str| file.load(name, &Device::Cpu).unwrap().unwrap();
    for (name, dtype) in [("f32", DType::F32), ("f64", DType::F64), ("f16", DType::F16), ("bf16", DType::BF16)] {
        assert_eq!(load(name).dtype(), dtype);
        assert_same(&load(name), &numbers(&[2, 3]));
    }
    assert_same(&load("parameter"), &numbers(&[2, 3]));
    assert_eq!(load("scalar").to_scalar::<f32>().unwrap(), 1.5);
    assert_eq!(load("empty").dims(), [0, 3]);
    let shared = numbers(&[4, 6]);
    assert_same(&load("slice"), &shared.narrow(0, 1, 2).unwrap());
    assert_same(&load("transposed"), &shared.t().unwrap());
    let index = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap();
    let strided = shared.index_select(&index(&[0, 2]), 0).unwrap().index_select(&index(&[1, 3, 5]), 1).unwrap();
    assert_same(&load("strided"), &strided);
    assert_same(&load("one_row"), &shared.narrow(0, 3, 1).unwrap());
    assert_same(&load("three"), &numbers(&[2, 3, 4]).permute((2, 0, 1)).unwrap());
    assert_eq!(file.shape("three").unwrap().dims(), [4, 2, 3]);
    assert_eq!(file.names().len(), 12);
    assert!(file.load("nothing", &Device::Cpu).unwrap().is_none() && file.shape("nothing").is_none());
}

#[test]
fn a_state_dict_is_read_without_what_hangs_on_it() {
    let file = PickleFile::open(fixture("ordered.bin")).unwrap();
    let names = ["0.bias", "0.weight", "1.bias", "1.weight", "2.weight"];
    assert_eq!(file.names().into_iter().collect::<Vec<_>>(), names);
    for name in ["0.weight", "1.weight", "2.weight"] {
        assert_same(&file.load(name, &Device::Cpu).unwrap().unwrap(), &numbers(&[2, 2]));
    }
}

#[test]
fn an_adapter_is_loaded_swapped_and_opened_from_a_pickle_and_saved_without_one() {
    let pickled = folder(&fs::read(fixture("plain.bin")).unwrap());
    let mut model = tiny();
    model.load_adapter("x", pickled.path(), &registry()).unwrap();
    let a = peft_core::ParamKey::site("model.layers.1.mlp.up_proj", "bottleneck_A");
    let want = (numbers(&[2, 6]) + 1.0).unwrap();
    assert_same(model.adapter("x").unwrap().params.tensor(&a).unwrap(), &want);
    let mut swapped = with_bottleneck(named(&["up_proj"]));
    swapped.eval().unwrap();
    swapped.hotswap_adapter("default", pickled.path(), &registry()).unwrap();
    assert_eq!(bits(&logits(&swapped)), bits(&logits(&model)));
    let detached = DetachedAdapter::open(pickled.path(), &registry()).unwrap();
    assert_same(detached.params.tensor(&a).unwrap(), &want);

    let again = tempfile::tempdir().unwrap();
    model.save_adapter("x", again.path()).unwrap();
    assert!(again.path().join(WEIGHTS_FILE).exists() && !again.path().join(PICKLE_FILE).exists());
    let mut loaded = tiny();
    loaded.load_adapter("x", again.path(), &registry()).unwrap();
    assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
}

#[test]
fn safetensors_count_where_there_are_both() {
    let both = folder(b"not looked at");
    let model = with_bottleneck(named(&["up_proj"]));
    model.save_adapter("default", both.path()).unwrap();
    let mut loaded = tiny();
    loaded.load_adapter("x", both.path(), &registry()).unwrap();
    assert_eq!(bits(&logits(&loaded)), bits(&logits(&model)));
    assert!(AdapterFile::open(both.path()).unwrap().path().ends_with(WEIGHTS_FILE));
    // A broken one does not make the other count.
    fs::write(both.path().join(WEIGHTS_FILE), "broken").unwrap();
    fs::copy(fixture("plain.bin"), both.path().join(PICKLE_FILE)).unwrap();
    let error = tiny().load_adapter("x", both.path(), &registry()).unwrap_err().to_string();
    assert!(error.contains("is not a valid safetensors file"), "{error}");
    assert!(both.path().join(CONFIG_FILE).exists());
}

#[test]
fn what_is_no_flat_dictionary_of_numbers_is_refused_with_a_way_out() {
    for (name, words) in [
        ("legacy.bin", "it is not a zip archive, as PyTorch writes them since 1.6"),
        ("zipped.bin", "is compressed, which PyTorch's are not"),
        ("integers.bin", "`a`: its numbers are in a `LongStorage`; supported: Float-"),
        ("repeated.bin", "`a`: it has the shape [1000], the strides [0] and the offset 0, but 1 numbers are stored"),
        ("nested.bin", "`a`: it is not a tensor"),
        ("object.bin", "`b`: it is a `torch.device`, not a tensor"),
        ("whole.bin", "it does not hold a dictionary of tensors"),
    ] {
        let folder = folder(&fs::read(fixture(name)).unwrap());
        let error = tiny().load_adapter("x", folder.path(), &registry()).unwrap_err().to_string();
        let path = folder.path().join(PICKLE_FILE);
        assert!(
            error.starts_with(&format!("cannot read {}: {words}", path.display())) || error.contains(words),
            "{error}"
        );
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("load the adapter with PEFT and save it again"), "{error}");
        assert!(error.contains("torch.load('adapter_model.bin', weights_only=True)"), "{error}");
    }
}
