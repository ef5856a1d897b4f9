use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Result, Tensor};

use super::{assert_grad, var, weighted};
use crate::graph::{Gradients, Value, join_all, registry};

/// Far more than fit on a test's stack of two megabytes if each took a frame.
const DEPTH: usize = 20_000;

#[test]
fn a_deep_chain_is_walked_and_dropped_without_recursion() {
    let x = var(&[1.0]);
    let mut y = weighted(&[x.as_tensor()]).unwrap();
    for _ in 0..DEPTH {
        y = weighted(&[&y]).unwrap();
    }
    assert_grad(&crate::backward(&y).unwrap(), &x, &[1.0]);
    drop(y);
}

#[test]
fn a_deep_chain_of_two_paths_with_many_inputs_too() {
    let x = var(&[1.0]);
    let frozen = x.detach();
    let (mut a, mut b) = (weighted(&[x.as_tensor()]).unwrap(), weighted(&[x.as_tensor()]).unwrap());
    for _ in 0..DEPTH / 4 {
        let next = weighted(&[&a, &frozen]).unwrap();
        b = weighted(&[&b, &frozen, &frozen]).unwrap();
        a = next;
    }
    let y = weighted(&[&a, &b, &x, &a, &b]).unwrap();
    assert_grad(&crate::backward(&y).unwrap(), &x, &[15.0]);
    drop((a, b));
    drop(y);
}

#[test]
fn a_chain_with_views_between_is_dropped_without_recursion() {
    let x = var(&[1.0]);
    let mut y = weighted(&[x.as_tensor()]).unwrap();
    for _ in 0..DEPTH {
        y = weighted(&[&y.unsqueeze(0).unwrap().squeeze(0).unwrap()]).unwrap();
    }
    drop(y);
}

#[test]
fn an_output_is_listed_as_long_as_it_lives() {
    let x = var(&[1.0]);
    let y = weighted(&[x.as_tensor()]).unwrap();
    let id = y.id();
    let z = weighted(&[&y]).unwrap();
    assert!(registry::contains(id));
    drop(y);
    // z holds the node, for the way back, and not its output.
    assert!(!registry::contains(id));
    assert_grad(&crate::backward(&z).unwrap(), &x, &[1.0]);
    assert_grad(&z.backward().unwrap(), &x, &[1.0]);
}

/// What an operator saved, counted.
struct Saved(Arc<AtomicUsize>);

impl Saved {
    fn new(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self(alive.clone())
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gradients for Saved {
    fn gradients(&self, _output: &Tensor, grad: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![grad.clone()])
    }
}

#[test]
fn what_operators_saved_is_freed_with_the_last_result() {
    let alive = Arc::new(AtomicUsize::new(0));
    let step = |x: &Tensor| join_all("step", &[x], Value::Tensor(x.detach()), Saved::new(&alive)).unwrap();
    let x = var(&[1.0]);
    let a = step(&x);
    let b = step(&a);
    let c = step(&a);
    drop(a);
    let view = b.unsqueeze(0).unwrap();
    drop(b);
    assert_eq!(alive.load(Ordering::Relaxed), 3);
    drop(view);
    assert_eq!(alive.load(Ordering::Relaxed), 2);
    let grads = crate::backward(&c).unwrap();
    drop(c);
    assert_eq!(alive.load(Ordering::Relaxed), 0);
    assert_grad(&grads, &x, &[1.0]);
}
