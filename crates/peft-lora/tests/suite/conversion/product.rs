//! Products of two factors.

use super::support::{HOSTS, Net, delta, distance, least_error, load, random, spectrum, with_factors};
use candle_core::{DType, Device, Tensor};
use peft_core::PeftModel;
use peft_lora::{ConvertedLora, LoraConfig, Rank, to_lora, to_lora_with};
use proptest::prelude::*;

/// Far above the rounding of f64, far below everything else.
const ROUNDING: f64 = 1e-12;

fn convert(model: &PeftModel<Net>, rank: Rank) -> ConvertedLora {
    to_lora_with(&model.detached("default").unwrap(), rank).unwrap()
}

/// The rank of every module, which must be the same.
fn rank_of(lora: &ConvertedLora) -> usize {
    let ranks: Vec<usize> = lora.modules.iter().map(|m| m.rank).collect();
    assert!(ranks.len() == HOSTS.len() && ranks.iter().all(|r| *r == ranks[0]), "{ranks:?}");
    ranks[0]
}

/// Checks every module of a conversion against the best approximation of its rank.
fn assert_optimal(model: &PeftModel<Net>, lora: &ConvertedLora) {
    let loaded = load(model.clone().unload().unwrap(), lora);
    for module in &lora.modules {
        let (exact, found) = (delta(model, &module.path), delta(&loaded, &module.path));
        let least = least_error(&spectrum(&exact), module.rank);
        assert!((module.error - least).abs() <= ROUNDING, "{module:?}: the least error is {least}");
        let actual = distance(&exact, &found);
        assert!((actual - least).abs() <= ROUNDING, "{module:?} is {actual} off: the least error is {least}");
    }
}

fn shapes() -> impl Strategy<Value = (usize, usize, usize, u64)> {
    (1usize..40, 1usize..40, 1usize..12, 0u64..1000)
}

fn drawn((rows, cols, r, seed): (usize, usize, usize, u64)) -> PeftModel<Net> {
    with_factors(&random((r, cols), seed), &random((rows, r), seed + 5000), 2.5)
}

proptest! {
    #![proptest_config(peft_testkit::strategy::config(48))]

    #[test]
    fn a_fixed_rank_is_the_best_of_its_size(shape in shapes(), share in 0.0..1.0f64) {
        let (rows, cols, r, _) = shape;
        let model = drawn(shape);
        let most = rows.min(cols);
        let wanted = 1 + (share * most as f64) as usize;
        let lora = convert(&model, Rank::Fixed(wanted));
        prop_assert_eq!(rank_of(&lora), wanted.min(r));
        assert_optimal(&model, &lora);
        prop_assert_eq!(lora.modules[0].error == 0.0, wanted >= r.min(most));
    }

    #[test]
    fn a_threshold_is_kept_by_as_few_directions_as_can(shape in shapes(), share in 1e-3..1.0f64) {
        let model = drawn(shape);
        let lora = convert(&model, Rank::Threshold(share));
        assert_optimal(&model, &lora);
        let (k, s) = (rank_of(&lora), spectrum(&delta(&model, "linear")));
        let kept = |k: usize| 1.0 - least_error(&s, k).powi(2);
        prop_assert!(kept(k) >= share - ROUNDING, "{} directions keep {}, not {}", k, kept(k), share);
        prop_assert!(k == 1 || kept(k - 1) < share + ROUNDING, "{} directions keep {} already", k - 1, kept(k - 1));
    }

    #[test]
    fn a_threshold_of_one_leaves_nothing_out(shape in shapes()) {
        let (rows, cols, r, _) = shape;
        let model = drawn(shape);
        let lora = convert(&model, Rank::Threshold(1.0));
        prop_assert_eq!(rank_of(&lora), r.min(rows).min(cols));
        assert_optimal(&model, &lora);
        prop_assert!(lora.modules.iter().all(|m| m.error <= ROUNDING));
    }
}

/// Factors of a product `diag(s)` in the corner of a 7 x 9 matrix, turned by nothing.
fn diagonal(s: &[f64]) -> PeftModel<Net> {
    let r = s.len();
    let a = Tensor::eye(9, DType::F64, &Device::Cpu).unwrap().narrow(0, 0, r).unwrap();
    let b = Tensor::eye(7, DType::F64, &Device::Cpu).unwrap().narrow(1, 0, r).unwrap();
    let s = Tensor::new(s, &Device::Cpu).unwrap();
    with_factors(&a, &b.broadcast_mul(&s).unwrap(), r as f64)
}

#[test]
fn equal_singular_values_are_counted_as_equal() {
    // Half of the energy of four equal directions is in two of them, whatever rounding makes of their size.
    for s in [[3.0; 4], [1e-3, 1e-3, 1e-3, 1e-3 * (1.0 + 2.0 * f64::EPSILON)], [0.1; 4], [1e150; 4], [1e-150; 4]] {
        let model = diagonal(&s);
        for (share, rank) in [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4), (0.51, 3), (1e-9, 1)] {
            assert_eq!(rank_of(&convert(&model, Rank::Threshold(share))), rank, "{share} of {s:?}");
        }
    }
}

