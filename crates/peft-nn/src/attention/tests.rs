//! The kernels against their specification, and what only shows inside of the crate.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Result, Tensor};

use super::geometry::{Arrangement, Geometry};
use super::node::Attention;
use super::{AttentionOptions, Packing, attention, composed, cpu};
use crate::checks::acc_dtype;
use crate::cpu::simd::{with_each_arch, without_vectors};
use crate::testing::{assert_close, sample};

/// With the tolerance that rounding asks for: scores reach 30, so the exponentials of both forms are off by 30 units.
const DTYPES: [(DType, f64); 4] = [(DType::F64, 1e-13), F32, BF16, (DType::F16, 1.0 / 512.0)];
const F32: (DType, f64) = (DType::F32, 2e-5);
const BF16: (DType, f64) = (DType::BF16, 1.0 / 64.0);

/// The sizes and options of one attention.
#[derive(Clone)]
struct Case {
    arrangement: Arrangement,
    batch: usize,
    heads: [usize; 2],
    queries: usize,
    keys: usize,
    head_dim: usize,
    value_dim: usize,
    /// Whether the rotary tables, if there are any, are the same for each batch entry.
    rotary: Option<bool>,
    options: AttentionOptions,
}

impl Case {
    fn new(heads: [usize; 2], positions: [usize; 2], widths: [usize; 2], options: AttentionOptions) -> Self {
        let ([queries, keys], [head_dim, value_dim]) = (positions, widths);
        let arrangement = Arrangement::Separate;
        Self { arrangement, batch: 2, heads, queries, keys, head_dim, value_dim, rotary: None, options }
    }

    fn merged(self, rotary: Option<bool>) -> Self {
        Self { arrangement: Arrangement::Merged, rotary, ..self }
    }

    fn op(&self, dtype: DType) -> Attention {
        let Self { arrangement, batch, heads: [heads, kv_heads], queries, keys, head_dim, value_dim, .. } = *self;
        let operand = |heads: usize, positions: usize, width: usize, seed: usize| {
            sample(arrangement.shape(batch, heads, positions, width), seed, dtype)
        };
        let q = operand(heads, queries, head_dim, 1);
        let k = operand(kv_heads, keys, head_dim, 2);
        let v = operand(kv_heads, keys, value_dim, 3);
        let geometry = match arrangement {
            Arrangement::Separate => Geometry::separate("test", &q, &k, &v),
            Arrangement::Merged => Geometry::merged("test", [&q, &k, &v], heads, kv_heads),
        };
        let mut op = Attention::new("test", [&q, &k, &v], geometry.unwrap(), &self.options).unwrap();
        op.rotary = self.rotary.map(|shared| {
            let shape = if shared { vec![keys, head_dim / 2] } else { vec![batch, keys, head_dim / 2] };
            let angles = sample(shape, 4, acc_dtype(dtype));
            (angles.cos().unwrap(), angles.sin().unwrap())
        });
        op
    }

    /// Output and gradients of the kernel, and those of candle's operations.
    #[track_caller]
    fn check(&self, (dtype, tolerance): (DType, f64)) {
        let mut op = self.op(dtype);
        let (output, normalisers) = cpu::forward(&op).unwrap();
        let output = output.into_tensor();
        assert_close(&output, &composed::forward(&op).unwrap().into_tensor(), tolerance);
        op.normalisers = Some(normalisers.clone());
        let grad = sample(output.shape(), 5, dtype);
        let kernel = cpu::backward(&op, &output, &normalisers, &grad, [true; 3]).unwrap();
        let composed = composed::backward(&op, &grad, [true; 3]).unwrap();
        for (kernel, composed) in kernel.into_iter().zip(composed) {
            assert_near(&kernel.unwrap(), &composed.unwrap(), tolerance);
        }
    }
}

fn elements(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Gradients are compared with the largest one, and one: small ones are differences of large ones, rotated ones of rounded ones.
#[track_caller]
fn assert_near(kernel: &Tensor, composed: &Tensor, tolerance: f64) {
    assert_eq!((kernel.dims(), kernel.dtype()), (composed.dims(), composed.dtype()));
    let largest = elements(composed).into_iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
    for (i, (a, b)) in elements(kernel).into_iter().zip(elements(composed)).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * largest,
            "element {i}: {a} by the kernel, {b} composed, {largest} at most"
        );
    }
}

