//! Compact checkpoints of every method that has them.

use crate::starting::{DOWN, Net, base, derived, lora_xs, pissa, tinylora, train, watched};
use candle_core::{DType, Device, Tensor};
use candle_peft::core::checkpoint::{
    COMPACT_FILE, CONFIG_FILE, DetachedAdapter, Layout, SafetensorsFile, WEIGHTS_FILE,
};
use candle_peft::core::{FactorCache, TensorSource};
use candle_peft::lora::LoraConfig;
use candle_peft::{Error, ModuleNames, PeftModel, TargetSpec, registry};
use peft_testkit::assert::{assert_close, assert_same};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let file = SafetensorsFile::open(path).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.load(&name, &Device::Cpu).unwrap().unwrap())).collect()
}

fn write(path: &Path, tensors: BTreeMap<String, Tensor>) {
    candle_core::safetensors::save(&tensors.into_iter().collect::<HashMap<_, _>>(), path).unwrap();
}

/// A folder with a trained TinyLoRA, compact.
fn compact() -> (TempDir, PeftModel<Net>) {
    let folder = tempfile::tempdir().unwrap();
    let mut model = base(DType::F32);
    train(&mut model, tinylora());
    model.save_adapter_as("default", folder.path(), Layout::Compact).unwrap();
    (folder, model)
}

fn refusal(folder: &TempDir, model: &mut PeftModel<Net>) -> String {
    let before = model.base().logits();
    let error = model.load_adapter("default", folder.path(), &registry().unwrap()).unwrap_err().to_string();
    assert_same("a refused checkpoint leaves the model alone", &model.base().logits(), &before);
    assert!(model.adapters().is_empty());
    error
}

#[test]
fn what_is_read_back_is_the_same_to_the_last_bit() {
    for (what, config) in derived() {
        let (full, small) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut model = base(DType::F32);
        train(&mut model, config);
        model.save_adapter("default", full.path()).unwrap();
        model.save_adapter_as("default", small.path(), Layout::Compact).unwrap();
        let (kept, all) = (tensors(&small.path().join(COMPACT_FILE)), tensors(&full.path().join(WEIGHTS_FILE)));
        let derived = |name: &str| ["_A", "_B", "_P", ".base_layer.weight"].iter().any(|end| name.ends_with(end));
        assert!(kept.keys().all(|name| !derived(name)), "{what}: {kept:?}");
        assert!(all.keys().any(|name| derived(name)), "{what}");

        let mut again = base(DType::F32);
        again.load_adapter("default", small.path(), &registry().unwrap()).unwrap();
        assert_same(what, &again.base().logits(), &model.base().logits());
        let differs =
            peft_testkit::assert::check_close(what, &model.base().logits(), &Net::new(DType::F32, DOWN).logits(), 1e-3);
        assert!(differs.is_err(), "{what}: the adapter does nothing");
        // And as PEFT lays it out it is the file that was never compact.
        let back = tempfile::tempdir().unwrap();
        again.save_adapter("default", back.path()).unwrap();
        for file in [WEIGHTS_FILE, CONFIG_FILE] {
            let read = |dir: &TempDir| fs::read(dir.path().join(file)).unwrap();
            assert!(read(&back) == read(&full), "{what}: {file} differs");
        }
    }
}

#[test]
fn thirteen_numbers_take_less_than_two_kilobytes() {
    let (folder, _) = compact();
    let size = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
    // Of 210 modules instead of 2, the hashes would take 416 bytes more.
    let total = size(COMPACT_FILE) + size(CONFIG_FILE) + 2 * 208;
    assert!(total < 2000, "{total}");
}

#[test]
fn another_base_is_refused_by_name_before_anything_is_decomposed() {
    let (folder, _) = compact();
    let seen = Arc::new(AtomicUsize::new(0));
    let log = seen.clone();
    let mut other = PeftModel::new(Net::new(DType::F32, 9)).with_decomposition_progress(move |_| {
        log.fetch_add(1, Ordering::Relaxed);
    });
    let error = refusal(&folder, &mut other);
    for part in ["`the/base`", "`down`", folder.path().to_str().unwrap()] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    assert!(!error.contains("`up`"), "{error}");
    assert_eq!(seen.load(Ordering::Relaxed), 0);
}

