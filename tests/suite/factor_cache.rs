//! The cache of factors: what it saves, and that nothing that befalls it changes an adapter.

use crate::starting::{Net, base, lora_xs, pissa, tinylora, watched};
use candle_core::{DType, Tensor};
use candle_peft::PeftModel;
use candle_peft::core::{AdapterConfig, FactorCache};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

type Damage<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
type Bits = BTreeMap<String, Vec<u32>>;

/// Every tensor that a checkpoint would hold, and for each decomposed weight whether it came from the cache.
fn start(config: AdapterConfig, cache: Option<FactorCache>) -> (Bits, Vec<bool>) {
    let (model, seen) = watched();
    let mut model = cache.into_iter().fold(model, PeftModel::with_factor_cache);
    let adapter = model.add_adapter("default", config).unwrap();
    let bits = |tensor: &Tensor| -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let tensors = adapter.params.persisted().map(|(key, tensor)| (key.to_string(), bits(tensor))).collect();
    let seen = seen.lock().unwrap().iter().map(|(_, cached)| *cached).collect();
    (tensors, seen)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    entries.sort();
    entries
}

#[test]
fn a_second_start_decomposes_nothing_and_gives_the_same_bits() {
    for config in [tinylora(), lora_xs(), pissa()] {
        let folder = tempfile::tempdir().unwrap();
        let cache = || Some(FactorCache::new(folder.path().join("cache")));
        let (plain, seen) = start(config.clone(), None);
        assert_eq!((seen, folder.path().join("cache").exists()), (vec![false; 2], false));
        let (first, seen) = start(config.clone(), cache());
        assert_eq!(seen, [false, false]);
        let (second, seen) = start(config, cache());
        assert_eq!(seen, [true, true]);
        assert!(first == plain && second == plain);
    }
}

#[test]
fn another_rank_or_weight_is_another_entry() {
    let folder = tempfile::tempdir().unwrap();
    start(tinylora(), Some(FactorCache::new(folder.path())));
    assert_eq!(entries(folder.path()).len(), 2);
    assert_eq!(start(lora_xs(), Some(FactorCache::new(folder.path()))).1, [false, false]);
    assert_eq!(entries(folder.path()).len(), 4);
    let mut other = PeftModel::new(Net::new(DType::F32, 9)).with_factor_cache(FactorCache::new(folder.path()));
    other.add_adapter("default", tinylora()).unwrap();
    // Its `up` is the same.
    assert_eq!(entries(folder.path()).len(), 5);
    // A weight that is loaded in another dtype without being rounded is the same, too.
    let mut narrow = base(DType::BF16).with_factor_cache(FactorCache::new(folder.path()));
    narrow.add_adapter("default", tinylora()).unwrap();
    assert_eq!(entries(folder.path()).len(), 5);
}

#[test]
fn damaged_entries_are_noticed_and_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = || Some(FactorCache::new(folder.path()));
    let (good, _) = start(tinylora(), cache());
    let whole: Vec<Vec<u8>> = entries(folder.path()).iter().map(|path| fs::read(path).unwrap()).collect();
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let damage: [Damage<'_>; 6] = [
        &|_| vec![],
        &|bytes| bytes[..bytes.len() - 1].to_vec(),
        &|bytes| bytes[..40].to_vec(),
        &|bytes| flipped(bytes, 0),
        &|bytes| flipped(bytes, bytes.len() / 2),
        &|bytes| flipped(bytes, bytes.len() - 1),
    ];
    for damage in damage {
        for (path, bytes) in entries(folder.path()).iter().zip(&whole) {
            fs::write(path, damage(bytes)).unwrap();
        }
        let (again, seen) = start(tinylora(), cache());
        assert!(again == good && seen == [false, false]);
        assert_eq!(start(tinylora(), cache()).1, [true, true]);
    }
    // One entry in the place of the other has a checksum that fits, and is of another weight.
    let paths = entries(folder.path());
    fs::write(&paths[0], &whole[1]).unwrap();
    let (again, mut seen) = start(tinylora(), cache());
    seen.sort_unstable();
    assert!(again == good && seen == [false, true]);
}

#[test]
fn the_least_recently_used_entries_go_first_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    start(tinylora(), Some(FactorCache::new(folder.path())));
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let size: u64 = 2 * fs::metadata(&entries(folder.path())[0]).unwrap().len();
    let day = |ago: u64| SystemTime::now() - Duration::from_secs(86_400 * ago);
    let set = |path: &Path, ago| File::options().append(true).open(path).unwrap().set_modified(day(ago)).unwrap();
    let old = entries(folder.path());
    let old: Vec<&PathBuf> = old.iter().filter(|path| path.extension().unwrap() == "factors").collect();
    old.iter().for_each(|path| set(path, 9));
    let (left, recent) = (folder.path().join("a.unfinished"), folder.path().join("b.unfinished"));
    [&left, &recent].into_iter().for_each(|path| fs::write(path, "x").unwrap());
    set(&left, 2);
    // A use makes them the youngest again.
    assert_eq!(start(tinylora(), Some(FactorCache::new(folder.path()))).1, [true, true]);
    assert!(fs::metadata(old[0]).unwrap().modified().unwrap() > day(1));
    old.iter().for_each(|path| set(path, 9));
    // Entries of rank 4 are larger; both of them are within this limit, and then none of the old ones.
    let cache = FactorCache::new(folder.path()).with_limit(2 * size + 1000);
    start(lora_xs(), Some(cache.clone()));
    assert_eq!(start(lora_xs(), Some(cache)).1, [true, true]);
    assert!(old.iter().all(|path| !path.exists()));
    assert!(folder.path().join("notes.txt").exists() && recent.exists() && !left.exists());
    // What is larger than the whole cache is not kept.
    let none = FactorCache::new(folder.path().join("none")).with_limit(1000);
    assert_eq!(start(tinylora(), Some(none.clone())).1, [false, false]);
    assert!(!none.dir().exists());
}

#[test]
fn a_cache_that_cannot_be_used_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    let (plain, _) = start(tinylora(), None);
    for dir in [file.clone(), file.join("below")] {
        let (tensors, seen) = start(tinylora(), Some(FactorCache::new(dir)));
        assert!(tensors == plain && seen == [false, false]);
    }
    // A folder in the place of each entry.
    let cache = folder.path().join("cache");
    start(tinylora(), Some(FactorCache::new(&cache)));
    for path in entries(&cache) {
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    let (tensors, seen) = start(tinylora(), Some(FactorCache::new(&cache)));
    assert!(tensors == plain && seen == [false, false]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(entries(&cache).len(), 2, "an unfinished file was left");
}

#[test]
fn writers_at_the_same_time_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, _) = start(tinylora(), None);
    let all = std::thread::scope(|scope| {
        let run = || (0..5).map(|_| start(tinylora(), Some(FactorCache::new(folder.path()))).0).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(all.len() == 20 && all.iter().all(|tensors| *tensors == plain));
    assert_eq!(entries(folder.path()).len(), 2);
    assert_eq!(start(tinylora(), Some(FactorCache::new(folder.path()))).1, [true, true]);
}