/// `(2, keys)`: padding at both ends and in between in the first entry, nothing but padding in the second.
fn holes(keys: usize) -> Tensor {
    let keep = |at: usize| at < keys && (at > keys / 5 && at < keys - keys / 7 && !at.is_multiple_of(5) || keys == 1);
    let mask = (0..2 * keys).map(|at| u8::from(keep(at))).collect();
    Tensor::from_vec(mask, (2, keys), &Device::Cpu).unwrap()
}

/// `(2, keys)`: padding at the left of the first entry.
fn left(keys: usize, padding: usize) -> Tensor {
    let mask = (0..2 * keys).map(|at| u8::from(at >= padding)).collect();
    Tensor::from_vec(mask, (2, keys), &Device::Cpu).unwrap()
}

fn all_options(keys: usize) -> Vec<AttentionOptions> {
    let window = AttentionOptions::full().with_window(keys / 3 + 1).with_scale(0.4);
    vec![
        AttentionOptions::full(),
        AttentionOptions::full().with_key_padding(holes(keys)),
        AttentionOptions::causal(),
        AttentionOptions::causal().with_key_padding(left(keys, keys / 4)),
        window.clone(),
        window.with_key_padding(holes(keys)),
    ]
}

#[test]
fn the_kernel_computes_the_same_at_odd_sizes() {
    for dtype in DTYPES {
        for (at, length) in [1, 31, 33, 65, 130].into_iter().enumerate() {
            for options in all_options(length) {
                for (heads, widths) in [([3, 1], [16, 6]), ([2, 2], [6, 16]), ([3, 1], [80, 64])] {
                    let case = Case::new(heads, [length, length], widths, options.clone());
                    case.check(dtype);
                    case.clone().merged(None).check(dtype);
                    case.merged(Some(at % 2 == 0)).check(dtype);
                }
            }
        }
    }
}

#[test]
fn queries_at_the_end_of_more_keys() {
    for dtype in DTYPES {
        // One, some and many queries: those that share a key are few in the first two cases.
        for positions in [[1, 70], [4, 33], [20, 100]] {
            for options in all_options(positions[1]) {
                let case = Case::new([3, 1], positions, [16, 18], options);
                case.check(dtype);
                case.merged(Some(false)).check(dtype);
            }
        }
    }
}

#[test]
fn more_queries_than_keys_unless_causal() {
    Case::new([2, 1], [50, 7], [8, 8], AttentionOptions::full()).check(F32);
}

#[test]
fn lengths_of_many_blocks_and_tasks() {
    for options in all_options(900) {
        Case::new([3, 1], [900, 900], [8, 8], options).check(F32);
    }
    for options in all_options(2500) {
        Case::new([3, 1], [2, 2500], [8, 8], options).check(F32);
    }
}

#[test]
fn all_vector_instructions() {
    // So small that this thread computes them alone: the choice of instructions is its own.
    let cases = || {
        for options in all_options(33) {
            Case::new([2, 1], [33, 33], [20, 6], options.clone()).check(F32);
            Case::new([2, 1], [2, 33], [20, 6], options).merged(Some(true)).check(BF16);
        }
    };
    with_each_arch(cases);
    without_vectors(cases);
}

/// Output and gradients as bits.
fn bits(case: &Case, dtype: DType) -> Vec<Vec<u64>> {
    let op = case.op(dtype);
    let (output, normalisers) = cpu::forward(&op).unwrap();
    let output = output.into_tensor();
    let grad = sample(output.shape(), 5, dtype);
    let gradients = cpu::backward(&op, &output, &normalisers, &grad, [true; 3]).unwrap();
    let all = gradients.into_iter().flatten().chain([output, normalisers]);
    all.map(|tensor| elements(&tensor).into_iter().map(f64::to_bits).collect()).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let pool = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (one, two, five) = (pool(1), pool(2), pool(5));
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        for (positions, options) in [
            ([700, 700], AttentionOptions::causal()),
            ([700, 700], AttentionOptions::causal().with_window(100).with_key_padding(holes(700))),
            ([2, 3000], AttentionOptions::full().with_key_padding(left(3000, 1100))),
        ] {
            let case = Case::new([6, 2], positions, [16, 16], options).merged(Some(true));
            let expected = one.install(|| bits(&case, dtype));
            assert!(two.install(|| bits(&case, dtype)) == expected);
            assert!(five.install(|| bits(&case, dtype)) == expected);
        }
    }
}

