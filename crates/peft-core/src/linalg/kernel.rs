//! Products of a few rows with a few vectors, in registers: what every pass over a matrix is made of.
//!
//! A group of rows is multiplied with all vectors before the next one is read, so a matrix is read once however many vectors there are.
//! The instructions are chosen when the program runs. The order of additions depends on the shapes and on the width of the registers
//! alone, so a machine gives the same bits every time.

use pulp::{Arch, Simd, WithSimd};
use std::array;

/// Rows that are multiplied together. With [`COLUMNS`] vectors their sums fill the 16 registers of AVX2 to the last one.
pub(super) const ROWS: usize = 4;
/// Vectors that are multiplied together.
const COLUMNS: usize = 3;
/// Registers that are added up before they join the running sum: rounding errors grow with the length of a chain of additions.
const CHAIN: usize = 32;

#[cfg(test)]
thread_local! {
    /// Makes this thread compute as a machine without vector instructions does.
    pub(super) static SCALAR: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The instructions to use.
fn arch() -> Arch {
    #[cfg(test)]
    if SCALAR.get() {
        return Arch::Scalar;
    }
    Arch::new()
}

/// A number that comes in registers.
pub(super) trait Float: Copy + Default + Send + Sync {
    /// A register full of them.
    type Register<S: Simd>: Copy;
    /// The full registers of a slice, and what is left.
    fn registers<S: Simd>(values: &[Self]) -> (&[Self::Register<S>], &[Self]);
    fn registers_mut<S: Simd>(values: &mut [Self]) -> (&mut [Self::Register<S>], &mut [Self]);
    /// A register with fewer numbers than fit, zeros behind them.
    fn load_rest<S: Simd>(simd: S, values: &[Self]) -> Self::Register<S>;
    fn store_rest<S: Simd>(simd: S, values: &mut [Self], register: Self::Register<S>);
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Register<S>;
    fn add<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Self::Register<S>;
    /// `a b + c`.
    fn mul_add<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>, c: Self::Register<S>)
    -> Self::Register<S>;
    fn sum<S: Simd>(simd: S, a: Self::Register<S>) -> Self;
}

macro_rules! float {
    ($float:ty, $register:ident, $as:ident, $as_mut:ident, $load:ident, $store:ident, $splat:ident, $add:ident, $mul_add:ident, $sum:ident) => {
        impl Float for $float {
            type Register<S: Simd> = S::$register;
            #[inline(always)]
            fn registers<S: Simd>(values: &[Self]) -> (&[S::$register], &[Self]) {
                S::$as(values)
            }
            #[inline(always)]
            fn registers_mut<S: Simd>(values: &mut [Self]) -> (&mut [S::$register], &mut [Self]) {
                S::$as_mut(values)
            }
            #[inline(always)]
            fn load_rest<S: Simd>(simd: S, values: &[Self]) -> S::$register {
                simd.$load(values)
            }
            #[inline(always)]
            fn store_rest<S: Simd>(simd: S, values: &mut [Self], register: S::$register) {
                simd.$store(values, register);
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
            fn mul_add<S: Simd>(simd: S, a: S::$register, b: S::$register, c: S::$register) -> S::$register {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn sum<S: Simd>(simd: S, a: S::$register) -> Self {
                simd.$sum(a)
            }
        }
    };
}

float!(
    f32,
    f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    partial_load_f32s,
    partial_store_f32s,
    splat_f32s,
    add_f32s,
    mul_add_e_f32s,
    reduce_sum_f32s
);
float!(
    f64,
    f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    partial_load_f64s,
    partial_store_f64s,
    splat_f64s,
    add_f64s,
    mul_add_e_f64s,
    reduce_sum_f64s
);

/// The inner products of rows and vectors: `out[i, j] = rows[i] . vectors[j]`.
///
/// `rows` and `vectors` hold vectors of `len` one after the other; `out` is `(rows, vectors)`.
pub(super) fn dot<T: Float>(rows: &[T], vectors: &[T], len: usize, out: &mut [T]) {
    arch().dispatch(Dot { rows, vectors, len, out });
}

/// Adds multiples of rows to vectors: `vectors[j] += sum_i factors[i, j] rows[i]`.
pub(super) fn add_multiples<T: Float>(rows: &[T], factors: &[T], len: usize, vectors: &mut [T]) {
    add_multiples_of_parts(rows, len, factors, len, vectors);
}

/// [`add_multiples`] for the first `len` numbers of rows that begin `pitch` numbers apart.
pub(super) fn add_multiples_of_parts<T: Float>(rows: &[T], pitch: usize, factors: &[T], len: usize, vectors: &mut [T]) {
    arch().dispatch(AddMultiples { rows, pitch, factors, len, vectors });
}

/// Both at once, with the inner products as factors: `out[j] += sum_i (rows[i] . vectors[j]) rows[i]`.
pub(super) fn add_gram<T: Float>(rows: &[T], vectors: &[T], len: usize, out: &mut [T]) {
    arch().dispatch(AddGram { rows, vectors, len, out });
}

/// The sum of squares.
pub(super) fn square(values: &[f64]) -> f64 {
    let mut square = [0.0];
    dot(values, values, values.len(), &mut square);
    square[0]
}

/// The Euclidean norm.
pub(super) fn norm(values: &[f64]) -> f64 {
    square(values).sqrt()
}

struct Dot<'a, T> {
    rows: &'a [T],
    vectors: &'a [T],
    len: usize,
    out: &'a mut [T],
}

impl<T: Float> WithSimd for Dot<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, vectors, len, out } = self;
        let count = vectors.len() / len;
        for (rows, out) in rows.chunks(ROWS * len).zip(out.chunks_mut(ROWS * count)) {
            dot_group(simd, rows, vectors, len, out);
        }
    }
}