#[test]
fn one_changed_number_is_another_base() {
    let (folder, _) = compact();
    let mut changed = Net::new(DType::F32, DOWN);
    let mut set = |path: &str, host: &mut dyn candle_peft::core::Host| {
        if path == "up" {
            let weight = host.base().stored()?;
            let tiny = (Tensor::ones((1, 1), DType::F32, &Device::Cpu)?.pad_with_zeros(0, 100, 59)? * 1e-3)?;
            let tiny = tiny.pad_with_zeros(1, 0, 127)?;
            host.set_base(candle_peft::core::BaseWeight::dense((weight + tiny)?), None)?;
        }
        Ok(())
    };
    candle_peft::core::Adaptable::visit_mut(&mut changed, &mut candle_peft::core::WalkMut::new(&mut set)).unwrap();
    assert!(refusal(&folder, &mut PeftModel::new(changed)).contains("`up` is the first that differs"));
}

#[test]
fn the_dtype_that_the_base_is_loaded_in_plays_no_part() {
    for (made, loaded) in [(DType::BF16, DType::F32), (DType::F32, DType::BF16)] {
        for config in [tinylora(), lora_xs()] {
            let (full, small) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let mut model = base(made);
            train(&mut model, config);
            model.save_adapter("default", full.path()).unwrap();
            model.save_adapter_as("default", small.path(), Layout::Compact).unwrap();
            let read = |dir: &TempDir| {
                let mut model = base(loaded);
                model.load_adapter("default", dir.path(), &registry().unwrap()).unwrap();
                model
            };
            let (whole, again) = (read(&full), read(&small));
            assert_same("logits", &again.base().logits(), &whole.base().logits());
            // Either can be made compact again, with what it is rounded to.
            for model in [whole, again] {
                let third = tempfile::tempdir().unwrap();
                model.save_adapter_as("default", third.path(), Layout::Compact).unwrap();
                let text = |dir: &TempDir| fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap();
                assert_eq!(text(&third), text(&small));
                assert!(text(&third).contains(&format!("\"values\": \"{}\"", made.as_str())), "{}", text(&third));
            }
        }
    }
}

#[test]
fn a_base_that_was_rounded_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let precise = |dtype| {
        let mut net = Net::new(DType::F32, DOWN);
        let mut set = |_: &str, host: &mut dyn candle_peft::core::Host| {
            let weight = (host.base().stored()? * 1.001)?.to_dtype(dtype)?;
            let base = host.base().with_stored(weight);
            host.set_base(base, None)
        };
        candle_peft::core::Adaptable::visit_mut(&mut net, &mut candle_peft::core::WalkMut::new(&mut set)).unwrap();
        PeftModel::new(net)
    };
    let mut model = precise(DType::F32);
    train(&mut model, tinylora());
    model.save_adapter_as("default", folder.path(), Layout::Compact).unwrap();
    precise(DType::F32).load_adapter("x", folder.path(), &registry().unwrap()).unwrap();
    assert!(precise(DType::BF16).load_adapter("x", folder.path(), &registry().unwrap()).is_err());
}

#[test]
fn the_files_of_the_other_layout_go() {
    let (folder, model) = compact();
    let own = |file: &str| BTreeSet::from([CONFIG_FILE.to_owned(), file.to_owned()]);
    assert_eq!(names(folder.path()), own(COMPACT_FILE));
    model.save_adapter("default", folder.path()).unwrap();
    assert_eq!(names(folder.path()), own(WEIGHTS_FILE));
    model.save_adapter_as("default", folder.path(), Layout::Compact).unwrap();
    assert_eq!(names(folder.path()), own(COMPACT_FILE));
    // PEFT reads a pickle where there is no safetensors file.
    fs::write(folder.path().join("adapter_model.bin"), "").unwrap();
    let error = model.save_adapter_as("default", folder.path(), Layout::Compact).unwrap_err().to_string();
    assert!(error.contains("adapter_model.bin"), "{error}");
}

