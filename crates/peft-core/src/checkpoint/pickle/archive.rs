//! The zip archive around a pickle: its entries as parts of the file.
//!
//! PyTorch stores entries as they are. Compressed ones, which can be far larger than the file, are refused, and so no entry is copied:
//! it is a range of bytes that lies in the file.

use crate::error::quoted;
use std::collections::BTreeMap;
use std::ops::Range;

const END: u32 = 0x0605_4b50;
const END_LENGTH: usize = 22;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const LOCATOR_64_LENGTH: usize = 20;
const LISTED: u32 = 0x0201_4b50;
const LISTED_LENGTH: usize = 46;
const LOCAL: u32 = 0x0403_4b50;
const LOCAL_LENGTH: usize = 30;

/// The extra field with what does not fit 32 bits.
const EXTRA_64: u16 = 1;

/// What stands where a number did not fit.
const ELSEWHERE: u32 = u32::MAX;

const PICKLE: &str = "data.pkl";

/// The entries of an archive of PyTorch.
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    /// What the names of all entries begin with.
    root: String,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    range: Range<usize>,
    checksum: u32,
}

impl<'a> Archive<'a> {
    /// Reads the list of entries.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let mut entries = BTreeMap::new();
        let mut list = directory(bytes)?;
        while !list.is_empty() {
            let (name, entry, rest) = listed(list, bytes)?;
            if entries.contains_key(&name) {
                return Err(format!("its archive has two entries {}", quoted(&name)));
            }
            entries.insert(name, entry);
            list = rest;
        }
        let mut ranges: Vec<&Range<usize>> = entries.values().map(|entry| &entry.range).collect();
        ranges.sort_by_key(|range| (range.start, range.end));
        if ranges.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return Err("entries of its archive overlap".into());
        }
        let mut roots = entries.keys().filter_map(|name| name.strip_suffix(PICKLE));
        let root = match (roots.next(), roots.next()) {
            (Some(root), None) => root.to_owned(),
            _ => return Err(format!("its archive must have one entry {PICKLE}")),
        };
        let archive = Self { bytes, root, entries };
        // Written since PyTorch 2.1; there is none in files of others, which have the order of the machine that wrote them.
        if archive.entries.contains_key(&format!("{}byteorder", archive.root)) {
            let order = &bytes[archive.entry("byteorder")?];
            if order != b"little" {
                return Err(format!(
                    "its byte order is {}; it must be `little`",
                    quoted(&String::from_utf8_lossy(order))
                ));
            }
        }
        Ok(archive)
    }

    /// The program that says what the tensors are.
    pub(super) fn pickle(&self) -> Result<&'a [u8], String> {
        Ok(&self.bytes[self.entry(PICKLE)?])
    }

    /// Where in the file an entry is, by its name below the root. What is in it is compared with its checksum.
    pub(super) fn entry(&self, name: &str) -> Result<Range<usize>, String> {
        let entry = self.entries.get(&format!("{}{name}", self.root));
        let Entry { range, checksum } = entry.ok_or_else(|| format!("its archive has no entry {}", quoted(name)))?;
        if crc32fast::hash(&self.bytes[range.clone()]) != *checksum {
            return Err(format!("the entry {} of its archive is damaged: its checksum differs", quoted(name)));
        }
        Ok(range.clone())
    }
}

