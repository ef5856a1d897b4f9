//! Truncated decompositions of matrices that are large enough to be iterated on.

use candle_core::{DType, Device, Tensor};
use faer::{Mat, MatRef};
use peft_core::linalg::{TOLERANCE, TruncatedSvd, truncated_svd};
use peft_core::torch_rng::{Arithmetic, TorchRng};
use peft_testkit::strategy;
use proptest::prelude::*;

fn normal(rows: usize, cols: usize, seed: u64) -> Mat<f64> {
    let values = TorchRng::new(seed).normal(0.0, 1.0, rows * cols);
    Mat::from_fn(rows, cols, |i, j| f64::from(values[i * cols + j]))
}

fn orthonormal(rows: usize, count: usize, seed: u64) -> Mat<f64> {
    normal(rows, count, seed).qr().compute_thin_Q()
}

/// A matrix with these singular values, rounded to f32.
fn with_values(rows: usize, cols: usize, values: &[f64], seed: u64) -> Tensor {
    let (u, v) = (orthonormal(rows, values.len(), seed), orthonormal(cols, values.len(), seed + 1));
    let scaled = Mat::from_fn(rows, values.len(), |i, j| u[(i, j)] * values[j]);
    tensor((scaled * v.transpose()).as_ref())
}

fn tensor(matrix: MatRef<'_, f64>) -> Tensor {
    let (rows, cols) = matrix.shape();
    let values: Vec<f32> = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|at| matrix[at] as f32).collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
}

fn wide(tensor: &Tensor) -> Mat<f64> {
    let (rows, cols) = tensor.dims2().unwrap();
    let values: Vec<f64> = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    Mat::from_fn(rows, cols, |i, j| values[i * cols + j])
}

/// Holds a result against faer's whole decomposition in f64: values, what is left of the matrix, and the certificate.
fn check(weight: &Tensor, r: usize) -> TruncatedSvd {
    let found = truncated_svd(weight, r).unwrap();
    let exact = wide(weight);
    let all: Vec<f64> = exact.thin_svd().unwrap().S().column_vector().iter().copied().collect();
    let largest = all[0].max(f64::MIN_POSITIVE);
    let s: Vec<f64> = found.s.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    for (i, (s, exact)) in s.iter().zip(&all).enumerate() {
        assert!((s - exact).abs() <= 1e-6 * largest, "value {i} is {s}, but {exact}; {:?}", found.certificate);
    }
    let (u, vt) = (wide(&found.u), wide(&found.vt));
    let scaled = Mat::from_fn(u.nrows(), u.ncols(), |i, j| u[(i, j)] * s[j]);
    let left = (&exact - scaled * vt).norm_l2();
    let least = all[s.len()..].iter().map(|s| s * s).sum::<f64>().sqrt();
    assert!((left - least).abs() <= 1e-5 * largest, "{left} is left of the matrix, at the best {least}");
    let certificate = &found.certificate;
    assert!(certificate.left.iter().all(|e| *e <= TOLERANCE) && certificate.overlooked <= 1e-6, "{certificate:?}");
    assert!(certificate.right.iter().all(|e| *e <= TOLERANCE), "{certificate:?}");
    assert!(certificate.orthogonality <= 1e-6, "{certificate:?}");
    found
}

/// Spectra that are easy and hard: flat, falling, with steps, with repeated and nearly repeated values, and of low rank.
fn spectrum() -> impl Strategy<Value = fn(usize) -> f64> {
    prop_oneof![
        Just((|_| 1.0) as fn(usize) -> f64),
        Just((|i| 1.0 / (1.0 + i as f64)) as fn(usize) -> f64),
        Just((|i| 0.8f64.powi(i as i32)) as fn(usize) -> f64),
        Just((|i| if i < 5 { 1.0 } else { 0.5 }) as fn(usize) -> f64),
        Just((|i| 1.0 - 1e-7 * i as f64) as fn(usize) -> f64),
        Just((|i| 1.0 - 1e-3 * i as f64) as fn(usize) -> f64),
        Just((|i| if i < 2 { 3.0 - i as f64 } else { 0.0 }) as fn(usize) -> f64),
        Just((|i| if i == 0 { 1e6 } else { 1.0 }) as fn(usize) -> f64),
    ]
}