struct AddMultiples<'a, T> {
    rows: &'a [T],
    pitch: usize,
    factors: &'a [T],
    len: usize,
    vectors: &'a mut [T],
}

impl<T: Float> WithSimd for AddMultiples<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, pitch, factors, len, vectors } = self;
        let count = vectors.len() / len;
        for (rows, factors) in rows.chunks(ROWS * pitch).zip(factors.chunks(ROWS * count)) {
            add_group(simd, rows, pitch, factors, len, vectors);
        }
    }
}

struct AddGram<'a, T> {
    rows: &'a [T],
    vectors: &'a [T],
    len: usize,
    out: &'a mut [T],
}

impl<T: Float> WithSimd for AddGram<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, vectors, len, out } = self;
        let count = vectors.len() / len;
        let mut factors = vec![T::default(); ROWS * count];
        for rows in rows.chunks(ROWS * len) {
            let factors = &mut factors[..rows.len() / len * count];
            dot_group(simd, rows, vectors, len, factors);
            add_group(simd, rows, len, factors, len, out);
        }
    }
}

/// [`dot`] for at most [`ROWS`] rows.
#[inline(always)]
fn dot_group<T: Float, S: Simd>(simd: S, rows: &[T], vectors: &[T], len: usize, out: &mut [T]) {
    let count = vectors.len() / len;
    for (tile, vectors) in vectors.chunks(COLUMNS * len).enumerate() {
        let width = vectors.len() / len;
        if rows.len() == ROWS * len {
            let out = &mut out[tile * COLUMNS..];
            match width {
                3 => dot_tile::<T, S, ROWS, 3>(simd, rows, vectors, len, count, out),
                2 => dot_tile::<T, S, ROWS, 2>(simd, rows, vectors, len, count, out),
                _ => dot_tile::<T, S, ROWS, 1>(simd, rows, vectors, len, count, out),
            }
        } else {
            for (row, out) in rows.chunks(len).zip(out.chunks_mut(count)) {
                let out = &mut out[tile * COLUMNS..];
                match width {
                    3 => dot_tile::<T, S, 1, 3>(simd, row, vectors, len, count, out),
                    2 => dot_tile::<T, S, 1, 2>(simd, row, vectors, len, count, out),
                    _ => dot_tile::<T, S, 1, 1>(simd, row, vectors, len, count, out),
                }
            }
        }
    }
}

/// [`add_multiples_of_parts`] for at most [`ROWS`] rows.
#[inline(always)]
fn add_group<T: Float, S: Simd>(simd: S, rows: &[T], pitch: usize, factors: &[T], len: usize, vectors: &mut [T]) {
    let count = vectors.len() / len;
    for (tile, vectors) in vectors.chunks_mut(COLUMNS * len).enumerate() {
        let width = vectors.len() / len;
        if rows.len().div_ceil(pitch) == ROWS {
            let factors = (&factors[tile * COLUMNS..], count);
            match width {
                3 => add_tile::<T, S, ROWS, 3>(simd, (rows, pitch), factors, len, vectors),
                2 => add_tile::<T, S, ROWS, 2>(simd, (rows, pitch), factors, len, vectors),
                _ => add_tile::<T, S, ROWS, 1>(simd, (rows, pitch), factors, len, vectors),
            }
        } else {
            for (row, factors) in rows.chunks(pitch).zip(factors.chunks(count)) {
                let factors = (&factors[tile * COLUMNS..], count);
                match width {
                    3 => add_tile::<T, S, 1, 3>(simd, (row, pitch), factors, len, vectors),
                    2 => add_tile::<T, S, 1, 2>(simd, (row, pitch), factors, len, vectors),
                    _ => add_tile::<T, S, 1, 1>(simd, (row, pitch), factors, len, vectors),
                }
            }
        }
    }
}

