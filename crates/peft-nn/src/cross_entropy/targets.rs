use candle_core::{DType, Device, Result, Tensor, bail};

use super::NAME;

/// The label of every position, checked against the vocabulary; `None` where it is ignored.
pub(super) struct Targets(Vec<Option<u32>>);

impl Targets {
    pub(super) fn new(labels: &Tensor, vocabulary: usize, ignore_index: i64) -> Result<Self> {
        if !labels.dtype().is_int() {
            bail!("{NAME}: the labels are {}, expected an integer dtype", labels.dtype().as_str());
        }
        let labels = labels.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        let target = |(position, label): (usize, i64)| {
            if label == ignore_index {
                return Ok(None);
            }
            match u32::try_from(label) {
                Ok(target) if (target as usize) < vocabulary => Ok(Some(target)),
                _ => bail!(
                    "{NAME}: label {label} at position {position} is out of range, the vocabulary has {vocabulary} \
                     entries and {ignore_index} is ignored"
                ),
            }
        };
        Ok(Self(labels.into_iter().enumerate().map(target).collect::<Result<_>>()?))
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().flatten().count()
    }

    pub(super) fn as_slice(&self) -> &[Option<u32>] {
        &self.0
    }

    /// The labels with zero for the ignored ones, and a column that is one where a label counts: `(positions, 1)` both.
    pub(super) fn columns(&self, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let labels = self.0.iter().map(|target| target.unwrap_or(0)).collect();
        let counts = self.0.iter().map(|target| u8::from(target.is_some())).collect();
        let shape = (self.0.len(), 1);
        let labels: Tensor = Tensor::from_vec::<_, u32>(labels, shape, device)?;
        let counts: Tensor = Tensor::from_vec::<_, u8>(counts, shape, device)?;
        Ok((labels, counts.to_dtype(dtype)?))
    }
}
