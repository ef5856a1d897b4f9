#![allow(clippy::unwrap_used)]

use super::product::{ByRows, product, product_by_rows};
use super::row_product::row_product;
use super::{DEPTH, Matrix, Panels, Values};
use crate::cpu::Element;
use half::{bf16, f16};

/// Irregular values that depend on nothing but length and seed.
fn sample(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| (((i * i + 7 * i) % 1_000_003 + 13 * seed + 1) as f32 * 0.7).sin()).collect()
}

/// The product in f64 of `(m, k)` and `(n, k)`.
fn expected(x: &[f32], w: &[f32], m: usize, n: usize, k: usize) -> Vec<f64> {
    let dot = |i: usize, j: usize| {
        x[i * k..][..k].iter().zip(&w[j * k..][..k]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    (0..m * n).map(|at| dot(at / n, at % n)).collect()
}

#[track_caller]
fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - e).abs() <= tolerance * e.abs().max(1.0), "element {i}: {a} instead of {e}");
    }
}

fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|at| x[at % rows * columns + at / rows]).collect()
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 50, 33),
    (3, 2, 700),
    (13, 12, 1),
    (33, 49, 17),
    (65, 100, DEPTH + 5),
    (130, 7, 2 * DEPTH + 1),
    (5, 130, 64),
    (257, 97, 40),
];

#[test]
fn products_are_those_of_f64_at_odd_sizes_and_in_any_order_of_memory() {
    for (m, n, k) in SHAPES {
        let (x, w) = (sample(m * k, 1), sample(n * k, 2));
        let (xt, wt) = (transposed(&x, m, k), transposed(&w, n, k));
        let expected = expected(&x, &w, m, n, k);
        let tolerance = 1e-6 + 5e-8 * k as f64;
        for x in [Matrix::of(&x, m, k), Matrix::of(&xt, k, m).t()] {
            for w in [Matrix::of(&w, n, k), Matrix::of(&wt, k, n).t()] {
                let mut out = vec![f32::NAN; m * n];
                product_by_rows(&mut out, n, &[ByRows { x: &Panels::pack(x.t(), true), w }], None);
                assert_close(&out, &expected, tolerance);
                let mut out = vec![f32::NAN; m * n];
                product(&mut out, &[(x, w.t())]);
                assert_close(&out, &expected, tolerance);
                if !x.is_column_major() && !w.is_column_major() {
                    let mut out = vec![f32::NAN; m * n];
                    row_product(&mut out, n, &[(x, w)], None);
                    assert_close(&out, &expected, tolerance);
                }
            }
        }
    }
}

#[test]
fn terms_and_bias_are_added() {
    let (m, n, k, r) = (37, 53, 90, 3);
    let (x, w, low, b) = (sample(m * k, 1), sample(n * k, 2), sample(m * r, 3), sample(n * r, 4));
    let bias = sample(n, 5);
    let first = expected(&x, &w, m, n, k);
    let sum = first.iter().zip(expected(&low, &b, m, n, r)).map(|(a, b)| a + b).collect::<Vec<_>>();
    let (x, low) = (Matrix::of(&x, m, k), Matrix::of(&low, m, r));
    let (w, b) = (Matrix::of(&w, n, k), Matrix::of(&b, n, r));
    let mut out = vec![f32::NAN; m * n];
    product(&mut out, &[(x, w.t()), (low, b.t())]);
    assert_close(&out, &sum, 2e-6);
    let with_bias: Vec<f64> = sum.iter().enumerate().map(|(at, sum)| sum + f64::from(bias[at % n])).collect();
    row_product(&mut out, n, &[(x, w), (low, b)], Some(&bias));
    assert_close(&out, &with_bias, 1e-6 + 5e-8 * (k + r) as f64);
    let terms = [(x, w), (low, b)].map(|(x, w)| (Panels::pack(x.t(), false), w));
    let terms = terms.each_ref().map(|(x, w)| ByRows { x, w: *w });
    product_by_rows(&mut out, n, &terms, Some(&bias));
    assert_close(&out, &with_bias, 2e-6);
}

