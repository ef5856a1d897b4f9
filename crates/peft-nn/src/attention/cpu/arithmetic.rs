//! What the blocks are computed with: f32 in registers, f64 a number at a time.

use std::marker::PhantomData;
use std::ops::DerefMut;

use num_traits::Float;
use pulp::{Simd, WithSimd};

use super::rows;
use crate::cpu::Element;
use crate::cpu::gemm::{self, Destination, Scratch, Strided};
use crate::cpu::simd::dispatch;

/// A matrix that is read element by element.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Lhs<'a, A> {
    pub(super) elements: &'a [A],
    /// From one row to the next.
    pub(super) row: usize,
    /// From one element of a row to the next.
    pub(super) depth: usize,
}

/// Some rows of a matrix laid out as panels: see [`pack`](super::pack).
#[derive(Clone, Copy)]
pub(in crate::attention) struct Panels<'a, A> {
    pub(super) elements: &'a [A],
    /// Rows that are laid out.
    pub(super) rows: usize,
    /// The first one of the product.
    pub(super) from: usize,
    /// A multiple of the unit.
    pub(super) columns: usize,
}

/// Rows that a product is written to.
pub(in crate::attention) struct Out<'a, A> {
    pub(super) elements: &'a mut [A],
    pub(super) stride: usize,
    /// Adds to what is there.
    pub(super) add: bool,
}

/// The type that scores, probabilities and sums are computed in.
///
/// All rows have a multiple of the unit in elements.
pub(in crate::attention) trait Arithmetic: Element<Acc = Self> + Float {
    type Memory: DerefMut<Target = [Self]> + Send + Sync;

    /// Memory for `len` numbers of no particular value.
    fn buffer(len: usize) -> Self::Memory;
    fn tiles<S: Simd>() -> Tiles;
    /// `out = lhs * panels` for `rows` rows of `depth` elements.
    fn product<S: Simd>(
        simd: S,
        rows: usize,
        depth: usize,
        lhs: Lhs<'_, Self>,
        panels: Panels<'_, Self>,
        out: Out<'_, Self>,
    );
    fn row_dot<S: Simd>(simd: S, a: &[Self], b: &[Self]) -> Self;
    /// `-inf` of no elements.
    fn row_max<S: Simd>(simd: S, row: &[Self]) -> Self;
    fn row_add<S: Simd>(simd: S, row: &mut [Self], term: &[Self]);
    fn row_scale<S: Simd>(simd: S, row: &mut [Self], factor: Self);
    /// `row = exp(factor * row - shift)`; returns its sum. `exp(-inf)` is zero.
    fn row_exp<S: Simd>(simd: S, row: &mut [Self], factor: Self, shift: Self) -> Self;
    /// `scores = probabilities` and `grads = scores * (grads - dot)`.
    fn row_gradient<S: Simd>(simd: S, scores: &mut [Self], grads: &mut [Self], normaliser: Normaliser<Self>, dot: Self);
}

/// What makes a row of scores probabilities: `exp(factor * score - shift) * inverse`.
///
/// One number would be enough, the logarithm of the sum of all exponentials; but where it is large its rounding shows in
/// all of them.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Normaliser<A> {
    pub(super) factor: A,
    /// The largest score times the factor.
    pub(super) shift: A,
    /// Of the sum of the exponentials.
    pub(super) inverse: A,
}

/// The sizes that depend on the processor's registers.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Tiles {
    /// Rows that are multiplied with a panel together.
    pub(super) rows: usize,
    /// Columns of a panel.
    pub(super) panel: usize,
    /// The last panel may have so many.
    pub(super) unit: usize,
}

impl Tiles {
    pub(in crate::attention) fn of<A: Arithmetic>() -> Self {
        struct Find<A>(PhantomData<A>);
        impl<A: Arithmetic> WithSimd for Find<A> {
            type Output = Tiles;

            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Tiles {
                A::tiles::<S>()
            }
        }
        dispatch(Find::<A>(PhantomData))
    }

    /// Columns, with those that are added to make them whole units.
    #[inline(always)]
    pub(in crate::attention) fn padded(self, columns: usize) -> usize {
        columns.next_multiple_of(self.unit)
    }
}

impl Arithmetic for f32 {
    type Memory = Scratch;

    fn buffer(len: usize) -> Scratch {
        Scratch::new(len)
    }

    #[inline(always)]
    fn tiles<S: Simd>() -> Tiles {
        Tiles { rows: gemm::tile_rows::<S>(), panel: 2 * S::F32_LANES, unit: S::F32_LANES }
    }

    #[inline(always)]
    fn product<S: Simd>(
        simd: S,
        rows: usize,
        depth: usize,
        lhs: Lhs<'_, f32>,
        panels: Panels<'_, f32>,
        out: Out<'_, f32>,
    ) {
        // A function of its own, once, in which the accumulators stay in registers.
        simd.vectorize(Product { rows, depth, lhs, panels, out });
    }