/// The list of entries, which the end of the file points to.
fn directory(bytes: &[u8]) -> Result<&[u8], String> {
    let cut = || "its archive has no end: it was cut short, or something was appended".to_owned();
    let at = bytes.len().checked_sub(END_LENGTH).ok_or_else(cut)?;
    if u32_at(bytes, at) != Some(END) {
        return Err(cut());
    }
    let mut length = u32_at(bytes, at + 12).map(u64::from).ok_or_else(cut)?;
    let mut start = u32_at(bytes, at + 16).map(u64::from).ok_or_else(cut)?;
    if let Some(locator) = at.checked_sub(LOCATOR_64_LENGTH).filter(|at| u32_at(bytes, *at) == Some(LOCATOR_64)) {
        let end = u64_at(bytes, locator + 8).and_then(|end| usize::try_from(end).ok()).ok_or_else(cut)?;
        if u32_at(bytes, end) != Some(END_64) {
            return Err("the end of its archive points to nowhere".into());
        }
        length = end.checked_add(40).and_then(|at| u64_at(bytes, at)).ok_or_else(cut)?;
        start = end.checked_add(48).and_then(|at| u64_at(bytes, at)).ok_or_else(cut)?;
    }
    let range = range(start, length, at).ok_or("the list of its archive's entries is said to be outside the file")?;
    Ok(&bytes[range])
}

/// The first entry of a list, and the rest of the list.
fn listed<'l>(list: &'l [u8], bytes: &[u8]) -> Result<(String, Entry, &'l [u8]), String> {
    let broken = || "the list of its archive's entries is broken".to_owned();
    if u32_at(list, 0) != Some(LISTED) || list.len() < LISTED_LENGTH {
        return Err(broken());
    }
    let field = |at: usize| u32_at(list, at).ok_or_else(broken);
    let short = |at: usize| u16_at(list, at).ok_or_else(broken);
    let lengths = [short(28)?, short(30)?, short(32)?].map(usize::from);
    let name = list.get(LISTED_LENGTH..LISTED_LENGTH + lengths[0]).ok_or_else(broken)?;
    let name = std::str::from_utf8(name).map_err(|_| broken())?.to_owned();
    let extra = LISTED_LENGTH + lengths[0];
    let rest = list.get(extra + lengths[1] + lengths[2]..).ok_or_else(broken)?;
    let mut wide = wide_fields(&list[extra..extra + lengths[1]]);
    // Those that did not fit follow each other in this order.
    let mut number = |at: usize| match field(at)? {
        ELSEWHERE => wide.next().ok_or_else(broken),
        number => Ok(u64::from(number)),
    };
    let (length, stored, local) = (number(24)?, number(20)?, number(42)?);
    let (flags, compression, checksum) = (short(8)?, short(10)?, field(16)?);
    if flags & 1 != 0 {
        return Err(format!("the entry {} of its archive is encrypted", quoted(&name)));
    }
    if compression != 0 || length != stored {
        return Err(format!("the entry {} of its archive is compressed, which PyTorch's are not", quoted(&name)));
    }
    let range = data(bytes, local, length);
    let range = range.ok_or_else(|| {
        format!("the entry {} of its archive is said to be outside the file: {length} bytes", quoted(&name))
    })?;
    Ok((name, Entry { range, checksum }, rest))
}

/// Where the bytes of an entry are, behind the header that it has beside the one in the list.
fn data(bytes: &[u8], local: u64, length: u64) -> Option<Range<usize>> {
    let at = usize::try_from(local).ok().filter(|at| u32_at(bytes, *at) == Some(LOCAL))?;
    let names = usize::from(u16_at(bytes, at + 26)?) + usize::from(u16_at(bytes, at + 28)?);
    range((at + LOCAL_LENGTH + names) as u64, length, bytes.len())
}

/// The numbers of the extra field for those that do not fit 32 bits.
fn wide_fields(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut found: &[u8] = &[];
    while let (Some(id), Some(length)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some(field) = extra.get(4..4 + usize::from(length)) else { break };
        if id == EXTRA_64 {
            found = field;
        }
        extra = &extra[4 + field.len()..];
    }
    found.chunks_exact(8).filter_map(|number| u64_at(number, 0))
}

/// A range that ends before `limit`.
fn range(start: u64, length: u64, limit: usize) -> Option<Range<usize>> {
    let end = usize::try_from(start.checked_add(length)?).ok().filter(|end| *end <= limit)?;
    Some(usize::try_from(start).ok()?..end)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}
