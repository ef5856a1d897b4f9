use candle_core::{DType, Device, Result, Tensor, Var};
use peft_nn::{IGNORE_INDEX, LowRank, OutputHead, WeightLayout, cross_entropy, linear, linear_cross_entropy};
use proptest::prelude::*;

use crate::support::{assert_close, cases, check_gradients, elements, error, random};

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
    }

    /// Whichever are tracked, whether the losses count alike or not.
    #[test]
    fn gradients_of_the_head(
        positions in 1usize..6, vocabulary in 2usize..9, size in 1usize..5, rank in 1usize..3,
        (transposed, summed) in any::<(bool, bool)>(), tracked in 1usize..64, scale in 0.3f64..3.0, seed: u64,
    ) {
        let (layout, shape) =
            if transposed { (WeightLayout::InOut, [size, vocabulary]) } else { (WeightLayout::OutIn, [vocabulary, size]) };
        let all = [
            random((positions, size), seed),
            random(&shape, seed ^ 1),
            random(vocabulary, seed ^ 2),
            random((rank, size), seed ^ 3),
            random((vocabulary, rank), seed ^ 4),
            random((rank, rank), seed ^ 5),
        ];
        let labels = labels(positions, vocabulary, seed);
        let is_tracked = |i: usize| tracked >> i & 1 == 1;
        let inputs: Vec<Tensor> = (0..6).filter(|&i| is_tracked(i)).map(|i| all[i].clone()).collect();
        check_gradients(&inputs, |tracked| {
            let mut tracked = tracked.iter();
            let [hidden, weight, bias, a, b, mixing] =
                [0, 1, 2, 3, 4, 5].map(|i| if is_tracked(i) { tracked.next().unwrap().clone() } else { all[i].clone() });
            let change = LowRank::new(a, b).with_mixing(mixing).with_scale(1.7);
            let head = OutputHead::new(&weight, layout).with_bias(Some(&bias)).with_low_rank(Some(&change));
            let losses = head.with_logit_scale(scale).cross_entropy(&hidden, &labels, IGNORE_INDEX)?;
            if summed { losses.sum() } else { Ok(losses.per_token().clone()) }
        });
    }
}

/// So many entries that they are read in pieces, the last one smaller; so many positions that the hidden states of a block are gathered.
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
    let batch = random((2, 1, 3), 1);
    assert!(
        run(&batch, WeightLayout::OutIn, &labels(&[0, 1])).contains("labels tensor has shape [2], expected [2, 1]")
    );
    assert!(run(&hidden.sum_all().unwrap(), WeightLayout::OutIn, &labels(&[0])).contains("scalar"));
    let head = OutputHead::new(&weight, WeightLayout::OutIn);
    let fails = |head: OutputHead<'_>| error(head.cross_entropy(&hidden, &labels(&[0, 1]), IGNORE_INDEX));
    assert!(fails(head.with_bias(Some(&random(3, 1)))).contains("bias has shape [3], expected [5]"));
    let (a, b) = (random((2, 3), 1), random((5, 2), 1));
    let fails = |a: &Tensor, b: &Tensor| fails(head.with_low_rank(Some(&LowRank::new(a.clone(), b.clone()))));
    assert!(fails(&b, &b).contains("`a` of a low-rank change has shape [5, 2], expected [5, 3]"));
    assert!(fails(&a, &a).contains("`b` of a low-rank change has shape [2, 3], expected [5, 2]"));
    assert!(fails(&a.to_dtype(DType::F32).unwrap(), &b).contains("a f32, b f64"));
    for scale in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        let losses = head.with_logit_scale(scale).cross_entropy(&hidden, &labels(&[0, 1]), IGNORE_INDEX);
        assert!(error(losses).contains("logit scale"));
    }
}

#[test]
fn batches_keep_their_shape() -> Result<()> {
    let (hidden, weight) = (random((2, 3, 4), 1), random((5, 4), 2));
    let labels = labels(6, 5, 3).reshape((2, 3))?;
    let flat = |hidden: &Tensor| hidden.reshape((6, 4));
    let run = |hidden: &Tensor, labels: &Tensor| {
        linear_cross_entropy(hidden, &weight, WeightLayout::OutIn, None, labels, IGNORE_INDEX)
    };
    let batch = run(&hidden, &labels)?;
    assert_eq!(batch.per_token().dims(), [2, 3]);
    let expected = run(&flat(&hidden)?, &labels.flatten_all()?)?;
    assert_close(&batch.per_token().flatten_all()?, expected.per_token(), 0.0);
    check_gradients(std::slice::from_ref(&hidden), |v| run(&v[0], &labels)?.mean());
    check_gradients(std::slice::from_ref(&hidden), |v| Ok(run(&v[0], &labels)?.per_token().clone()));
    // The hidden states of all positions but the last, as a shift by one gives them.
    let labels = labels.narrow(1, 1, 2)?;
    check_gradients(&[hidden], |v| run(&v[0].narrow(1, 0, 2)?, &labels)?.mean());
    Ok(())
}

/// Their hidden states may hold anything.
#[test]
fn ignored_positions_are_not_computed() -> Result<()> {
    let hidden = Tensor::new(&[[0.5, -0.2], [f64::NAN, f64::INFINITY], [0.1, 0.9]], &Device::Cpu)?;
    let hidden = Var::from_tensor(&hidden)?;
    let weight = Var::from_tensor(&random((4, 2), 1))?;
    let labels = Tensor::new(&[1i64, IGNORE_INDEX, 3], &Device::Cpu)?;
    let loss = linear_cross_entropy(&hidden, &weight, WeightLayout::OutIn, None, &labels, IGNORE_INDEX)?;
    assert_eq!(loss.count(), 2);
    assert_eq!(elements(loss.per_token())[1], 0.0);
    let grads = loss.mean()?.backward()?;
    let dhidden = elements(grads.get(&hidden).unwrap());
    assert_eq!(dhidden[2..4], [0.0, 0.0]);
    assert!(dhidden.iter().chain(&elements(grads.get(&weight).unwrap())).all(|x| x.is_finite()));
    Ok(())
}

#[test]
fn a_batch_without_labels_has_gradients_of_zero() -> Result<()> {
    let (hidden, weight) = (Var::from_tensor(&random((2, 3), 1))?, Var::from_tensor(&random((4, 3), 2))?);
    let labels = Tensor::new(&[IGNORE_INDEX; 2], &Device::Cpu)?;
    let loss = linear_cross_entropy(&hidden, &weight, WeightLayout::OutIn, None, &labels, IGNORE_INDEX)?;
    assert!(error(loss.mean()).contains("no label counts"));
    let grads = loss.sum()?.backward()?;
    assert_eq!(elements(grads.get(&hidden).unwrap()), [0.0; 6]);
    assert_eq!(elements(grads.get(&weight).unwrap()), [0.0; 12]);
    Ok(())
}

/// The first pass takes the gradients that the forward pass left; the second one computes them.
#[test]
fn a_second_backward_pass_gives_the_same() -> Result<()> {
    let (hidden, weight) = (Var::from_tensor(&random((5, 3), 1))?, Var::from_tensor(&random((4, 3), 2))?);
    let labels = labels(5, 4, 1);
    let loss = linear_cross_entropy(&hidden, &weight, WeightLayout::OutIn, None, &labels, IGNORE_INDEX)?.mean()?;
    let (first, second) = (loss.backward()?, loss.backward()?);
    for var in [&hidden, &weight] {
        assert_close(first.get(var).unwrap(), second.get(var).unwrap(), 1e-15);
    }
    Ok(())
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
