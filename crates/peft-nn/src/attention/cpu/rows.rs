//! Passes over a row of scores, in registers. The rows are whole registers long.

use pulp::Simd;

use crate::cpu::simd::exp as exp_register;

/// Registers that are reduced side by side, so that one addition need not wait for the last.
const CHAINS: usize = 4;

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

#[inline(always)]
pub(super) fn max<S: Simd>(simd: S, row: &[f32]) -> f32 {
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
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [simd.splat_f32s(0.0); CHAINS];
    let (a, b) = (registers::<S>(a).chunks(CHAINS), registers::<S>(b).chunks(CHAINS));
    for (a, b) in a.zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = simd.mul_add_e_f32s(a, b, *sum);
        }
    }
    let [a, b, c, d] = sums;
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)))
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
pub(super) fn exp<S: Simd>(simd: S, row: &mut [f32], shift: f32) -> f32 {
    let shift = simd.splat_f32s(shift);
    let mut sums = [simd.splat_f32s(0.0); 2];
    for pair in registers_mut::<S>(row).chunks_mut(2) {
        for (x, sum) in pair.iter_mut().zip(&mut sums) {
            *x = exp_register(simd, simd.sub_f32s(*x, shift));
            *sum = simd.add_f32s(*sum, *x);
        }
    }
    simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1]))
}

#[inline(always)]
pub(super) fn exp_gradient<S: Simd>(simd: S, scores: &mut [f32], grads: &mut [f32], shift: f32, dot: f32) {
    let (shift, dot) = (simd.splat_f32s(shift), simd.splat_f32s(dot));
    for (score, grad) in registers_mut::<S>(scores).iter_mut().zip(registers_mut::<S>(grads)) {
        *score = exp_register(simd, simd.sub_f32s(*score, shift));
        *grad = simd.mul_f32s(*score, simd.sub_f32s(*grad, dot));
    }
}
