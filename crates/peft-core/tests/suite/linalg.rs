//! Truncated singular value decompositions against faer's in f64.

use candle_core::{DType, Device, Tensor};
use faer::Mat;
use peft_core::linalg::truncated_svd;
use peft_core::torch_rng::TorchRng;
use proptest::prelude::*;

fn random(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(TorchRng::new(seed).normal(0.0, 1.0, rows * cols), (rows, cols), &Device::Cpu).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<Vec<f64>> {
    tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// All singular values, from a decomposition in f64.
fn singular_values(matrix: &Tensor) -> Vec<f64> {
    let rows = wide(matrix);
    let matrix = Mat::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j]);
    matrix.thin_svd().unwrap().S().column_vector().iter().copied().collect()
}

/// The largest entry of `a - b`.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let both = (a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap();
    both.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Singular values, orthonormal vectors, and `W v = s u`, `W^T u = s v` to f32 accuracy.
fn assert_is_leading(matrix: &Tensor, r: usize) {
    let svd = truncated_svd(matrix, r).unwrap();
    let exact = singular_values(matrix);
    let rank = r.min(exact.len());
    let (u, s, vt) = (&svd.u, &svd.s, &svd.vt);
    assert_eq!((u.dims()[1], s.dims()[0], vt.dims()[0]), (rank, rank, rank));
    let limit = 2e-5 * exact[0].max(1e-30);
    for (got, want) in s.to_vec1::<f32>().unwrap().into_iter().zip(&exact) {
        assert!((f64::from(got) - want).abs() <= limit, "{got} is not {want}");
    }
    let eye = Tensor::eye(rank, DType::F32, &Device::Cpu).unwrap();
    assert!(difference(&u.t().unwrap().matmul(u).unwrap(), &eye) < 1e-4);
    assert!(difference(&vt.matmul(&vt.t().unwrap()).unwrap(), &eye) < 1e-4);
    let matrix = matrix.to_dtype(DType::F32).unwrap().contiguous().unwrap();
    let scaled = u.broadcast_mul(s).unwrap();
    assert!(difference(&matrix.matmul(&vt.t().unwrap()).unwrap(), &scaled) <= limit);
    let scaled = vt.broadcast_mul(&s.unsqueeze(1).unwrap()).unwrap();
    assert!(difference(&u.t().unwrap().matmul(&matrix).unwrap(), &scaled) <= limit);
}

proptest! {
    #![proptest_config(peft_testkit::strategy::config(32))]

    #[test]
    fn any_shape_and_rank(rows in 1usize..40, cols in 1usize..40, r in 1usize..45, seed in 0u64..1000) {
        assert_is_leading(&random(rows, cols, seed), r);
    }
}

#[test]
fn decaying_repeated_and_missing_singular_values() {
    let (u, v) = (truncated_svd(&random(24, 16, 1), 16).unwrap().u, truncated_svd(&random(16, 16, 2), 16).unwrap().vt);
    for spectrum in [
        (0..16).map(|i| 0.5f32.powi(i)).collect::<Vec<_>>(),
        vec![3.0; 16],
        (0..16).map(|i| if i < 5 { 2.0 } else { 0.0 }).collect(),
        vec![0.0; 16],
    ] {
        let s = Tensor::from_vec(spectrum, 16, &Device::Cpu).unwrap();
        assert_is_leading(&u.broadcast_mul(&s).unwrap().matmul(&v).unwrap(), 4);
    }
}

#[test]
fn any_dtype_and_memory_layout() {
    let matrix = random(12, 20, 3);
    for dtype in [DType::F64, DType::BF16, DType::F16] {
        let typed = matrix.to_dtype(dtype).unwrap();
        assert_eq!(truncated_svd(&typed, 3).unwrap().u.dtype(), DType::F32);
        assert_is_leading(&typed, 3);
    }
    let view = matrix.t().unwrap();
    assert!(!view.is_contiguous());
    assert_is_leading(&view, 3);
    let copy = view.contiguous().unwrap();
    assert_eq!(difference(&truncated_svd(&view, 3).unwrap().u, &truncated_svd(&copy, 3).unwrap().u), 0.0);
}

#[test]
fn signs_follow_the_largest_entry() {
    for seed in 0..8 {
        let svd = truncated_svd(&random(9, 7, seed), 7).unwrap();
        for column in svd.u.t().unwrap().to_vec2::<f32>().unwrap() {
            let largest = column.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
            assert!(largest > 0.0, "{column:?}");
        }
    }
}

