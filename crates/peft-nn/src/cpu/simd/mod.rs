//! Vector instructions, chosen when the program runs. Kernels are written once, over [`pulp::Simd`].
//!
//! pulp's operations are vectorised only where they are inlined into the body of a `WithSimd`, so everything here that takes a
//! `Simd` is `#[inline(always)]`.

mod exp;
mod exp_sum;
mod formulas;
mod lanes;
mod normal;
mod real;
mod round;
mod slices;

pub(crate) use exp_sum::{ExpOf, ExpSum};
pub(crate) use formulas::{Identity, Product, Quotient, Sum, Times};
pub(crate) use lanes::{Elementwise, Lanes};
pub(crate) use real::Real;
pub(crate) use round::{to_bf16, to_f16};
pub(crate) use slices::{CHUNK, accumulate, max, sum, update, update_with, write};

use std::sync::LazyLock;

use pulp::{Arch, WithSimd};

/// The instructions of this processor.
static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

#[cfg(test)]
thread_local! {
    /// What this thread uses in place of [`ARCH`].
    static TESTED: std::cell::Cell<Option<Arch>> = const { std::cell::Cell::new(None) };
}

/// Runs a kernel with the best instructions there are.
#[inline(never)]
pub(crate) fn dispatch<K: WithSimd>(kernel: K) -> K::Output {
    #[cfg(test)]
    if let Some(arch) = TESTED.get() {
        return arch.dispatch(kernel);
    }
    ARCH.dispatch(kernel)
}

/// Calls `f` once for each set of instructions that this processor has and that fuses multiplication and addition; [`dispatch`] uses
/// that set on this thread. All of them must give the same bits.
#[cfg(test)]
pub(crate) fn with_each_arch(mut f: impl FnMut()) {
    let mut arches = vec![Arch::new()];
    #[cfg(target_arch = "x86_64")]
    arches.extend(pulp::x86::V3::try_new().map(Arch::V3));
    for arch in arches {
        TESTED.set(Some(arch));
        f();
    }
    TESTED.set(None);
}

/// Calls `f` while [`dispatch`] uses no vector instructions on this thread.
#[cfg(test)]
pub(crate) fn without_vectors(f: impl FnOnce()) {
    TESTED.set(Some(Arch::Scalar));
    f();
    TESTED.set(None);
}
