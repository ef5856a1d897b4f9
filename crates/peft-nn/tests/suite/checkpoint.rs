use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use candle_core::{DType, Device, Result, Tensor, Var};
use peft_nn::{WeightLayout, backward, checkpoint, linear, mul_frozen, remembered, rms_norm, swiglu};
use proptest::prelude::*;

use crate::support::{assert_close, assert_same_bits, cases, check_gradients, elements, error, random};

fn var(shape: (usize, usize), seed: u64) -> Var {
    Var::from_tensor(&random(shape, seed)).unwrap()
}

/// A block with a residual, whose two weights are `(width, width)`.
fn block(x: &Tensor, up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let norm = rms_norm(x, &Tensor::ones(x.dim(1)?, x.dtype(), x.device())?, 1e-6)?;
    let y = linear(&norm, up, WeightLayout::OutIn, None)?;
    x + linear(&swiglu(&y, &norm)?, down, WeightLayout::OutIn, None)?
}

fn checkpointed(x: &Tensor, up: &Tensor, down: &Tensor) -> Result<Tensor> {
    let (held_up, held_down) = (up.clone(), down.clone());
    checkpoint(x, move |x| block(x, &held_up, &held_down))
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn gradients(rows in 1usize..4, width in 1usize..5, seed: u64) {
        let [x, up, down] = [random((rows, width), seed), random((width, width), seed ^ 1), random((width, width), seed ^ 2)];
        check_gradients(&[x.clone(), up.clone(), down.clone()], |v| checkpointed(&v[0], &v[1], &v[2]));
        check_gradients(std::slice::from_ref(&x), |v| checkpointed(&v[0], &up, &down));
        check_gradients(&[up.clone(), down.clone()], |v| checkpointed(&x, &v[0], &v[1]));
        // Two, with shared parameters, within another.
        check_gradients(&[x, up, down], |v| {
            let (up, down) = (v[1].clone(), v[2].clone());
            checkpoint(&v[0], move |x| checkpointed(&checkpointed(x, &up, &down)?, &up, &down))
        });
    }
}

#[test]
fn values_are_those_of_a_forward_without_to_the_bit() {
    let (x, up, down) = (var((3, 4), 1), var((4, 4), 2), var((4, 4), 3));
    let run = |f: fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>| {
        let y = f(&f(&x, &up, &down).unwrap(), &up, &down).unwrap();
        (y.clone(), backward(&y).unwrap())
    };
    let (plain, expected) = run(block);
    let (y, grads) = run(checkpointed);
    assert_same_bits(&y, &plain);
    for var in [&x, &up, &down] {
        assert_close(grads.get(var).unwrap(), expected.get(var).unwrap(), 1e-14);
    }
    let by_candle = y.backward().unwrap();
    for var in [&x, &up, &down] {
        assert_close(by_candle.get(var).unwrap(), expected.get(var).unwrap(), 1e-14);
    }
}

#[test]
fn the_function_runs_once_forward_and_once_for_each_pass_back() {
    let x = var((2, 2), 1);
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = runs.clone();
    let y = checkpoint(&x, move |x| {
        counter.fetch_add(1, Ordering::Relaxed);
        swiglu(x, x)
    });
    let y = y.unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    backward(&y).unwrap();
    backward(&y).unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 3);
}

#[test]
fn nothing_tracked_records_nothing() {
    let x = random((2, 2), 1);
    assert!(!checkpoint(&x, |x| swiglu(x, x)).unwrap().track_op());
}

/// Keeps elements by bits that it takes from a counter, as dropout does.
fn drops(x: &Tensor, state: &AtomicU64) -> Result<Tensor> {
    let draw = remembered(|| state.fetch_add(1, Ordering::Relaxed))?;
    let bits = (0..x.elem_count()).map(|i| f64::from(u8::from((draw * 7 + i as u64).is_multiple_of(3))));
    mul_frozen(x, &Tensor::from_vec(bits.collect::<Vec<_>>(), x.shape(), x.device())?)
}