#[test]
fn an_adapter_that_is_trained_as_a_whole_has_no_compact_checkpoint() {
    for config in [pissa(), LoraConfig::with_rank(8, TargetSpec::new(ModuleNames::all_linear())).into()] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = base(DType::F32);
        model.add_adapter("default", config).unwrap();
        let dir = folder.path().join("new");
        let error = model.save_adapter_as("default", &dir, Layout::Compact).unwrap_err();
        assert!(matches!(error, Error::NothingDerived { method: "LORA" }), "{error}");
        assert!(model.check_layout("default", Layout::Compact).is_err());
        model.check_layout("default", Layout::Peft).unwrap();
        assert!(!dir.exists());
    }
}

#[test]
fn factors_of_another_choice_of_signs_are_not_left_out() {
    let (full, small) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut model = base(DType::F32);
    train(&mut model, tinylora());
    model.save_adapter("default", full.path()).unwrap();
    let path = full.path().join(WEIGHTS_FILE);
    let mut all = tensors(&path);
    for name in ["tinylora_A", "tinylora_B"] {
        let factor = all.get_mut(&format!("base_model.model.down.{name}")).unwrap();
        *factor = factor.neg().unwrap();
    }
    write(&path, all);
    let mut again = base(DType::F32);
    again.load_adapter("default", full.path(), &registry().unwrap()).unwrap();
    let error = again.save_adapter_as("default", small.path(), Layout::Compact).unwrap_err();
    let says = error.to_string();
    assert!(matches!(error, Error::NotDerived { .. }) && says.contains("base_model.model.down.tinylora_"), "{says}");
    assert!(names(small.path()).is_empty());
}

#[test]
fn factors_of_another_machine_give_outputs_within_1e_5() {
    let (folder, model) = compact();
    // A complete decomposition in f64 shares no arithmetic with the iteration that loading runs.
    let mut elsewhere = base(DType::F32);
    elsewhere.load_adapter("default", folder.path(), &registry().unwrap()).unwrap();
    let full = tempfile::tempdir().unwrap();
    elsewhere.save_adapter("default", full.path()).unwrap();
    let path = full.path().join(WEIGHTS_FILE);
    let mut all = tensors(&path);
    let mut moved = 0.0f64;
    for (module, shape) in [("up", (160, 128)), ("down", (128, 160))] {
        let (a, b) = exact_factors(&model, module, shape);
        for (name, exact) in [("tinylora_A", a), ("tinylora_B", b)] {
            let own = all.get_mut(&format!("base_model.model.{module}.{name}")).unwrap();
            let difference = (&*own - &exact).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            moved = moved.max(difference.to_scalar::<f32>().unwrap().into());
            *own = exact;
        }
    }
    assert!(moved > 0.0 && moved < 1e-5, "{moved}");
    write(&path, all);
    let mut exact = base(DType::F32);
    exact.load_adapter("default", full.path(), &registry().unwrap()).unwrap();
    assert_close("logits", &exact.base().logits(), &model.base().logits(), 1e-5);
    // Such an adapter is this machine's, too.
    exact.save_adapter_as("default", folder.path(), Layout::Compact).unwrap();
}

/// TinyLoRA's factors of rank 2 from the eigenvectors of `W^T W`, by power iteration with deflation in f64.
fn exact_factors(model: &PeftModel<Net>, path: &str, (rows, cols): (usize, usize)) -> (Tensor, Tensor) {
    let mut weight = None;
    let mut look = |at: &str, host: &dyn candle_peft::core::Host| {
        if at == path {
            weight = Some(host.base().canonical()?.to_dtype(DType::F64)?.contiguous()?.to_vec2::<f64>()?);
        }
        Ok(())
    };
    candle_peft::core::Adaptable::visit(model.base(), &mut candle_peft::core::Walk::new(&mut look)).unwrap();
    let weight = weight.unwrap();
    let times =
        |v: &[f64]| -> Vec<f64> { weight.iter().map(|row| row.iter().zip(v).map(|(w, v)| w * v).sum()).collect() };
    let transposed =
        |u: &[f64]| -> Vec<f64> { (0..cols).map(|j| (0..rows).map(|i| weight[i][j] * u[i]).sum()).collect() };
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let (mut a, mut b, mut found) = (vec![], vec![vec![]; rows], Vec::<Vec<f64>>::new());
    for _ in 0..2 {
        let mut v: Vec<f64> = (0..cols).map(|j| 1.0 + (j as f64).sin()).collect();
        for _ in 0..20_000 {
            for other in &found {
                let along: f64 = v.iter().zip(other).map(|(x, y)| x * y).sum();
                v.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
            }
            v = transposed(&times(&v));
            let length = norm(&v);
            v.iter_mut().for_each(|x| *x /= length);
        }
        let u = times(&v);
        let s = norm(&u);
        let largest = u.iter().fold(0f64, |largest, x| if x.abs() > largest.abs() { *x } else { largest });
        let sign = largest.signum();
        a.extend(v.iter().map(|x| (sign * x * s.sqrt()) as f32));
        b.iter_mut().zip(&u).for_each(|(row, u)| row.push((sign * u / s * s.sqrt()) as f32));
        found.push(v);
    }
    let a = Tensor::from_vec(a, (2, cols), &Device::Cpu).unwrap();
    (a, Tensor::from_vec(b.concat(), (rows, 2), &Device::Cpu).unwrap())
}

