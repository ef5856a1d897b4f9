use std::ops::{Add, Div, Mul, Neg, Sub};

use pulp::Simd;

use super::Real;
use crate::cpu::Element;

/// A register of numbers with the operators of arithmetic, so that formulas of kernels read as formulas.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S: Simd, R: Real> {
    pub(crate) simd: S,
    pub(crate) register: R::Register<S>,
}

/// A formula that kernels apply at every position of some slices, many positions at a time.
///
/// Implementations are `#[inline(always)]`: see the module. `T` is the type that the slices are stored in.
pub(crate) trait Elementwise<const IN: usize, const OUT: usize>: Copy + Send + Sync {
    fn apply<S: Simd, T: Element>(self, x: [Lanes<S, T::Acc>; IN]) -> [Lanes<S, T::Acc>; OUT];
}

impl<S: Simd, R: Real> Lanes<S, R> {
    #[inline(always)]
    pub(crate) fn splat(simd: S, value: R) -> Self {
        Self { simd, register: R::splat(simd, value) }
    }

    /// The same number as `value` in every place, beside this register.
    #[inline(always)]
    pub(crate) fn constant(self, value: f64) -> Self {
        Self::splat(self.simd, R::nearest(value))
    }

    /// `self * factor + term`
    #[inline(always)]
    pub(crate) fn mul_add(self, factor: Self, term: Self) -> Self {
        self.with(<R as Real>::mul_add(self.simd, self.register, factor.register, term.register))
    }

    #[inline(always)]
    pub(crate) fn max(self, other: Self) -> Self {
        self.with(<R as Real>::max(self.simd, self.register, other.register))
    }

    #[inline(always)]
    pub(crate) fn exp(self) -> Self {
        self.with(<R as Real>::exp(self.simd, self.register))
    }

    /// `1 / (1 + e^-x)`
    #[inline(always)]
    pub(crate) fn sigmoid(self) -> Self {
        self.constant(1.0) / ((-self).exp() + 1.0)
    }

    /// The standard normal distribution: the probability of what is smaller, and the density.
    #[inline(always)]
    pub(crate) fn normal(self) -> [Self; 2] {
        let [probability, density] = R::normal(self.simd, self.register);
        [self.with(probability), self.with(density)]
    }

    /// Another register of the same kind.
    #[inline(always)]
    pub(crate) fn with(self, register: R::Register<S>) -> Self {
        Self { simd: self.simd, register }
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident) => {
        impl<S: Simd, R: Real> $trait for Lanes<S, R> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                self.with(<R as Real>::$method(self.simd, self.register, other.register))
            }
        }

        impl<S: Simd, R: Real> $trait<f64> for Lanes<S, R> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, constant: f64) -> Self {
                $trait::$method(self, self.constant(constant))
            }
        }
    };
}

operator!(Add, add);
operator!(Sub, sub);
operator!(Mul, mul);
operator!(Div, div);

impl<S: Simd, R: Real> Neg for Lanes<S, R> {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        self * -1.0
    }
}

impl<S: Simd, R: Real> Sub<Lanes<S, R>> for f64 {
    type Output = Lanes<S, R>;

    #[inline(always)]
    fn sub(self, other: Lanes<S, R>) -> Lanes<S, R> {
        other.constant(self) - other
    }
}
