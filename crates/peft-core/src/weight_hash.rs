//! What a base weight is, as 32 bytes.

use crate::{BaseWeight, Error, Result, WeightLayout};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use std::fmt;

/// Numbers that are widened at a time.
const PIECE: usize = 1 << 14;
/// What is hashed is no other program's idea of a weight.
const DOMAIN: &[u8] = b"candle-peft weight 1";

/// The BLAKE3 hash of a weight's shape, layout and numbers.
///
/// 16-bit numbers are hashed as the f32 that they stand for, little end first: widening loses nothing, so a weight that is loaded
/// in bf16 and the same one loaded in f32 have one hash. One that was rounded on the way has another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightHash([u8; 32]);

impl WeightHash {
    /// The hash of a weight, on one thread.
    ///
    /// # Errors
    /// When there is no weight, or it is not a tensor of floats.
    pub fn of(weight: &BaseWeight) -> Result<Self> {
        let layout: u8 = match weight {
            BaseWeight::Dense { layout: WeightLayout::InOut, .. } => 1,
            _ => 0,
        };
        Self::of_tensor(weight.stored()?, layout)
    }

    /// All 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of_tensor(weight: &Tensor, layout: u8) -> Result<Self> {
        let here = weight.to_device(&Device::Cpu)?.contiguous()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        hasher.update(&[layout, u8::from(here.dtype() == DType::F64)]);
        hasher.update(&(here.rank() as u64).to_le_bytes());
        for side in here.dims() {
            hasher.update(&(*side as u64).to_le_bytes());
        }
        let (storage, place) = here.storage_and_layout();
        let place = place.contiguous_offsets();
        match (&*storage, place) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) => {
                let values = &values[from..to];
                if cfg!(target_endian = "little") {
                    hasher.update(bytemuck::cast_slice(values));
                } else {
                    update(&mut hasher, values, |v| v.to_le_bytes());
                }
            }
            (Storage::Cpu(CpuStorage::BF16(values)), Some((from, to))) => {
                update(&mut hasher, &values[from..to], |v| v.to_f32().to_le_bytes());
            }
            (Storage::Cpu(CpuStorage::F16(values)), Some((from, to))) => {
                update(&mut hasher, &values[from..to], |v| v.to_f32().to_le_bytes());
            }
            (Storage::Cpu(CpuStorage::F64(values)), Some((from, to))) => {
                update(&mut hasher, &values[from..to], |v| v.to_le_bytes());
            }
            _ => {
                let dtype = here.dtype().as_str();
                return Err(Error::Decomposition(format!("a {dtype} weight has no hash: it is not one of floats")));
            }
        }
        Ok(Self(hasher.finalize().into()))
    }
}

/// Hands numbers to the hash piece by piece.
fn update<T: Copy, const N: usize>(hasher: &mut blake3::Hasher, values: &[T], bytes: impl Fn(T) -> [u8; N]) {
    let mut buffer = vec![0u8; PIECE.min(values.len()) * N];
    for values in values.chunks(PIECE) {
        let buffer = &mut buffer[..values.len() * N];
        for (out, value) in buffer.chunks_exact_mut(N).zip(values) {
            out.copy_from_slice(&bytes(*value));
        }
        hasher.update(buffer);
    }
}

/// Hexadecimal digits.
impl fmt::Display for WeightHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WeightHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightHash({self})")
    }
}
