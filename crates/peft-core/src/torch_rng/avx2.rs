//! Logarithm, sine and cosine in f32 as PyTorch's AVX2 build computes them: polynomials of the Cephes library, with the fused
//! multiply-adds that its compiler makes of them. Every other operation rounds to f32.

// The digits are those of the published coefficients; they round to the f32 values meant.
#![allow(clippy::excessive_precision)]

/// The natural logarithm of a number in `(0, 1]`.
pub(super) fn ln(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 8] = [
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ];
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut exponent = ((bits >> 23) as i32 - 127) as f32 + 1.0;
    let mantissa = f32::from_bits((bits & !0x7F80_0000) | 0x3F00_0000);
    let mut rest = 0.0;
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        rest = mantissa;
    }
    let m = (mantissa - 1.0) + rest;
    let z = m * m;
    let mut y = COEFFICIENTS.iter().fold(7.0376836292e-2f32, |y, c| y.mul_add(m, *c)) * m;
    y = y.mul_add(z, exponent * -2.12194440e-4);
    y = (-z).mul_add(0.5, y);
    exponent.mul_add(0.693359375, m + y)
}

/// Sine and cosine of a non-negative angle.
pub(super) fn sin_cos(angle: f32) -> (f32, f32) {
    let octant = ((angle * 1.27323954473516) as i32 + 1) & !1;
    let y = octant as f32;
    let x = y.mul_add(-0.78515625, angle);
    let x = y.mul_add(-2.4187564849853515625e-4, x);
    let x = y.mul_add(-3.77489497744594108e-8, x);
    let z = x * x;
    let c = 2.443315711809948e-5f32.mul_add(z, -1.388731625493765e-3);
    let c = c.mul_add(z, 4.166664568298827e-2) * z;
    let c = c.mul_add(z, -(z * 0.5)) + 1.0;
    let s = (-1.9515295891e-4f32).mul_add(z, 8.3321608736e-3);
    let s = s.mul_add(z, -1.6666654611e-1) * z;
    let s = s.mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (s, c) } else { (c, s) };
    let sin = if octant & 4 != 0 { -sin } else { sin };
    let cos = if (octant - 2) & 4 == 0 { -cos } else { cos };
    (sin, cos)
}
