//! Sums of gradients.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, WithDType, bail};

use crate::cpu::{Element, for_each_row};

/// Elements that one task adds.
const BLOCK: usize = 1 << 14;

/// A sum that grows without copying: the first term stands for itself, the second makes a new tensor, and later ones are
/// added in place.
pub(super) enum Sum {
    /// A term that came from elsewhere, perhaps with elements that others read.
    Lent(Tensor),
    /// Elements that are this sum's alone.
    Own(Tensor),
}

impl Sum {
    /// The sum of one or more terms, in their order.
    pub(super) fn of(terms: Vec<Tensor>) -> Result<Tensor> {
        let mut terms = terms.into_iter();
        let Some(first) = terms.next() else { bail!("backward: a sum of no gradients") };
        let mut sum = Self::Lent(first);
        for term in terms {
            sum.add(&term)?;
        }
        Ok(sum.into_tensor())
    }

    pub(super) fn add(&mut self, term: &Tensor) -> Result<()> {
        match self {
            Self::Lent(first) => *self = Self::Own(crate::add(&first.detach(), &term.detach())?),
            Self::Own(sum) if sum.device().is_cpu() => sum.inplace_op2(&term.contiguous()?, &Add)?,
            Self::Own(sum) => *sum = sum.add(term)?,
        }
        Ok(())
    }

    pub(super) fn into_tensor(self) -> Tensor {
        match self {
            Self::Lent(tensor) | Self::Own(tensor) => tensor,
        }
    }
}

struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "backward"
    }

    fn cpu_fwd(&self, sum: &mut CpuStorage, at: &Layout, term: &CpuStorage, from: &Layout) -> Result<()> {
        let (Some(at), Some(from)) = (at.contiguous_offsets(), from.contiguous_offsets()) else {
            bail!("backward: gradients are added contiguously")
        };
        match sum {
            CpuStorage::F32(sum) => add(&mut sum[at.0..at.1], of(term, from)?),
            CpuStorage::F64(sum) => add(&mut sum[at.0..at.1], of(term, from)?),
            CpuStorage::BF16(sum) => add(&mut sum[at.0..at.1], of(term, from)?),
            CpuStorage::F16(sum) => add(&mut sum[at.0..at.1], of(term, from)?),
            _ => bail!("backward: a gradient is of one of f32, f64, bf16, f16"),
        }
        Ok(())
    }
}

fn of<T: WithDType>(storage: &CpuStorage, (start, end): (usize, usize)) -> Result<&[T]> {
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

fn add<T: Element>(sum: &mut [T], term: &[T]) {
    for_each_row(sum, BLOCK, |i, sum| {
        for (sum, &term) in sum.iter_mut().zip(&term[i * BLOCK..]) {
            *sum = T::narrow(sum.widen() + term.widen());
        }
    });
}