#[test]
fn damaged_files_are_refused_and_say_what_is_wrong() {
    let (folder, _) = compact();
    let (weights, config) = (folder.path().join(COMPACT_FILE), folder.path().join(CONFIG_FILE));
    let (whole, text) = (tensors(&weights), fs::read_to_string(&config).unwrap());
    let without = |name: &str| {
        let mut some = whole.clone();
        some.remove(name).unwrap();
        write(&weights, some);
        refusal(&folder, &mut base(DType::F32))
    };
    for name in ["base_hash.all", "base_hash.modules", "base_model.tinylora_v.0"] {
        assert!(without(name).contains(name));
    }
    let mut more = whole.clone();
    more.insert("base_model.model.up.other".into(), whole["base_hash.all"].clone());
    write(&weights, more);
    assert!(refusal(&folder, &mut base(DType::F32)).contains("base_model.model.up.other"));
    let mut short = whole.clone();
    short.insert("base_hash.all".into(), Tensor::zeros(31, DType::U8, &Device::Cpu).unwrap());
    write(&weights, short);
    assert!(refusal(&folder, &mut base(DType::F32)).contains("base_hash.all"));
    write(&weights, whole);
    for (from, to, says) in [
        ("\"version\": 1", "\"version\": 2", "version 2"),
        ("\"version\": 1", "\"other\": 1", "no version"),
        ("\"values\": \"f32\"", "\"values\": \"f31\"", "f32, bf16, f16, f64"),
    ] {
        assert!(text.contains(from));
        fs::write(&config, text.replace(from, to)).unwrap();
        assert!(refusal(&folder, &mut base(DType::F32)).contains(says), "{says}");
    }
    fs::write(&config, &text).unwrap();
    fs::remove_file(&weights).unwrap();
    assert!(refusal(&folder, &mut base(DType::F32)).contains(COMPACT_FILE));
}

#[test]
fn it_cannot_be_opened_alone_and_names_its_base() {
    let (folder, _) = compact();
    let error = DetachedAdapter::open(folder.path(), &registry().unwrap()).unwrap_err().to_string();
    assert!(error.contains("`the/base`") && error.contains("compact"), "{error}");
}

#[test]
fn it_takes_an_attached_adapters_place_and_merged_ones_are_not_saved() {
    let (folder, model) = compact();
    let mut other = base(DType::F32);
    other.add_adapter("default", tinylora()).unwrap();
    other.hotswap_adapter("default", folder.path(), &registry().unwrap()).unwrap();
    other.eval().unwrap();
    assert_same("logits", &other.base().logits(), &model.base().logits());
    other.merge().unwrap();
    let error = other.save_adapter_as("default", folder.path(), Layout::Compact).unwrap_err();
    assert!(matches!(error, Error::Merged { .. }), "{error}");
}

#[test]
fn it_is_read_through_the_cache() {
    let (folder, model) = compact();
    let cache = tempfile::tempdir().unwrap();
    for cached in [false, true] {
        let (again, seen) = watched();
        let mut again = again.with_factor_cache(FactorCache::new(cache.path()));
        again.load_adapter("default", folder.path(), &registry().unwrap()).unwrap();
        assert_same("logits", &again.base().logits(), &model.base().logits());
        let seen: BTreeSet<_> = seen.lock().unwrap().iter().cloned().collect();
        assert_eq!(seen, BTreeSet::from([("down".to_owned(), cached), ("up".to_owned(), cached)]));
    }
}
