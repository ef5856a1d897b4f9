//! Files of `torch.save` that lie: none may be believed, and none may stop the process or take its memory.

use crate::pickles::fixture;
use peft_core::TensorSource;
use peft_core::checkpoint::PickleFile;
use proptest::prelude::*;
use std::fs;

/// A file whose entries are stored: names, and what is in them.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut list) = (vec![], vec![]);
    for (name, data) in entries {
        let at = bytes.len() as u32;
        let sum = checksum(data).to_le_bytes();
        let (size, length) = ((data.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
        let common = [&[0; 8][..], &sum[..], &size, &size, &length, &[0; 2]].concat();
        bytes.extend([b"PK\x03\x04", &[20, 0][..], &common, name.as_bytes(), data].concat());
        list.extend(
            [b"PK\x01\x02", &[20, 0, 20, 0][..], &common, &[0; 10], &at.to_le_bytes(), name.as_bytes()].concat(),
        );
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (size, at) = ((list.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes());
    [&bytes[..], &list, b"PK\x05\x06", &[0; 4], &count, &count, &size, &at, &[0; 2]].concat()
}

fn checksum(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
    })
}

/// A pickle of a dictionary with the tensor `a`, as PyTorch writes it: 4 numbers are stored.
struct Tensor<'a> {
    class: &'a str,
    key: &'a str,
    /// The program of the number of stored elements, and those of the offset, of the shape and of the strides.
    stored: Vec<u8>,
    offset: Vec<u8>,
    shape: Vec<u8>,
    stride: Vec<u8>,
}

impl Default for Tensor<'_> {
    fn default() -> Self {
        Self { class: "FloatStorage", key: "0", stored: int(4), offset: int(0), shape: pair(2, 2), stride: pair(2, 1) }
    }
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn int(number: i32) -> Vec<u8> {
    [b"J", &number.to_le_bytes()[..]].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&[0x8a, bytes.len() as u8], bytes].concat()
}

fn tuple2(a: &[u8], b: &[u8]) -> Vec<u8> {
    [a, b, &[0x86]].concat()
}

fn pair(a: i32, b: i32) -> Vec<u8> {
    tuple2(&int(a), &int(b))
}

impl Tensor<'_> {
    fn value(&self) -> Vec<u8> {
        let class = format!("ctorch\n{}\n", self.class);
        let storage =
            [b"(", &text("storage")[..], class.as_bytes(), &text(self.key), &text("cpu"), &self.stored, b"tQ"].concat();
        let hooks = b"ccollections\nOrderedDict\n)R";
        let arguments = [&storage[..], &self.offset, &self.shape, &self.stride, &[0x89], hooks].concat();
        [b"ctorch._utils\n_rebuild_tensor_v2\n(", &arguments[..], b"tR"].concat()
    }

    fn file(&self) -> Vec<u8> {
        with_pickle(&dictionary(&[("a", self.value())]))
    }
}

fn dictionary(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect::<Vec<u8>>();
    [&[0x80, 2], &b"}("[..], &entries, b"u."].concat()
}

/// An archive with this program and 4 stored numbers.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    archive(&[("m/data.pkl", pickle), ("m/data/0", &[1; 16])])
}

/// Opens bytes as a file and reads all that is in it.
fn open(bytes: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.bin");
    fs::write(&path, bytes).unwrap();
    let file = PickleFile::open(&path).map_err(|e| e.to_string())?;
    for name in file.names() {
        let tensor = file.load(&name, &candle_core::Device::Cpu).unwrap().unwrap();
        assert_eq!(tensor.shape(), &file.shape(&name).unwrap());
    }
    Ok(())
}

#[track_caller]
fn refusal(bytes: &[u8]) -> String {
    open(bytes).expect_err("it was read")
}

#[test]
fn what_the_tests_make_is_read() {
    open(&Tensor::default().file()).unwrap();
    let zip = archive(&[("m/data.pkl", b"}."), ("m/byteorder", b"little"), ("m/version", b"3\n")]);
    open(&zip).unwrap();
}

