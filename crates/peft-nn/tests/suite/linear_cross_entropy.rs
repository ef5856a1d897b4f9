use candle_core::{DType, Device, Result, Tensor, Var};
use peft_nn::{IGNORE_INDEX, WeightLayout, cross_entropy, linear, linear_cross_entropy};
use proptest::prelude::*;

use crate::support::{assert_close, cases, check_gradients, error, random};

fn labels(positions: usize, vocabulary: usize, seed: u64) -> Tensor {
    let label =
        |i: usize| if i % 4 == 3 { IGNORE_INDEX } else { (seed as usize % 97 + 31 * i) as i64 % vocabulary as i64 };
    Tensor::from_vec((0..positions).map(label).collect::<Vec<i64>>(), positions, &Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn gradients_of_the_hidden_states(
        positions in 1usize..6, vocabulary in 2usize..9, size in 1usize..5, transposed: bool, biased: bool, seed: u64,
    ) {
        let hidden = random((positions, size), seed);
        let (layout, shape) =
            if transposed { (WeightLayout::InOut, (size, vocabulary)) } else { (WeightLayout::OutIn, (vocabulary, size)) };
        let weight = random(shape, seed ^ 1);
        let bias = biased.then(|| random(vocabulary, seed ^ 2));
        let labels = labels(positions, vocabulary, seed);
        let run = |hidden: &Tensor| linear_cross_entropy(hidden, &weight, layout, bias.as_ref(), &labels, IGNORE_INDEX);
        check_gradients(std::slice::from_ref(&hidden), |v| Ok(run(&v[0])?.per_token().clone()));
        check_gradients(std::slice::from_ref(&hidden), |v| run(&v[0])?.mean());
        let composed = cross_entropy(&linear(&hidden, &weight, layout, bias.as_ref()).unwrap(), &labels, IGNORE_INDEX).unwrap();
        let fused = run(&hidden).unwrap();
        prop_assert_eq!(fused.count(), composed.count());
        assert_close(fused.per_token(), composed.per_token(), 1e-13);
        // A trained head takes the other way, and its gradients are right too.
        check_gradients(&[hidden, weight], |v| {
            linear_cross_entropy(&v[0], &v[1], layout, bias.as_ref(), &labels, IGNORE_INDEX)?.sum()
        });
    }
}

/// So many entries that the positions are cut into pieces, the last one smaller.
#[test]
fn pieces_come_together_in_every_dtype() -> Result<()> {
    let (positions, vocabulary, size) = (70, 200_000, 3);
    let labels = labels(positions, vocabulary, 5);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5), (DType::BF16, 0.05), (DType::F16, 0.01)] {
        let hidden = Var::from_tensor(&random((positions, size), 1).to_dtype(dtype)?)?;
        let weight = random((vocabulary, size), 2).to_dtype(dtype)?;
        let fused = linear_cross_entropy(&hidden, &weight, WeightLayout::OutIn, None, &labels, IGNORE_INDEX)?;
        let composed = cross_entropy(&linear(&hidden, &weight, WeightLayout::OutIn, None)?, &labels, IGNORE_INDEX)?;
        assert_eq!(fused.per_token().dims(), [positions]);
        assert_eq!(fused.per_token().dtype(), composed.per_token().dtype());
        assert_close(fused.per_token(), composed.per_token(), tolerance);
        let (fused, composed) = (fused.mean()?.backward()?, composed.mean()?.backward()?);
        assert_close(fused.get(&hidden).unwrap(), composed.get(&hidden).unwrap(), tolerance);
        assert!(fused.get(&weight).is_none());
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() {
    let (hidden, weight) = (random((2, 3), 1), random((5, 3), 2));
    let labels = |values: &[i64]| Tensor::from_vec(values.to_vec(), values.len(), &Device::Cpu).unwrap();
    let run = |hidden: &Tensor, layout, labels: &Tensor| {
        error(linear_cross_entropy(hidden, &weight, layout, None, labels, IGNORE_INDEX).map(|l| l.per_token().clone()))
    };
    assert!(run(&hidden, WeightLayout::InOut, &labels(&[0, 1])).contains("length 3 do not fit a weight for 5"));
    assert!(run(&hidden, WeightLayout::OutIn, &labels(&[0, 5])).contains("label 5 at position 1"));
    assert!(run(&hidden, WeightLayout::OutIn, &labels(&[0])).contains("labels"));
    assert!(run(&random((2, 1, 3), 1), WeightLayout::OutIn, &labels(&[0, 1])).contains("(positions, hidden_size)"));
}

#[test]
fn no_position_is_no_loss() -> Result<()> {
    let hidden = Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?;
    let labels = Tensor::from_vec(Vec::<i64>::new(), 0, &Device::Cpu)?;
    let weight = random((5, 3), 2).to_dtype(DType::F32)?;
    let loss = linear_cross_entropy(&hidden, &weight, WeightLayout::OutIn, None, &labels, IGNORE_INDEX)?;
    assert_eq!((loss.count(), loss.per_token().dims()), (0, &[0][..]));
    Ok(())
}
