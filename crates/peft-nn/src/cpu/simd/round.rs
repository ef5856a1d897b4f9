use pulp::Simd;

/// Every number rounded to the nearest of bf16, ties to even.
#[inline(always)]
pub(crate) fn to_bf16<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    round_bits(simd, x, 16)
}

/// Every number rounded to the nearest of f16, ties to even.
#[inline(always)]
pub(crate) fn to_f16<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value| simd.splat_f32s(value);
    let magnitude = simd.abs_f32s(x);
    let normal = round_bits(simd, x, 13);
    // From 2^-14 down the last place is 2^-24, which is that of 0.75.
    let subnormal = simd.sub_f32s(simd.add_f32s(x, splat(0.75)), splat(0.75));
    let finite =
        simd.select_f32s(simd.less_than_f32s(magnitude, splat(f32::from_bits(0x3880_0000))), subnormal, normal);
    // Halfway between the largest number and the next that would follow.
    let beyond = simd.mul_f32s(x, splat(f32::MAX));
    simd.select_f32s(simd.greater_than_or_equal_f32s(magnitude, splat(65_520.0)), beyond, finite)
}

/// Drops the last `bits` bits of the fraction.
#[inline(always)]
fn round_bits<S: Simd>(simd: S, x: S::f32s, bits: u32) -> S::f32s {
    let splat = |value| simd.splat_u32s(value);
    let all = simd.transmute_u32s_f32s(x);
    let last = simd.and_u32s(simd.wrapping_dyn_shr_u32s(all, splat(bits)), splat(1));
    let carried = simd.add_u32s(simd.add_u32s(all, splat((1 << (bits - 1)) - 1)), last);
    let rounded = simd.transmute_f32s_u32s(simd.and_u32s(carried, splat(u32::MAX << bits)));
    // The carry could make a NaN anything.
    simd.select_f32s(simd.equal_f32s(x, x), rounded, x)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use pulp::WithSimd;

    use super::*;
    use crate::cpu::simd::{dispatch, with_each_arch, without_vectors};

    /// Both roundings of each number.
    struct Round<'a>(&'a [f32], &'a mut [[f32; 2]]);

    impl WithSimd for Round<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for (xs, ys) in self.0.chunks(S::F32_LANES).zip(self.1.chunks_mut(S::F32_LANES)) {
                let register = simd.partial_load_f32s(xs);
                let mut lanes = [[0.0; 16]; 2];
                simd.partial_store_f32s(&mut lanes[0][..S::F32_LANES], to_bf16(simd, register));
                simd.partial_store_f32s(&mut lanes[1][..S::F32_LANES], to_f16(simd, register));
                for (i, y) in ys.iter_mut().enumerate() {
                    *y = lanes.map(|lanes| lanes[i]);
                }
            }
        }
    }

    #[test]
    fn numbers_are_those_of_the_type() {
        let xs = (0..=u32::MAX >> 13).flat_map(|high| [0, 1, 0xfff, 0x1000, 0x1fff].map(|low| high << 13 | low));
        let xs = xs.map(f32::from_bits).collect::<Vec<_>>();
        let run = || {
            let mut ys = vec![[0.0; 2]; xs.len()];
            dispatch(Round(&xs, &mut ys));
            for (x, [b, h]) in xs.iter().zip(ys) {
                let expected = (bf16::from_f32(*x).to_f32(), f16::from_f32(*x).to_f32());
                assert!(b == expected.0 || b.is_nan() && x.is_nan(), "{x} to {b}");
                assert!(h == expected.1 || h.is_nan() && x.is_nan(), "{x} to {h}");
            }
        };
        with_each_arch(run);
        without_vectors(run);
    }
}
