use pulp::Simd;

use super::{Elementwise, Lanes};
use crate::cpu::Element;

/// What is there.
#[derive(Clone, Copy)]
pub(crate) struct Identity;

impl Elementwise<1, 1> for Identity {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, x: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 1] {
        x
    }
}

/// A multiple of what is there.
#[derive(Clone, Copy)]
pub(crate) struct Times(pub(crate) f64);

impl Elementwise<1, 1> for Times {
    #[inline(always)]
    fn apply<S: Simd, T: Element>(self, [x]: [Lanes<S, T::Acc>; 1]) -> [Lanes<S, T::Acc>; 1] {
        [x * self.0]
    }
}

macro_rules! of_two {
    ($name:ident, $operator:tt) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Elementwise<2, 1> for $name {
            #[inline(always)]
            fn apply<S: Simd, T: Element>(self, [x, y]: [Lanes<S, T::Acc>; 2]) -> [Lanes<S, T::Acc>; 1] {
                [x $operator y]
            }
        }
    };
}

of_two!(Sum, +);
of_two!(Product, *);
of_two!(Quotient, /);
