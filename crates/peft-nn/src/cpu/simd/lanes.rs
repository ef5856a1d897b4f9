use std::ops::{Add, Div, Mul, Neg, Sub};

use pulp::Simd;

use super::Real;
use crate::cpu::Element;

/// A register of numbers with the operators of arithmetic, so that formulas of kernels read as formulas.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S: Simd, R: Real> {
    pub(super) simd: S,
    pub(super) register: R::Register<S>,
}

/// A formula that kernels apply at every position of some slices, many positions at a time.
///
/// Implementations are `#[inline(always)]`: see the module. `T` is the type that the slices are stored in.
pub(crate) trait Elementwise<const IN: usize, const OUT: usize>: Copy + Send + Sync {
    fn apply<S: Simd, T: Element>(self, x: [Lanes<S, T::Acc>; IN]) -> [Lanes<S, T::Acc>; OUT];
}

/// What is there.
#[derive(Clone, Copy)]
pub(crate) struct Identity;

impl Elementwise<1, 1> for Identity {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, x: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 1] {
        x
    }
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

    /// A function of the register.
    #[inline(always)]
    pub(crate) fn map(self, f: impl FnOnce(S, R::Register<S>) -> R::Register<S>) -> Self {
        self.with(f(self.simd, self.register))
    }

    #[inline(always)]
    fn with(self, register: R::Register<S>) -> Self {
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