proptest! {
    #![proptest_config(strategy::config(24))]

    #[test]
    fn leading_triplets_are_those_of_the_whole_decomposition(
        (rows, cols) in (96usize..180, 96usize..180),
        share in 1usize..9,
        values in spectrum(),
        seed in 0u64..1000,
    ) {
        let side = rows.min(cols);
        let values: Vec<f64> = (0..side).map(values).collect();
        check(&with_values(rows, cols, &values, seed), (side * share / 72).max(1));
    }

    #[test]
    fn so_are_those_of_random_matrices_in_any_dtype(
        (rows, cols) in (96usize..200, 96usize..200),
        r in 1usize..12,
        dtype in strategy::dtype(),
        seed in 0u64..1000,
    ) {
        let weight = tensor(normal(rows, cols, seed).as_ref()).to_dtype(dtype).unwrap();
        let found = check(&weight, r);
        // A space of moderate dimension is enough for a few triplets; for many of a small matrix it need not be.
        let few = r <= 4 && rows.min(cols) >= 150;
        prop_assert!(!few || !found.certificate.complete, "{r} of {rows} x {cols} were not iterated on");
    }
}

#[test]
fn matrices_without_a_direction_are_no_trouble() {
    for r in [1, 5] {
        check(&Tensor::zeros((120, 100), DType::F32, &Device::Cpu).unwrap(), r);
        check(&Tensor::eye(128, DType::F32, &Device::Cpu).unwrap(), r);
        check(&Tensor::ones((100, 130), DType::F32, &Device::Cpu).unwrap(), r);
    }
}

#[test]
fn the_size_of_the_numbers_does_not_matter() {
    let weight = tensor(normal(150, 110, 3).as_ref());
    let plain = truncated_svd(&weight, 2).unwrap();
    for power in [-100, -40, 40, 100] {
        let scale = 2f64.powi(power);
        let found = truncated_svd(&(&weight * scale).unwrap(), 2).unwrap();
        assert!(!found.certificate.complete, "2^{power}");
        let s: Vec<f32> = found.s.to_vec1().unwrap();
        for (s, plain) in s.iter().zip(plain.s.to_vec1::<f32>().unwrap()) {
            let ratio = f64::from(*s) / f64::from(plain) / scale;
            assert!((ratio - 1.0).abs() < 1e-6, "2^{power}: {ratio}");
        }
    }
}

#[test]
fn a_leading_direction_that_the_start_misses_is_found() {
    // The start block is known, so a direction can be chosen that no product with the matrix would ever lead to.
    let (rows, cols) = (160, 120);
    let drawn = TorchRng::new(0).with_arithmetic(Arithmetic::Scalar).normal(0.0, 1.0, 3 * cols);
    let start = Mat::from_fn(cols, 3, |i, j| f64::from(drawn[j * cols + i]));
    let others = normal(cols, 1, 5);
    let all = Mat::from_fn(cols, 4, |i, j| if j < 3 { start[(i, j)] } else { others[(i, 0)] });
    let hidden = all.qr().compute_thin_Q().col(3).to_owned();
    let rest = normal(rows, cols, 6);
    let along = &rest * &hidden;
    let u = orthonormal(rows, 1, 7);
    let weight = Mat::from_fn(rows, cols, |i, j| rest[(i, j)] - along[i] * hidden[j] + 60.0 * u[(i, 0)] * hidden[j]);
    let found = check(&tensor(weight.as_ref()), 2);
    assert!(found.s.to_vec1::<f32>().unwrap()[0] > 59.0);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let bits = |svd: &TruncatedSvd| -> Vec<u32> {
        let tensors = [&svd.u, &svd.s, &svd.vt];
        tensors.iter().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).map(f32::to_bits).collect()
    };
    // The second is large enough to be shared out among threads.
    for (rows, cols) in [(300, 200), (2048, 2050)] {
        let weight =
            Tensor::from_vec(TorchRng::new(8).normal(0.0, 1.0, rows * cols), (rows, cols), &Device::Cpu).unwrap();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bits(&truncated_svd(&weight, 2).unwrap()))
        };
        let one = on(1);
        assert!(one == on(2) && one == on(4), "{rows} x {cols}");
    }
}
