//! Passes over rows of scores, in registers. The rows are whole registers long.
//!
//! Sums are made of as many chains as a register of [`LANES`] would have, whatever the processor's registers, and these
//! are added up in halves: all processors that multiply and add in one step give the same bits.

use pulp::Simd;

use super::arithmetic::Normaliser;
use crate::cpu::simd;

/// Numbers that are added up side by side.
const LANES: usize = 64;

/// Calls a function with the number of registers that [`LANES`] are.
macro_rules! in_chains {
    ($simd:ty, $f:ident($($argument:expr),*)) => {
        match LANES / <$simd>::F32_LANES {
            0..=4 => $f::<$simd, 4>($($argument),*),
            5..=8 => $f::<$simd, 8>($($argument),*),
            9..=16 => $f::<$simd, 16>($($argument),*),
            _ => $f::<$simd, LANES>($($argument),*),
        }
    };
}

#[inline(always)]
pub(super) fn max<S: Simd>(simd: S, row: &[f32]) -> f32 {
    const CHAINS: usize = 4;
    let mut max = [simd.splat_f32s(f32::NEG_INFINITY); CHAINS];
    let (full, rest) = registers::<S>(row).as_chunks::<CHAINS>();
    for x in full {
        for (max, &x) in max.iter_mut().zip(x) {
            *max = simd.max_f32s(*max, x);
        }
    }
    for (max, &x) in max.iter_mut().zip(rest) {
        *max = simd.max_f32s(*max, x);
    }
    let [a, b, c, d] = max;
    simd.reduce_max_f32s(simd.max_f32s(simd.max_f32s(a, b), simd.max_f32s(c, d)))
}

#[inline(always)]
pub(super) fn add<S: Simd>(simd: S, row: &mut [f32], term: &[f32]) {
    for (x, &term) in registers_mut::<S>(row).iter_mut().zip(registers::<S>(term)) {
        *x = simd.add_f32s(*x, term);
    }
}

#[inline(always)]
pub(super) fn scale<S: Simd>(simd: S, row: &mut [f32], factor: f32) {
    let factor = simd.splat_f32s(factor);
    for x in registers_mut::<S>(row) {
        *x = simd.mul_f32s(*x, factor);
    }
}

#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    in_chains!(S, dot_in(simd, a, b))
}

#[inline(always)]
fn dot_in<S: Simd, const CHAINS: usize>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [simd.splat_f32s(0.0); CHAINS];
    let (a, a_rest) = registers::<S>(a).as_chunks::<CHAINS>();
    let (b, b_rest) = registers::<S>(b).as_chunks::<CHAINS>();
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = simd.mul_add_e_f32s(a, b, *sum);
        }
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = simd.mul_add_e_f32s(a, b, *sum);
    }
    sum(simd, sums)
}

#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, row: &mut [f32], factor: f32, shift: f32) -> f32 {
    in_chains!(S, exp_in(simd, row, factor, shift))
}

#[inline(always)]
fn exp_in<S: Simd, const CHAINS: usize>(simd: S, row: &mut [f32], factor: f32, shift: f32) -> f32 {
    let scale = (simd.splat_f32s(factor), simd.splat_f32s(-shift));
    let mut sums = [simd.splat_f32s(0.0); CHAINS];
    let (full, rest) = registers_mut::<S>(row).as_chunks_mut::<CHAINS>();
    for x in full {
        exps(simd, x, scale, &mut sums);
    }
    exps(simd, rest, scale, &mut sums);
    sum(simd, sums)
}

#[inline(always)]
fn exps<S: Simd>(simd: S, row: &mut [S::f32s], (factor, term): (S::f32s, S::f32s), sums: &mut [S::f32s]) {
    for (x, sum) in row.iter_mut().zip(sums) {
        *x = <f32 as simd::Real>::exp(simd, simd.mul_add_e_f32s(*x, factor, term));
        *sum = simd.add_f32s(*sum, *x);
    }
}

#[inline(always)]
pub(super) fn gradient<S: Simd>(simd: S, scores: &mut [f32], grads: &mut [f32], normaliser: Normaliser<f32>, dot: f32) {
    let (factor, term) = (simd.splat_f32s(normaliser.factor), simd.splat_f32s(-normaliser.shift));
    let (inverse, dot) = (simd.splat_f32s(normaliser.inverse), simd.splat_f32s(dot));
    for (score, grad) in registers_mut::<S>(scores).iter_mut().zip(registers_mut::<S>(grads)) {
        *score = simd.mul_f32s(<f32 as simd::Real>::exp(simd, simd.mul_add_e_f32s(*score, factor, term)), inverse);
        *grad = simd.mul_f32s(*score, simd.sub_f32s(*grad, dot));
    }
}

/// In halves, of which pulp's own sum continues.
#[inline(always)]
fn sum<S: Simd, const CHAINS: usize>(simd: S, mut sums: [S::f32s; CHAINS]) -> f32 {
    let mut half = CHAINS / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] = simd.add_f32s(sums[i], sums[i + half]);
        }
        half /= 2;
    }
    simd.reduce_sum_f32s(sums[0])
}

#[inline(always)]
fn registers<S: Simd>(row: &[f32]) -> &[S::f32s] {
    let (full, rest) = S::as_simd_f32s(row);
    debug_assert!(rest.is_empty());
    full
}

#[inline(always)]
fn registers_mut<S: Simd>(row: &mut [f32]) -> &mut [S::f32s] {
    let (full, rest) = S::as_mut_simd_f32s(row);
    debug_assert!(rest.is_empty());
    full
}
