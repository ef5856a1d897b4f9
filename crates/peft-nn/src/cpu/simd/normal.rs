use pulp::Simd;

use super::exp::exp_of_negative;

/// Beyond this distance from zero the density is zero in f32.
const FAR: f32 = 15.0;
/// The coefficients of `exp(u^2 / 2) P(X < -u)` in powers of `(u - 3) / (u + 3)`, constant first. Minimax with regard to the relative
/// error for `0 <= u <= 14`, which is 8e-9.
const TAIL: [f32; 10] = [
    0.121_513_95,
    -0.206_402_61,
    0.123_225_03,
    -0.046_213_29,
    0.006_132_070_4,
    0.002_904_556_2,
    -0.000_983_758_5,
    -0.000_339_484_9,
    0.000_115_543_78,
    0.000_053_671_88,
];
const INVERSE_ROOT_OF_TWO_PI: f32 = 0.398_942_3;

/// The standard normal distribution: the probability of what is smaller than `x`, and the density there.
///
/// The error in the last place is a few units and half the square of `x`, of small probabilities too: those `(1 + erf(x / sqrt(2))) / 2`
/// would lose.
#[inline(always)]
pub(super) fn normal<S: Simd>(simd: S, x: S::f32s) -> [S::f32s; 2] {
    let splat = |value| simd.splat_f32s(value);
    let fma = |a, b, c| simd.mul_add_e_f32s(a, b, c);

    let u = simd.min_f32s(splat(FAR), simd.abs_f32s(x));
    let bell = exp_of_negative(simd, simd.mul_f32s(simd.mul_f32s(u, u), splat(-0.5)));

    let t = simd.div_f32s(simd.sub_f32s(u, splat(3.0)), simd.add_f32s(u, splat(3.0)));
    let mut tail = splat(TAIL[9]);
    for i in (0..9).rev() {
        tail = fma(tail, t, splat(TAIL[i]));
    }
    let below = simd.mul_f32s(tail, bell);
    let is_negative = simd.less_than_f32s(x, splat(0.0));
    let probability = simd.select_f32s(is_negative, below, simd.sub_f32s(splat(1.0), below));
    [probability, simd.mul_f32s(bell, splat(INVERSE_ROOT_OF_TWO_PI))]
}

#[cfg(test)]
mod tests {
    use candle_core::cpu::erf::erfc_f64;
    use pulp::WithSimd;

    use super::*;
    use crate::cpu::simd::{dispatch, with_each_arch, without_vectors};

    /// Of each number the probability and the density.
    struct Normal<'a>(&'a [f32], &'a mut [[f32; 2]]);

    impl WithSimd for Normal<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for (xs, ys) in self.0.chunks(S::F32_LANES).zip(self.1.chunks_mut(S::F32_LANES)) {
                let both = normal(simd, simd.partial_load_f32s(xs));
                let mut lanes = [[0.0; 16]; 2];
                for (lanes, register) in lanes.iter_mut().zip(both) {
                    simd.partial_store_f32s(&mut lanes[..S::F32_LANES], register);
                }
                for (i, y) in ys.iter_mut().enumerate() {
                    *y = lanes.map(|lanes| lanes[i]);
                }
            }
        }
    }

    fn normals(xs: &[f32]) -> Vec<[f32; 2]> {
        let mut ys = vec![[0.0; 2]; xs.len()];
        dispatch(Normal(xs, &mut ys));
        ys
    }

    #[test]
    fn both_tails_are_exact_in_relation_to_their_size() {
        let xs: Vec<f32> = (-130_000..=130_000).map(|i| i as f32 * 1e-4 + 3e-6).collect();
        let run = || {
            for (x, [probability, density]) in xs.iter().zip(normals(&xs)) {
                let x = f64::from(*x);
                let exact = [
                    erfc_f64(-x * std::f64::consts::FRAC_1_SQRT_2) / 2.0,
                    (-x * x / 2.0).exp() * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2 / 2.0,
                ];
                for (value, exact) in [probability, density].into_iter().zip(exact) {
                    let tolerance = (5.0 + x * x / 2.0) * f64::from(f32::EPSILON);
                    assert!((f64::from(value) / exact - 1.0).abs() < tolerance, "{value} for {exact} at {x}");
                }
            }
        };
        with_each_arch(run);
    }

    #[test]
    fn far_away_it_is_zero_or_one() {
        let run = || {
            let xs = [f32::NEG_INFINITY, -1e30, -15.0, 15.0, 1e30, f32::INFINITY];
            assert_eq!(normals(&xs), [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]);
            assert_eq!(normals(&[0.0]), normals(&[-0.0]));
        };
        with_each_arch(run);
        without_vectors(run);
    }
}