#[test]
fn a_small_direction_counts_when_everything_is_asked_for() {
    // PEFT sums energies in f32, where the second direction vanishes beside the first.
    let model = diagonal(&[1.0, 1e-5]);
    assert_eq!(rank_of(&convert(&model, Rank::Threshold(1.0))), 2);
    let lora = convert(&model, Rank::Threshold(0.999_999_999));
    assert_eq!(rank_of(&lora), 1);
    assert!((lora.modules[0].error - 1e-5).abs() < 1e-14, "{:?}", lora.modules);
}

#[test]
fn directions_that_are_not_there_are_left_out() {
    // The last two rows of A repeat the first two, so that four factors make a product of rank 2.
    let a = random((2, 9), 1);
    let model = with_factors(&Tensor::cat(&[&a, &a], 0).unwrap(), &random((7, 4), 2), 3.0);
    for rank in [Rank::Threshold(1.0), Rank::Fixed(2), Rank::Fixed(3)] {
        let lora = convert(&model, rank);
        assert_eq!(rank_of(&lora), 2, "{rank:?}");
        assert!(lora.modules.iter().all(|m| m.error < ROUNDING), "{:?}", lora.modules);
        assert_optimal(&model, &lora);
    }
    // The factors as they are, exactly, are four.
    assert_eq!(rank_of(&convert(&model, Rank::Fixed(4))), 4);
    assert_eq!(rank_of(&to_lora(&model.detached("default").unwrap()).unwrap()), 4);
}

#[test]
fn a_delta_of_zero_has_rank_one_and_no_error() {
    let model = with_factors(&random((3, 9), 1), &(random((7, 3), 2) * 0.0).unwrap(), 3.0);
    for rank in [Rank::Threshold(0.5), Rank::Threshold(1.0), Rank::Fixed(1), Rank::Fixed(2)] {
        let lora = convert(&model, rank);
        assert_eq!(rank_of(&lora), 1, "{rank:?}");
        assert!(lora.modules.iter().all(|m| m.error == 0.0), "{:?}", lora.modules);
        assert_eq!(delta(&load(model.clone().unload().unwrap(), &lora), "conv").norm_l2(), 0.0);
    }
}

#[test]
fn a_rank_above_that_of_the_factors_is_not_padded() {
    let model = with_factors(&random((3, 9), 1), &random((7, 3), 2), 6.0);
    let detached = model.detached("default").unwrap();
    let exact = to_lora(&detached).unwrap();
    for rank in [3, 4, 7] {
        let lora = to_lora_with(&detached, Rank::Fixed(rank)).unwrap();
        assert_eq!(lora.modules, exact.modules);
        let config = lora.config.method.downcast_ref::<LoraConfig>().unwrap();
        assert_eq!((config.r, config.lora_alpha, config.rank_pattern.is_empty()), (3, 3.0, true));
        for (name, tensor) in &exact.tensors {
            peft_testkit::assert::assert_same(name, &lora.tensors[name], tensor);
        }
    }
}

#[test]
fn factors_keep_their_dtype() {
    for dtype in [DType::F32, DType::F64] {
        let [a, b] = [random((3, 9), 1), random((7, 3), 2)].map(|t| t.to_dtype(dtype).unwrap());
        let lora = convert(&with_factors(&a, &b, 3.0), Rank::Fixed(2));
        assert!(lora.tensors.values().all(|t| t.dtype() == dtype));
    }
}

#[test]
fn left_singular_vectors_have_a_positive_largest_entry() {
    let lora = convert(&with_factors(&random((5, 9), 1), &random((7, 5), 2), 3.0), Rank::Fixed(4));
    let b = lora.tensors["base_model.model.linear.lora_B.weight"].t().unwrap().to_vec2::<f64>().unwrap();
    assert_eq!(b.len(), 4);
    for column in b {
        let largest = column.iter().copied().max_by(|x, y| x.abs().total_cmp(&y.abs())).unwrap();
        assert!(largest > 0.0, "{column:?}");
    }
}

#[test]
fn ranks_and_thresholds_out_of_range_are_refused() {
    let model = with_factors(&random((3, 9), 1), &random((7, 3), 2), 3.0);
    let detached = model.detached("default").unwrap();
    for (rank, says) in [
        (Rank::Fixed(0), &["rank is 0", "positive"][..]),
        (Rank::Fixed(8), &["embed_tokens", "rank is 8", "7 x 9", "no more than 7"]),
        (Rank::Threshold(0.0), &["threshold is 0", "above 0 and at most 1"]),
        (Rank::Threshold(-0.5), &["threshold is -0.5", "above 0"]),
        (Rank::Threshold(1.5), &["threshold is 1.5", "at most 1"]),
        (Rank::Threshold(f64::NAN), &["threshold is NaN"]),
    ] {
        let error = to_lora_with(&detached, rank).unwrap_err().to_string();
        for part in says {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
}

#[test]
fn factors_that_are_not_finite_cannot_be_cut_down() {
    for poison in [f64::NAN, f64::INFINITY] {
        let b = Tensor::full(poison, (7, 3), &Device::Cpu).unwrap();
        let detached = with_factors(&random((3, 9), 1), &b, 3.0).detached("default").unwrap();
        for rank in [Rank::Fixed(2), Rank::Threshold(0.5)] {
            let error = to_lora_with(&detached, rank).unwrap_err().to_string();
            assert!(error.contains("embed_tokens: ") && error.contains(&poison.to_string()), "{error}");
        }
    }
}
