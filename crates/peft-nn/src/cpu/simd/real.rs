use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::cpu::Element;
use candle_core::cpu::erf::erfc_f64;
use pulp::Simd;

use super::exp::exp;
use super::normal::normal;

/// A type that kernels compute in, one register of numbers at a time.
///
/// Everything but the functions beyond arithmetic is a single instruction. Those are vectorised for f32 and the standard library's for
/// f64, which nobody trains in: it is there for exact comparisons.
pub(crate) trait Real: Element<Acc = Self> + num_traits::Float {
    type Register<S: Simd>: Copy;

    /// How many interleaved partial sums make a sum.
    const PARTIAL: usize;

    fn lanes<S: Simd>() -> usize;
    /// A register with fewer numbers than fit, zeros behind them.
    fn load_rest<S: Simd>(simd: S, values: &[Self]) -> Self::Register<S>;
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Register<S>;
    /// The nearest number of this type.
    fn nearest(value: f64) -> Self;

    fn add<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Self::Register<S>;
    fn sub<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Self::Register<S>;
    fn mul<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Self::Register<S>;
    fn div<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Self::Register<S>;
    /// `a b + c`, rounded once where there is an instruction for it.
    fn mul_add<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>, c: Self::Register<S>)
    -> Self::Register<S>;
    /// The larger one; either of them if one is NaN.
    fn max<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Self::Register<S>;

    fn exp<S: Simd>(simd: S, x: Self::Register<S>) -> Self::Register<S>;
    /// The standard normal distribution: the probability of what is smaller, and the density.
    fn normal<S: Simd>(simd: S, x: Self::Register<S>) -> [Self::Register<S>; 2];
}

macro_rules! arithmetic {
    ($register:ident, $lanes:ident, $load:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident,
     $div:ident, $mul_add:ident, $max:ident) => {
        type Register<S: Simd> = S::$register;

        #[inline(always)]
        fn lanes<S: Simd>() -> usize {
            S::$lanes
        }
        #[inline(always)]
        fn load_rest<S: Simd>(simd: S, values: &[Self]) -> S::$register {
            simd.$load(values)
        }
        #[inline(always)]
        fn splat<S: Simd>(simd: S, value: Self) -> S::$register {
            simd.$splat(value)
        }
        #[inline(always)]
        fn add<S: Simd>(simd: S, a: S::$register, b: S::$register) -> S::$register {
            simd.$add(a, b)
        }
        #[inline(always)]
        fn sub<S: Simd>(simd: S, a: S::$register, b: S::$register) -> S::$register {
            simd.$sub(a, b)
        }
        #[inline(always)]
        fn mul<S: Simd>(simd: S, a: S::$register, b: S::$register) -> S::$register {
            simd.$mul(a, b)
        }
        #[inline(always)]
        fn div<S: Simd>(simd: S, a: S::$register, b: S::$register) -> S::$register {
            simd.$div(a, b)
        }
        #[inline(always)]
        fn mul_add<S: Simd>(simd: S, a: S::$register, b: S::$register, c: S::$register) -> S::$register {
            simd.$mul_add(a, b, c)
        }
        #[inline(always)]
        fn max<S: Simd>(simd: S, a: S::$register, b: S::$register) -> S::$register {
            simd.$max(a, b)
        }
    };
}

impl Real for f32 {
    const PARTIAL: usize = 32;

    arithmetic!(
        f32s,
        F32_LANES,
        partial_load_f32s,
        splat_f32s,
        add_f32s,
        sub_f32s,
        mul_f32s,
        div_f32s,
        mul_add_e_f32s,
        max_f32s
    );

    #[inline(always)]
    fn nearest(value: f64) -> Self {
        value as Self
    }

    #[inline(always)]
    fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        exp(simd, x)
    }

    #[inline(always)]
    fn normal<S: Simd>(simd: S, x: S::f32s) -> [S::f32s; 2] {
        normal(simd, x)
    }
}

impl Real for f64 {
    const PARTIAL: usize = 16;

    arithmetic!(
        f64s,
        F64_LANES,
        partial_load_f64s,
        splat_f64s,
        add_f64s,
        sub_f64s,
        mul_f64s,
        div_f64s,
        mul_add_e_f64s,
        max_f64s
    );

    #[inline(always)]
    fn nearest(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn exp<S: Simd>(simd: S, x: S::f64s) -> S::f64s {
        one_by_one(simd, x, f64::exp)
    }

    #[inline(always)]
    fn normal<S: Simd>(simd: S, x: S::f64s) -> [S::f64s; 2] {
        [
            one_by_one(simd, x, |x| erfc_f64(-x * FRAC_1_SQRT_2) / 2.0),
            one_by_one(simd, x, |x| (-x * x / 2.0).exp() * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 / 2.0),
        ]
    }
}

/// A function of each number of a register.
#[inline(always)]
fn one_by_one<S: Simd>(simd: S, x: S::f64s, f: impl Fn(f64) -> f64) -> S::f64s {
    // No register is longer than 64 bytes.
    let mut lanes = [0.0; 8];
    let lanes = &mut lanes[..S::F64_LANES];
    simd.partial_store_f64s(lanes, x);
    for lane in lanes.iter_mut() {
        *lane = f(*lane);
    }
    simd.partial_load_f64s(lanes)
}