#[test]
fn sixteen_bits_are_widened_exactly_and_rounded_once() {
    fn check<T: Element<Acc = f32>>(values: for<'a> fn(&'a [T]) -> Values<'a>) {
        let (m, n, k) = (29, 61, DEPTH + 20);
        let narrow = |x: Vec<f32>| x.into_iter().map(T::narrow).collect::<Vec<_>>();
        let (x, w, bias) = (narrow(sample(m * k, 1)), narrow(sample(n * k, 2)), narrow(sample(n, 3)));
        let widen = |x: &[T]| x.iter().map(|x| x.widen()).collect::<Vec<_>>();
        let (x32, w32) = (widen(&x), widen(&w));
        let mut wide = vec![f32::NAN; m * n];
        product(&mut wide, &[(Matrix::of(&x32, m, k), Matrix::of(&w32, n, k).t())]);
        let mut out = vec![f32::NAN; m * n];
        let x_narrow = x;
        let (x, w) = (Matrix::row_major(values(&x_narrow), m, k), Matrix::row_major(values(&w), n, k));
        product(&mut out, &[(x, w.t())]);
        assert_eq!(out, wide);
        let mut out = vec![T::zero(); m * n];
        product_by_rows(&mut out, n, &[ByRows { x: &Panels::pack(x.t(), true), w }], Some(&bias));
        let rounded = wide.iter().enumerate().map(|(at, wide)| T::narrow(wide + bias[at % n].widen()));
        assert_eq!(widen(&out), rounded.map(|x| x.widen()).collect::<Vec<_>>());
        let mut wide = vec![f32::NAN; m * n];
        row_product(&mut wide, n, &[(Matrix::of(&x32, m, k), Matrix::of(&w32, n, k))], None);
        for tokens in [1, m] {
            let mut out = vec![T::zero(); tokens * n];
            row_product(&mut out, n, &[(Matrix::row_major(values(&x_narrow), tokens, k), w)], Some(&bias));
            let rounded = wide.iter().enumerate().map(|(at, wide)| T::narrow(wide + bias[at % n].widen()).widen());
            assert_eq!(widen(&out), rounded.take(tokens * n).collect::<Vec<_>>());
        }
        let mut transposed = vec![f32::NAN; k * k];
        product(&mut transposed, &[(w.t(), w)]);
        let mut same = vec![f32::NAN; k * k];
        product(&mut same, &[(Matrix::of(&w32, n, k).t(), Matrix::of(&w32, n, k))]);
        assert_eq!(transposed, same);
    }
    check::<bf16>(|values| Values::Bf16(values));
    check::<f16>(|values| Values::F16(values));
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_number_of_tokens_beyond_one() {
    let (m, n, k) = (150, 200, DEPTH + 100);
    let (x, w) = (sample(m * k, 1), sample(n * k, 2));
    let of = |threads: usize, tokens: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (x, w) = (Matrix::of(&x, tokens, k), Matrix::of(&w, n, k));
        let (mut by_rows, mut plain) = (vec![f32::NAN; tokens * n], vec![f32::NAN; tokens * n]);
        pool.install(|| {
            product_by_rows(&mut by_rows, n, &[ByRows { x: &Panels::pack(x.t(), true), w }], None);
            product(&mut plain, &[(x, w.t())]);
        });
        if tokens > 1 {
            assert_eq!(by_rows, plain);
        }
        by_rows
    };
    let all = of(1, m);
    assert_eq!(of(5, m), all);
    assert_eq!(of(1, 1), of(5, 1));
    for tokens in [2, 17, 64] {
        assert_eq!(of(2, tokens), all[..tokens * n]);
    }
}

#[test]
fn bits_of_row_products_depend_neither_on_threads_nor_on_the_number_of_tokens() {
    let (m, n, k) = (150, 203, DEPTH + 100);
    let (x, w, low, b) = (sample(m * k, 1), sample(n * k, 2), sample(m * 3, 3), sample(n * 3, 4));
    let of = |threads: usize, first: usize, tokens: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (x, low) = (Matrix::of(&x[first * k..], tokens, k), Matrix::of(&low[first * 3..], tokens, 3));
        let mut out = vec![f32::NAN; tokens * n];
        let terms = [(x, Matrix::of(&w, n, k)), (low, Matrix::of(&b, n, 3))];
        pool.install(|| row_product(&mut out, n, &terms, None));
        out
    };
    let all = of(1, 0, m);
    for threads in [1, 2, 5] {
        for (first, tokens) in [(0, m), (0, 1), (7, 1), (3, 2), (10, 64), (20, 97)] {
            assert_eq!(
                of(threads, first, tokens),
                all[first * n..][..tokens * n],
                "{tokens} tokens, {threads} threads"
            );
        }
    }
}

#[test]
fn nothing_to_add_up_gives_zeros() {
    let mut out = vec![f32::NAN; 6];
    product(&mut out, &[(Matrix::of(&[], 2, 0), Matrix::of(&[], 0, 3))]);
    assert_eq!(out, [0.0; 6]);
    let mut out = vec![f32::NAN; 6];
    let x = Panels::pack(Matrix::of(&[], 0, 2), true);
    product_by_rows(&mut out, 3, &[ByRows { x: &x, w: Matrix::of(&[], 3, 0) }], None);
    assert_eq!(out, [0.0; 6]);
    product(&mut [], &[(Matrix::of(&[], 0, 4), Matrix::of(&[0.0; 8], 4, 2))]);
}