#[test]
fn sizes_that_lie_are_refused_before_anything_is_made() {
    let huge = |n: u64| long(&n.to_le_bytes());
    let t = Tensor::default;
    for (tensor, words) in [
        (Tensor { shape: pair(2, 3), stride: pair(3, 1), ..t() }, "but 4 numbers are stored"),
        (Tensor { shape: pair(2, 2), stride: pair(3, 1), ..t() }, "but 4 numbers are stored"),
        (Tensor { shape: pair(i32::MAX, i32::MAX), ..t() }, "but 4 numbers are stored"),
        (Tensor { shape: pair(i32::MAX, i32::MAX), stride: pair(0, 0), ..t() }, "but 4 numbers are stored"),
        (
            Tensor { shape: tuple2(&huge(1 << 62), &huge(1 << 62)), stride: pair(0, 0), ..t() },
            "but 4 numbers are stored",
        ),
        (Tensor { stride: tuple2(&huge(i64::MAX as u64), &int(1)), ..t() }, "but 4 numbers are stored"),
        (Tensor { shape: pair(2, 0), offset: int(5), ..t() }, "but 4 numbers are stored"),
        (Tensor { offset: int(1), ..t() }, "but 4 numbers are stored"),
        (Tensor { offset: huge(i64::MAX as u64), ..t() }, "but 4 numbers are stored"),
        (Tensor { offset: int(-1), ..t() }, "-1 is not a size, a stride or an offset"),
        (Tensor { shape: pair(-2, -2), ..t() }, "-2 is not a size"),
        (Tensor { stride: pair(-2, 1), ..t() }, "-2 is not a size"),
        (Tensor { offset: huge(u64::MAX), ..t() }, "an integer that is negative or longer than 64 bits"),
        (Tensor { offset: long(&[0xff]), ..t() }, "an integer that is negative or longer than 64 bits"),
        (Tensor { offset: long(&[1; 9]), ..t() }, "an integer that is negative or longer than 64 bits"),
        (Tensor { offset: text("0"), ..t() }, "it is not a tensor"),
        (Tensor { stored: int(5), ..t() }, "5 numbers are said to be stored, but there are 16 bytes"),
        (Tensor { stored: huge(1 << 60), ..t() }, "but there are 16 bytes"),
        (Tensor { class: "DoubleStorage", ..t() }, "4 numbers are said to be stored, but there are 16 bytes"),
        (Tensor { class: "QInt8Storage", ..t() }, "`QInt8Storage`; supported"),
        (Tensor { key: "../0", ..t() }, "its archive has no entry `data/../0`"),
        (
            Tensor { shape: tuple2(&int(4), &int(1)), stride: [&int(1)[..], &[0x85]].concat(), ..t() },
            "but the strides [1]",
        ),
    ] {
        let error = refusal(&tensor.file());
        assert!(error.contains(words), "{error}");
    }
}