#[test]
fn registers_of_every_length_give_the_same_bits() {
    for options in all_options(33) {
        for positions in [[33, 33], [3, 33]] {
            let case = Case::new([2, 1], positions, [20, 6], options.clone()).merged(Some(true));
            let mut all = vec![];
            with_each_arch(|| all.push(bits(&case, DType::F32)));
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }
}

#[test]
fn only_what_is_wanted_is_computed() -> Result<()> {
    let case = Case::new([3, 1], [40, 40], [16, 16], AttentionOptions::causal()).merged(Some(true));
    let op = case.op(DType::F32);
    let (output, normalisers) = cpu::forward(&op)?;
    let output = output.into_tensor();
    let grad = sample(output.shape(), 5, DType::F32);
    let all = cpu::backward(&op, &output, &normalisers, &grad, [true; 3])?;
    for wanted in (0..8).map(|bits| [0, 1, 2].map(|i| bits >> i & 1 == 1)) {
        let some = cpu::backward(&op, &output, &normalisers, &grad, wanted)?;
        for ((some, all), wanted) in some.iter().zip(&all).zip(wanted) {
            assert_eq!(some.is_some(), wanted);
            if let (Some(some), Some(all)) = (some, all) {
                assert_close(some, all, 0.0);
            }
        }
    }
    Ok(())
}

fn packings() -> Vec<Packing> {
    vec![
        Packing::new([(3, vec![2, 1, 4])]),
        Packing::new([(1, vec![]), (5, vec![1; 9]), (0, vec![3, 2]), (17, vec![6, 11])]),
        Packing::new([(40, vec![20, 33, 7]), (90, vec![70, 110, 55]), (8, vec![300])]),
        Packing::new((0..30).map(|i| (i % 7 + 1, vec![i % 5, 3, i % 3]))),
    ]
}

#[test]
fn packed_sequences_by_the_kernel_and_composed() {
    for packing in packings() {
        let tokens = packing.len();
        let options = AttentionOptions::causal().with_packing(packing);
        for heads in [[2, 2], [6, 2]] {
            let mut case = Case::new(heads, [tokens, tokens], [8, 8], options.clone());
            case.batch = 1;
            case.check(DTYPES[0]);
            let case = case.merged(Some(true));
            case.check(F32);
            // Larger ones run on other threads too, which know of no other instructions.
            if tokens < 20 {
                with_each_arch(|| case.check(F32));
            }
        }
    }
}

/// A beginning followed by a branch gives in a row of many what it gives in a row of its own.
#[test]
fn packed_sequences_do_not_see_each_other() {
    let groups = [(5, vec![3, 1, 6]), (2, vec![4]), (7, vec![])];
    let packing = Packing::new(groups.clone());
    let (tokens, heads) = (packing.len(), 2);
    let [q, k, v] = [1, 2, 3].map(|seed| sample(vec![1, heads, tokens, 4], seed, DType::F64));
    let packed = attention(&q, &k, &v, &AttentionOptions::causal().with_packing(packing)).unwrap();
    let mut start = 0;
    for (common, branches) in groups {
        let mut begin = start + common;
        for branch in branches.into_iter().chain([0]) {
            let ids: Vec<u32> = (start..start + common).chain(begin..begin + branch).map(|i| i as u32).collect();
            let ids = Tensor::new(ids, &Device::Cpu).unwrap();
            let own = |x: &Tensor| x.index_select(&ids, 2).unwrap();
            let alone = attention(&own(&q), &own(&k), &own(&v), &AttentionOptions::causal()).unwrap();
            assert_close(&own(&packed), &alone, 1e-14);
            begin += branch;
        }
        start = begin;
    }
}

#[test]
fn a_packing_that_does_not_fit_is_refused() {
    let options = AttentionOptions::causal().with_packing(Packing::new([(2, vec![1])]));
    let of = |batch: usize, tokens: usize, options: &AttentionOptions| {
        let x = sample(vec![batch, 1, tokens, 2], 1, DType::F32);
        attention(&x, &x, &x, options).map_err(|error| error.to_string())
    };
    assert!(of(1, 3, &options).is_ok());
    for (batch, tokens) in [(2, 3), (1, 4)] {
        assert!(of(batch, tokens, &options).unwrap_err().contains("3 packed tokens are one row"));
    }
    assert!(of(1, 3, &options.with_window(2)).unwrap_err().contains("neither a window nor padding"));
}