#[test]
fn what_was_drawn_at_random_is_drawn_again() {
    let x = var((2, 6), 1);
    let ones = Tensor::ones((2, 6), DType::F64, &Device::Cpu).unwrap();
    let state = Arc::new(AtomicU64::new(0));
    let step = |x: &Tensor, nested: bool| {
        let state = state.clone();
        checkpoint(x, move |x| {
            let y = drops(x, &state)?;
            let inner = state.clone();
            let y = if nested { checkpoint(&y, move |y| drops(y, &inner))? } else { drops(&y, &inner)? };
            drops(&y, &state)
        })
    };
    for nested in [false, true] {
        let before = state.load(Ordering::Relaxed);
        let first = step(&x, nested).unwrap();
        let y = step(&first, nested).unwrap();
        assert_eq!(state.load(Ordering::Relaxed), before + 6);
        // The masks of a forward pass in between are others.
        drops(&x, &state).unwrap();
        for _ in 0..2 {
            let grads = backward(&y).unwrap();
            // y = x * mask, so the gradient is the mask.
            assert_same_bits(&(grads.get(&x).unwrap() * x.as_detached_tensor()).unwrap(), &y.detach());
        }
        assert_eq!(state.load(Ordering::Relaxed), before + 7);
        assert_ne!(elements(&drops(&ones, &state).unwrap()), elements(&drops(&ones, &state).unwrap()));
    }
}

#[test]
fn what_cannot_be_right_is_an_error() {
    let (x, w) = (var((2, 2), 1), var((2, 2), 2));
    let held = w.clone();
    let y = checkpoint(&x, move |x| {
        swiglu(x, &held)?;
        swiglu(x, x)
    });
    let message = error(backward(&y.unwrap()));
    assert!(message.contains("checkpoint: no gradient reached a variable of shape [2, 2]"), "{message}");

    let held = w.clone();
    let y = checkpoint(&x, move |_| swiglu(&held, &held)).unwrap();
    let message = error(backward(&y));
    assert!(message.contains("checkpoint: no gradient reached the input of shape [2, 2]"), "{message}");

    let (held, runs) = (w.clone(), AtomicUsize::new(0));
    let y = checkpoint(&x, move |x| match runs.fetch_add(1, Ordering::Relaxed) {
        0 => swiglu(x, x),
        _ => swiglu(x, &held),
    });
    let message = error(backward(&y.unwrap()));
    assert!(
        message.contains("gradients of shapes [[2, 2]] belong to variables that were not read before"),
        "{message}"
    );

    let runs = AtomicUsize::new(0);
    let y =
        checkpoint(
            &x,
            move |x| {
                if runs.fetch_add(1, Ordering::Relaxed) == 0 { x.sum(0) } else { x.sum(1)?.narrow(0, 0, 1) }
            },
        );
    let message = error(backward(&y.unwrap()));
    assert!(message.contains("checkpoint: the result was F64 [2] and is F64 [1] again"), "{message}");

    let runs = AtomicUsize::new(0);
    let y = checkpoint(&x, move |x| {
        for _ in 0..runs.fetch_add(1, Ordering::Relaxed) {
            remembered(|| 0)?;
        }
        x.sin()
    });
    let message = error(backward(&y.unwrap()));
    assert!(message.contains("checkpoint: 0 random values were drawn before, and more are again"), "{message}");
}

#[test]
fn an_error_of_the_function_is_handed_on_and_leaves_nothing_behind() {
    let x = var((2, 2), 1);
    let message = error(checkpoint(&x, |_| candle_core::bail!("no such thing")));
    assert!(message.contains("no such thing"), "{message}");
    // Recording goes on.
    assert!(swiglu(&x, &x).unwrap().track_op());
}

#[test]
fn variables_are_found_wherever_they_are_read() {
    let vars: Vec<Var> = (0..6).map(|seed| var((2, 2), seed)).collect();
    let x = var((2, 2), 9);
    // Read by an operator, by candle before an operator, by candle around the last one, within another, and twice.
    let f = |x: &Tensor, v: &[Var]| {
        let y = swiglu(x, &v[0])?;
        let y = swiglu(&y, &(v[1].sin()? * v[2].as_tensor())?)?;
        let inner = v[3].clone();
        let y = checkpoint(&y, move |y| swiglu(&swiglu(y, &inner)?, &inner))?;
        (y + v[4].as_tensor())? * v[5].cos()?
    };
    let plain = f(&x, &vars).unwrap();
    let held = vars.clone();
    let y = checkpoint(&x, move |x| f(x, &held)).unwrap();
    let expected = plain.backward().unwrap();
    for grads in [backward(&y).unwrap(), y.backward().unwrap()] {
        assert_eq!(grads.get_ids().count(), 7);
        for var in vars.iter().chain([&x]) {
            assert_close(grads.get(var).unwrap(), expected.get(var).unwrap(), 1e-14);
        }
    }
}
