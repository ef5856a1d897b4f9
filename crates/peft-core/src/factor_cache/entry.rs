//! One file of the cache: a key, singular triplets with what was checked of them, and a checksum.

use super::FactorKey;
use crate::linalg::{Certificate, TruncatedSvd, VERSION};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

const MAGIC: &[u8; 16] = b"candle-peft svd\0";
/// The checksum at the end: the BLAKE3 hash of all before it.
const CHECKSUM: usize = 32;

/// The file of an entry. All numbers have their little end first.
pub(super) fn bytes(key: &FactorKey, svd: &TruncatedSvd) -> Result<Vec<u8>> {
    let mut bytes = header(key);
    let Certificate { left, right, orthogonality, overlooked, complete } = &svd.certificate;
    for value in left.iter().chain(right).chain([orthogonality, overlooked]) {
        bytes.extend(value.to_le_bytes());
    }
    bytes.push(u8::from(*complete));
    for tensor in [&svd.s, &svd.u, &svd.vt] {
        for value in tensor.flatten_all()?.to_vec1::<f32>()? {
            bytes.extend(value.to_le_bytes());
        }
    }
    let checksum = blake3::hash(&bytes);
    bytes.extend(checksum.as_bytes());
    Ok(bytes)
}

/// The entry in a file that must be of this key, on the CPU.
///
/// # Errors
/// When the file is damaged or of another key.
pub(super) fn parse(bytes: &[u8], key: &FactorKey) -> Result<TruncatedSvd> {
    let damaged = |what: &str| Error::Decomposition(what.to_owned());
    let (body, checksum) =
        bytes.len().checked_sub(CHECKSUM).map(|at| bytes.split_at(at)).ok_or_else(|| damaged("it is too short"))?;
    if blake3::hash(body).as_bytes() != checksum {
        return Err(damaged("its checksum is another"));
    }
    let body = body.strip_prefix(&header(key)[..]).ok_or_else(|| damaged("it is of another weight"))?;
    let FactorKey { rows, cols, rank, .. } = *key;
    let wide = 8 * (2 * rank + 2);
    let narrow = 4 * (rank + rows * rank + rank * cols);
    if body.len() != wide + 1 + narrow {
        return Err(damaged("it is of another length"));
    }
    let (wide, rest) = body.split_at(wide);
    let wide: Vec<f64> = wide.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    let narrow: Vec<f32> = rest[1..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let certificate = Certificate {
        left: wide[..rank].to_vec(),
        right: wide[rank..2 * rank].to_vec(),
        orthogonality: wide[2 * rank],
        overlooked: wide[2 * rank + 1],
        complete: rest[0] != 0,
    };
    let (s, vectors) = narrow.split_at(rank);
    let (u, vt) = vectors.split_at(rows * rank);
    Ok(TruncatedSvd {
        u: Tensor::from_slice(u, (rows, rank), &Device::Cpu)?,
        s: Tensor::from_slice(s, rank, &Device::Cpu)?,
        vt: Tensor::from_slice(vt, (rank, cols), &Device::Cpu)?,
        certificate,
    })
}

fn header(key: &FactorKey) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(key.weight.as_bytes());
    for number in [key.rows, key.cols, key.rank] {
        bytes.extend((number as u64).to_le_bytes());
    }
    bytes
}