#[test]
fn bad_matrices_are_refused() {
    let refused = |tensor: &Tensor, r| truncated_svd(tensor, r).unwrap_err().to_string();
    let nan = Tensor::new(&[[1f32, f32::NAN]], &Device::Cpu).unwrap();
    assert!(refused(&nan, 1).contains("NaN"));
    assert!(refused(&random(3, 3, 0), 0).contains("rank 0"));
    assert!(!refused(&Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap(), 1).is_empty());
    assert!(refused(&Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap(), 1).contains("0 x 3"));
    let infinite = Tensor::new(&[[1f32, f32::NEG_INFINITY]], &Device::Cpu).unwrap();
    assert!(refused(&infinite, 1).contains("inf"));
    assert!(refused(&Tensor::new(&[[1f64, 1e39]], &Device::Cpu).unwrap(), 1).contains("inf"));
    assert!(refused(&Tensor::new(&[[1u32, 2]], &Device::Cpu).unwrap(), 1).contains("u32"));
}

/// The paths inside the decomposition: one row or column, much taller or wider than the other way, many columns.
#[test]
fn shapes_of_every_kind() {
    for (rows, cols) in [(1, 1), (1, 50), (50, 1), (300, 20), (20, 300), (160, 150), (130, 400)] {
        for r in [1, 2, 7] {
            assert_is_leading(&random(rows, cols, 4), r);
        }
        assert_is_leading(&Tensor::zeros((rows, cols), DType::F32, &Device::Cpu).unwrap(), 3);
        assert_is_leading(&Tensor::ones((rows, cols), DType::F32, &Device::Cpu).unwrap(), 3);
    }
    assert_is_leading(&Tensor::eye(140, DType::F32, &Device::Cpu).unwrap(), 5);
}

#[test]
fn magnitudes_whose_squares_leave_the_range_of_f32() {
    for scale in [1e-28, 1e28] {
        assert_is_leading(&random(30, 40, 5).affine(scale, 0.0).unwrap(), 4);
    }
    let sum_overflows = Tensor::new(&[[f32::MAX, f32::MAX]], &Device::Cpu).unwrap();
    assert!(truncated_svd(&sum_overflows, 1).unwrap_err().to_string().contains("beyond the range"));
    let subnormal = Tensor::new(&[[f32::from_bits(1), 0.0], [0.0, f32::from_bits(3)]], &Device::Cpu).unwrap();
    let svd = truncated_svd(&subnormal, 2).unwrap();
    assert_eq!(svd.s.to_vec1::<f32>().unwrap(), [f32::from_bits(3), f32::from_bits(1)]);
}

#[test]
fn input_is_narrowed_to_f32() {
    let exact = random(6, 5, 6).to_dtype(DType::F64).unwrap().affine(1.0 / 3.0, 0.0).unwrap();
    let narrow = exact.to_dtype(DType::F32).unwrap();
    assert_eq!(bits(&exact, 5), bits(&narrow, 5));
}

#[test]
fn signs_do_not_depend_on_the_sign_of_the_matrix() {
    let matrix = random(11, 8, 7);
    let (plain, negated) = (truncated_svd(&matrix, 3).unwrap(), truncated_svd(&matrix.neg().unwrap(), 3).unwrap());
    assert!(difference(&plain.u, &negated.u) < 1e-5);
    assert!(difference(&plain.vt, &negated.vt.neg().unwrap()) < 1e-5);
}

#[test]
fn the_first_of_equally_large_entries_is_positive() {
    for (column, sign) in [([[0f32], [-1.0], [1.0]], -1.0), ([[0.0], [1.0], [-1.0]], 1.0)] {
        let svd = truncated_svd(&Tensor::new(&column, &Device::Cpu).unwrap(), 1).unwrap();
        let u = svd.u.to_vec2::<f32>().unwrap();
        assert_eq!(u[1][0], -u[2][0], "a tie");
        assert!(u[1][0] > 0.0);
        assert_eq!(svd.vt.to_vec2::<f32>().unwrap(), [[sign]]);
    }
}

fn bits(matrix: &Tensor, r: usize) -> Vec<u32> {
    let svd = truncated_svd(matrix, r).unwrap();
    let values = [svd.u, svd.s, svd.vt].map(|part| part.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    values.into_iter().flatten().map(f32::to_bits).collect()
}

/// Also side by side on several threads, where memory lies elsewhere every time.
#[test]
fn the_same_matrix_gives_the_same_bits() {
    let matrix = random(150, 131, 8);
    let first = bits(&matrix, 4);
    std::thread::scope(|scope| {
        for shift in 0..4 {
            let (matrix, first) = (&matrix, &first);
            scope.spawn(move || {
                for i in 0..4 {
                    let _elsewhere = vec![0u8; 40 * shift + 24 * i + 1];
                    assert_eq!(bits(&matrix.copy().unwrap(), 4), *first);
                }
            });
        }
    });
}
