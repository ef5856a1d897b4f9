//! Conversion of the 16-bit types to f32 and back, without branches, so that loops over them are vectorised.

use half::{bf16, f16};

/// The exponent bits of f32.
const INFINITY: u32 = 0x7f80_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;

#[inline(always)]
pub(super) fn bf16_to_f32(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// Rounded to the nearest, ties to even.
#[inline(always)]
pub(super) fn f32_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // The carry could make a NaN anything; its first digit says that it is one.
    let nan = bits >> 16 | 0x40;
    bf16::from_bits(if bits & MAGNITUDE > INFINITY { nan } else { rounded } as u16)
}

#[inline(always)]
pub(super) fn f16_to_f32(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    // 2^112 is what the biases of the exponents differ by. The product is exact, of subnormal numbers too.
    let number = (f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23)).to_bits();
    let not_finite = if magnitude >= 0x1f << 23 { INFINITY } else { 0 };
    f32::from_bits(number | not_finite | (bits & 0x8000) << 16)
}

/// Rounded to the nearest, ties to even.
#[inline(always)]
pub(super) fn f32_to_f16(x: f32) -> f16 {
    let bits = x.to_bits();
    let magnitude = bits & MAGNITUDE;
    let normal =
        magnitude.wrapping_add((15u32.wrapping_sub(127) << 23).wrapping_add(0xfff + (magnitude >> 13 & 1))) >> 13;
    // Below 2^-14 the last place of 0.5 is that of the result.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let not_finite = if magnitude > INFINITY { 0x7e00 } else { 0x7c00 };
    let rounded = match magnitude {
        0x4780_0000.. => not_finite,
        ..0x3880_0000 => subnormal,
        _ => normal,
    };
    f16::from_bits((rounded | bits >> 16 & 0x8000) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number between those of 16 bits, and its neighbours.
    fn floats() -> impl Iterator<Item = f32> {
        let sixteenths = (0..=u32::MAX >> 12).map(|high| high << 12);
        sixteenths.flat_map(|bits| [0, 1, 0x7ff, 0xfff].map(|low| f32::from_bits(bits | low)))
    }

    #[test]
    fn widening_is_exact() {
        for bits in 0..=u16::MAX {
            let (b, h) = (bf16::from_bits(bits), f16::from_bits(bits));
            assert!(bf16_to_f32(b).to_bits() == b.to_f32().to_bits() || b.is_nan() && bf16_to_f32(b).is_nan());
            assert!(f16_to_f32(h).to_bits() == h.to_f32().to_bits() || h.is_nan() && f16_to_f32(h).is_nan());
        }
    }

    #[test]
    fn narrowing_rounds_to_the_nearest() {
        for x in floats() {
            let (b, h) = (f32_to_bf16(x), f32_to_f16(x));
            assert!(b.to_bits() == bf16::from_f32(x).to_bits() || x.is_nan() && b.is_nan(), "{x} to {b}");
            assert!(h.to_bits() == f16::from_f32(x).to_bits() || x.is_nan() && h.is_nan(), "{x} to {h}");
        }
    }
}