/// `R` rows by `C` vectors; rows of `out` are `stride` apart.
#[inline(always)]
fn dot_tile<T: Float, S: Simd, const R: usize, const C: usize>(
    simd: S,
    rows: &[T],
    vectors: &[T],
    len: usize,
    stride: usize,
    out: &mut [T],
) {
    let rows: [_; R] = array::from_fn(|i| T::registers::<S>(&rows[i * len..(i + 1) * len]));
    let vectors: [_; C] = array::from_fn(|j| T::registers::<S>(&vectors[j * len..(j + 1) * len]));
    let full = vectors[0].0.len();
    let (rows_full, vectors_full) = (rows.map(|(full, _)| full), vectors.map(|(full, _)| full));
    let zero = [[T::splat(simd, T::default()); C]; R];
    let mut sums = zero;
    let mut from = 0;
    while from < full {
        let to = full.min(from + CHAIN);
        let rows = rows_full.map(|row| &row[from..to]);
        let vectors = vectors_full.map(|vector| &vector[from..to]);
        let mut chain = zero;
        for k in 0..to - from {
            let vectors: [_; C] = array::from_fn(|j| vectors[j][k]);
            for i in 0..R {
                let row = rows[i][k];
                for j in 0..C {
                    chain[i][j] = T::mul_add(simd, row, vectors[j], chain[i][j]);
                }
            }
        }
        for i in 0..R {
            for j in 0..C {
                sums[i][j] = T::add(simd, sums[i][j], chain[i][j]);
            }
        }
        from = to;
    }
    if !vectors[0].1.is_empty() {
        let vectors = vectors.map(|(_, rest)| T::load_rest(simd, rest));
        for i in 0..R {
            let row = T::load_rest(simd, rows[i].1);
            for j in 0..C {
                sums[i][j] = T::mul_add(simd, row, vectors[j], sums[i][j]);
            }
        }
    }
    for i in 0..R {
        for j in 0..C {
            out[i * stride + j] = T::sum(simd, sums[i][j]);
        }
    }
}

/// `R` rows by `C` vectors; rows, and those of factors, come with the distance between them.
#[expect(clippy::needless_range_loop, reason = "one index runs over the rows and the vectors")]
#[inline(always)]
fn add_tile<T: Float, S: Simd, const R: usize, const C: usize>(
    simd: S,
    (rows, pitch): (&[T], usize),
    (factors, stride): (&[T], usize),
    len: usize,
    vectors: &mut [T],
) {
    let rows: [_; R] = array::from_fn(|i| T::registers::<S>(&rows[i * pitch..i * pitch + len]));
    let factors: [[_; C]; R] = array::from_fn(|i| array::from_fn(|j| T::splat(simd, factors[i * stride + j])));
    let full = rows[0].0.len();
    let rows_full = rows.map(|(row, _)| &row[..full]);
    let mut vectors = vectors.chunks_exact_mut(len);
    let vectors: [_; C] = array::from_fn(|_| {
        let (registers, rest) = T::registers_mut::<S>(vectors.next().unwrap_or_default());
        (&mut registers[..full], rest)
    });
    for k in 0..full {
        let rows: [_; R] = array::from_fn(|i| rows_full[i][k]);
        for j in 0..C {
            let mut sum = vectors[j].0[k];
            for i in 0..R {
                sum = T::mul_add(simd, rows[i], factors[i][j], sum);
            }
            vectors[j].0[k] = sum;
        }
    }
    if !rows[0].1.is_empty() {
        let rows = rows.map(|(_, rest)| T::load_rest(simd, rest));
        for j in 0..C {
            let mut sum = T::load_rest(simd, vectors[j].1);
            for i in 0..R {
                sum = T::mul_add(simd, rows[i], factors[i][j], sum);
            }
            T::store_rest(simd, vectors[j].1, sum);
        }
    }
}