    #[inline(always)]
    fn row_dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
        rows::dot(simd, a, b)
    }

    #[inline(always)]
    fn row_max<S: Simd>(simd: S, row: &[f32]) -> f32 {
        rows::max(simd, row)
    }

    #[inline(always)]
    fn row_add<S: Simd>(simd: S, row: &mut [f32], term: &[f32]) {
        rows::add(simd, row, term);
    }

    #[inline(always)]
    fn row_scale<S: Simd>(simd: S, row: &mut [f32], factor: f32) {
        rows::scale(simd, row, factor);
    }

    #[inline(always)]
    fn row_exp<S: Simd>(simd: S, row: &mut [f32], factor: f32, shift: f32) -> f32 {
        rows::exp(simd, row, factor, shift)
    }

    #[inline(always)]
    fn row_gradient<S: Simd>(simd: S, scores: &mut [f32], grads: &mut [f32], normaliser: Normaliser<f32>, dot: f32) {
        rows::gradient(simd, scores, grads, normaliser, dot);
    }
}

struct Product<'a> {
    rows: usize,
    depth: usize,
    lhs: Lhs<'a, f32>,
    panels: Panels<'a, f32>,
    out: Out<'a, f32>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, depth, lhs, panels, out } = self;
        let lhs = Strided { data: lhs.elements, row: lhs.row, depth: lhs.depth };
        let panel = 2 * S::F32_LANES;
        for first in (0..panels.columns).step_by(panel) {
            let columns = panel.min(panels.columns - first);
            let elements = &panels.elements[first * panels.rows + panels.from * columns..];
            let mut to = Destination { data: &mut out.elements[first..], stride: out.stride, columns, add: out.add };
            if columns == panel {
                gemm::panel_product::<S, 2>(simd, rows, depth, lhs, elements, &mut to);
            } else {
                gemm::panel_product::<S, 1>(simd, rows, depth, lhs, elements, &mut to);
            }
        }
    }
}

/// Columns of a panel of f64.
const WIDTH: usize = 8;

impl Arithmetic for f64 {
    type Memory = Vec<f64>;

    fn buffer(len: usize) -> Vec<f64> {
        vec![0.0; len]
    }

    #[inline(always)]
    fn tiles<S: Simd>() -> Tiles {
        Tiles { rows: 4, panel: WIDTH, unit: WIDTH }
    }

    #[inline(always)]
    fn product<S: Simd>(
        _: S,
        rows: usize,
        depth: usize,
        lhs: Lhs<'_, f64>,
        panels: Panels<'_, f64>,
        out: Out<'_, f64>,
    ) {
        for first in (0..panels.columns).step_by(WIDTH) {
            let (panel, _) = panels.elements[first * panels.rows + panels.from * WIDTH..].as_chunks::<WIDTH>();
            for i in 0..rows {
                let mut sums = [0.0; WIDTH];
                for (k, panel) in panel[..depth].iter().enumerate() {
                    let factor = lhs.elements[i * lhs.row + k * lhs.depth];
                    sums.iter_mut().zip(panel).for_each(|(sum, x)| *sum += factor * x);
                }
                let row = &mut out.elements[i * out.stride + first..][..WIDTH];
                row.iter_mut().zip(sums).for_each(|(to, sum)| *to = if out.add { *to + sum } else { sum });
            }
        }
    }

    #[inline(always)]
    fn row_dot<S: Simd>(_: S, a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[inline(always)]
    fn row_max<S: Simd>(_: S, row: &[f64]) -> f64 {
        row.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    #[inline(always)]
    fn row_add<S: Simd>(_: S, row: &mut [f64], term: &[f64]) {
        row.iter_mut().zip(term).for_each(|(x, term)| *x += term);
    }

    #[inline(always)]
    fn row_scale<S: Simd>(_: S, row: &mut [f64], factor: f64) {
        row.iter_mut().for_each(|x| *x *= factor);
    }

    #[inline(always)]
    fn row_exp<S: Simd>(_: S, row: &mut [f64], factor: f64, shift: f64) -> f64 {
        row.iter_mut().for_each(|x| *x = (*x * factor - shift).exp());
        row.iter().sum()
    }

    #[inline(always)]
    fn row_gradient<S: Simd>(_: S, scores: &mut [f64], grads: &mut [f64], normaliser: Normaliser<f64>, dot: f64) {
        let Normaliser { factor, shift, inverse } = normaliser;
        for (score, grad) in scores.iter_mut().zip(grads) {
            *score = (*score * factor - shift).exp() * inverse;
            *grad = *score * (*grad - dot);
        }
    }
}