/// Each of these stops candle's reader, or takes memory without end.
#[test]
fn programs_that_misuse_the_reader_are_refused() {
    let nested = |deep: usize, more: &[u8]| [b")", &more.repeat(deep)[..], b"."].concat();
    let doubling = [&b")q\x00"[..], &b"h\x00h\x00\x86q\x00".repeat(60), b"."].concat();
    let copies = [
        &text(&"x".repeat(100_000))[..],
        &(0..60_000u32).flat_map(|i| [b"r", &i.to_le_bytes()[..]].concat()).collect::<Vec<_>>(),
        b".",
    ]
    .concat();
    let in_each_other =
        [b"}".to_vec(), [text("k"), b"}".to_vec()].concat().repeat(5000), b"s".repeat(5000), b".".to_vec()].concat();
    for (name, pickle, words) in [
        ("a text of 4 GB", b"X\xff\xff\xff\xffa.".to_vec(), "cut short"),
        ("a long integer", [&[0x8a, 255], &[0; 255][..], b"."].concat(), "longer than 64 bits"),
        ("deep tuples", nested(1_000_000, &[0x85]), "deep"),
        ("deep references", nested(1_000_000, b"Q"), "deep"),
        ("deep dictionaries", in_each_other, "deep"),
        ("deep lists", [&b"]".repeat(1000)[..], &b"a".repeat(999), b"."].concat(), "deep"),
        ("doubling", doubling, "MiB"),
        (
            "wide doubling",
            [&b"(q\x00"[..], &b")".repeat(1000), b"tq\x00", &b"h\x00".repeat(100_000), b"t."].concat(),
            "MiB",
        ),
        ("copies of a text", copies, "MiB"),
        ("an endless stack", b")".repeat(15 << 20), "MiB"),
        ("no program", vec![], "cut short"),
        ("an operation with nothing to work on", b"R.".to_vec(), "cannot be read"),
        ("an append to no list", b"))a.".to_vec(), "cannot be read"),
        ("an item for no dictionary", b")NNs.".to_vec(), "no list or dictionary"),
        ("items for no dictionary", b"](NNu.".to_vec(), "no list or dictionary"),
        ("items for no list", b"}(NNe.".to_vec(), "no list or dictionary"),
        ("a tuple without a mark", b"))t.".to_vec(), "cannot be read"),
        ("nothing remembered", b"h\x07.".to_vec(), "cannot be read"),
        ("no end", b"}".to_vec(), "cut short"),
        ("a function that is called", b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.".to_vec(), "does not hold a dictionary"),
        (
            "a function as a value",
            dictionary(&[("a", b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R".to_vec())]),
            "a `os.system`, not a tensor",
        ),
        (
            "a tensor of nothing",
            dictionary(&[("a", b"ctorch._utils\n_rebuild_tensor_v2\n)R".to_vec())]),
            "not a tensor",
        ),
        (
            "a parameter of nothing",
            dictionary(&[("a", b"ctorch._utils\n_rebuild_parameter\n)R".to_vec())]),
            "not a tensor",
        ),
        ("an ordered dictionary of something", b"ccollections\nOrderedDict\n]\x85R.".to_vec(), "only empty ones"),
        ("a dictionary from the stack", b"(X\x01\x00\x00\x00aNd.".to_vec(), "the operation 0x64"),
        ("an operation of another protocol", b"\x95.".to_vec(), "the operation 0x95"),
        ("a name that is none", b"}(NNu.".to_vec(), "not a text"),
        (
            "one name twice",
            dictionary(&[("a", Tensor::default().value()), ("a", Tensor::default().value())]),
            "two tensors `a`",
        ),
        ("what is not on a dictionary", dictionary(&[("_metadata", b"N".to_vec())]), "`_metadata`: it is not a tensor"),
    ] {
        let error = refusal(&with_pickle(&pickle));
        assert!(error.contains(words), "{name}: {error}");
        assert!(error.len() < 1000, "{name}: {error}");
    }
    let error = refusal(&with_pickle(&vec![b'N'; (16 << 20) + 1]));
    assert!(error.contains("more than 16777216 are not read"), "{error}");
}

#[test]
fn archives_that_lie_are_refused() {
    let good = Tensor::default().file();
    let list = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let end = good.len() - 22;
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let data = good.windows(8).position(|w| w == b"m/data/0").unwrap() + 8;
    for (name, bytes, words) in [
        ("a damaged number", with(data, &[9]), "its checksum differs"),
        ("compressed", with(list + 10, &[8]), "is compressed"),
        ("encrypted", with(list + 8, &[1]), "is encrypted"),
        ("two sizes", with(list + 24, &[0xff; 3]), "is compressed"),
        ("4 GB", with(list + 20, &[0xf0, 0xff, 0xff, 0xff, 0xf0, 0xff, 0xff, 0xff]), "outside the file"),
        ("sizes that are elsewhere and are not", with(list + 20, &[0xff; 8]), "is broken"),
        ("an entry elsewhere", with(list + 42, &[7]), "outside the file"),
        ("a long name", with(list + 28, &[0xff, 0xff]), "is broken"),
        ("a long list", with(end + 12, &[0xff; 4]), "outside the file"),
        ("a list elsewhere", with(end + 16, &[0xff; 4]), "outside the file"),
        ("a list that is none", with(end + 16, &[0; 4]), "is broken"),
        ("something behind it", [&good[..], b"x"].concat(), "has no end"),
        ("no pickle", archive(&[("m/data/0", &[0; 16])]), "must have one entry data.pkl"),
        ("two pickles", archive(&[("m/data.pkl", b"}."), ("n/data.pkl", b"}.")]), "must have one entry data.pkl"),
        ("one entry twice", archive(&[("m/data.pkl", b"}."), ("m/data.pkl", b"}.")]), "two entries `m/data.pkl`"),
        (
            "numbers the other way round",
            archive(&[("m/data.pkl", b"}."), ("m/byteorder", b"big")]),
            "byte order is `big`",
        ),
        ("a web page", b"<html>".to_vec(), "not a zip archive"),
        ("nothing", vec![], "not a zip archive"),
    ] {
        let error = refusal(&bytes);
        assert!(error.contains(words), "{name}: {error}");
    }
    // The second entry is said to begin where the first does.
    let second = list + 46 + "m/data.pkl".len();
    assert!(refusal(&with(second + 42, &[0; 4])).contains("overlap"));
    // The end for large archives, which PyTorch may write, points to nowhere.
    let locator = [&good[..end], b"PK\x06\x07", &[0; 4], &[0xff; 8], &[0; 4], &good[end..]].concat();
    assert!(refusal(&locator).contains("points to nowhere"));
}

#[test]
fn files_that_are_cut_short_are_refused() {
    for name in ["plain.bin", "ordered.bin"] {
        let bytes = fs::read(fixture(name)).unwrap();
        for length in 0..bytes.len() {
            refusal(&bytes[..length]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_bytes_never_stop_the_process(
        name in prop_oneof![Just("plain.bin"), Just("kinds.bin"), Just("ordered.bin")],
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = fs::read(fixture(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = open(&bytes);
    }

    /// With a checksum that is right, so that the reader sees them.
    #[test]
    fn changed_programs_never_stop_the_process(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut pickle = dictionary(&[("a", Tensor::default().value()), ("b", Tensor::default().value())]);
        for (at, byte) in changes {
            let at = at.index(pickle.len());
            pickle[at] = byte;
        }
        let _ = open(&with_pickle(&pickle));
    }

    #[test]
    fn random_programs_never_stop_the_process(
        program in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(&b"(tRQ)}]Ncq\x00h\x00us.ba\x85\x86\x87\x81K\x01"[..])], 0..200),
    ) {
        let _ = open(&with_pickle(&program));
    }
}
