use std::f32::consts::LOG2_E;

use pulp::Simd;

/// `1.5 * 2^23`: the low bits of a sum with it are the other term rounded to an integer.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts. The first has so few digits that its products with the integers that occur are exact.
const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
/// The coefficients of `(e^r - 1 - r) / r^2` for `|r| <= ln(2) / 2`, constant first. Minimax with regard to the relative error of
/// `e^r`, which is 4e-9.
const TAIL: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_745, 0.001_381_454];
/// The logarithms of the smallest normal number and of the largest one, rounded inwards.
const SMALLEST: f32 = -87.336_54;
const LARGEST: f32 = 88.722_83;

/// `e^x` with an error of at most 1.01 units in the last place. Zero where the result would be smaller than the normal numbers, infinity above the largest one.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let power = exp_of_negative(simd, x);
    // Not "greater than": NaN gives NaN.
    let beyond = simd.add_f32s(x, simd.splat_f32s(f32::INFINITY));
    simd.select_f32s(simd.less_than_or_equal_f32s(x, simd.splat_f32s(LARGEST)), power, beyond)
}

/// The same for numbers that are not above zero: for NaN, and where the result would overflow, it is anything.
#[inline(always)]
pub(super) fn exp_of_negative<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value| simd.splat_f32s(value);
    let fma = |a, b, c| simd.mul_add_e_f32s(a, b, c);

    // x = n ln 2 + r
    let rounded = fma(x, splat(LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(rounded, splat(ROUND));
    let r = fma(n, splat(-LN_2[0]), x);
    let r = fma(n, splat(-LN_2[1]), r);

    let mut tail = splat(TAIL[4]);
    for i in (0..4).rev() {
        tail = fma(tail, r, splat(TAIL[i]));
    }
    let power = simd.add_f32s(fma(simd.mul_f32s(r, r), tail, r), splat(1.0));

    // Times 2^n, added to the exponent.
    let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    let scaled = simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(power), n));
    simd.select_f32s(simd.less_than_f32s(x, splat(SMALLEST)), splat(0.0), scaled)
}

#[cfg(test)]
mod tests {
    use pulp::WithSimd;

    use super::*;
    use crate::cpu::simd::{dispatch, with_each_arch, without_vectors};

    struct Exp<'a>(&'a mut [f32]);

    impl WithSimd for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (registers, rest) = S::as_mut_simd_f32s(self.0);
            assert!(rest.is_empty());
            for x in registers {
                *x = exp(simd, *x);
            }
        }
    }

    fn exps(xs: &[f32]) -> Vec<f32> {
        let mut ys = xs.to_vec();
        ys.resize(xs.len().next_multiple_of(16), 0.0);
        dispatch(Exp(&mut ys));
        ys.truncate(xs.len());
        ys
    }

    /// The distance in units of the last place of a normal `exact`.
    fn error(y: f32, exact: f64) -> f64 {
        let unit = 2f64.powi((exact.log2().floor() as i32).max(-126) - 23);
        (f64::from(y) - exact).abs() / unit
    }

    /// Floats of all magnitudes and both signs, and all near the ends of the range.
    fn arguments() -> Vec<f32> {
        let all = (0..u32::MAX / 1013).map(|i| f32::from_bits(i * 1013));
        let ends = [SMALLEST, LARGEST]
            .into_iter()
            .flat_map(|end| (-3000..3000i32).map(move |i| f32::from_bits(end.to_bits().wrapping_add_signed(i))));
        all.chain(ends).collect()
    }

    #[track_caller]
    fn check(tolerance: f64) {
        let xs = arguments();
        for (x, y) in xs.iter().zip(exps(&xs)) {
            let exact = f64::from(*x).exp();
            if x.is_nan() {
                assert!(y.is_nan(), "exp({x}) = {y}");
            } else if exact < f64::from(f32::MIN_POSITIVE) {
                assert!(y == 0.0 || error(y, exact) <= tolerance, "exp({x}) = {y}");
            } else if exact >= f64::from(f32::MAX) {
                assert!(y == f32::INFINITY || y == f32::MAX, "exp({x}) = {y}");
            } else {
                assert!(error(y, exact) <= tolerance, "exp({x}) = {y}, {exact} is exact");
            }
        }
    }

    #[test]
    fn every_magnitude() {
        with_each_arch(|| check(1.01));
        without_vectors(|| check(2.0));
    }

    #[test]
    fn special_values() {
        let run = || {
            let xs = [f32::NEG_INFINITY, -1e30, -104.0, 0.0, -0.0, 88.8, 1e30, f32::INFINITY];
            assert_eq!(exps(&xs), [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
            assert!(exps(&[f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)]).iter().all(|y| y.is_nan()));
        };
        with_each_arch(run);
        without_vectors(run);
    }

    #[test]
    fn registers_of_every_length_give_the_same_bits() {
        let xs: Vec<f32> = (0..10_000).map(|i| -100.0 + 0.02 * i as f32).collect();
        let mut all = vec![];
        with_each_arch(|| all.push(exps(&xs).into_iter().map(f32::to_bits).collect::<Vec<_>>()));
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
