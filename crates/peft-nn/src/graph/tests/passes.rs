use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};

use super::{assert_grad, var, weighted};
use crate::graph::{Gradients, Value, join_all};
use crate::{backward, backward_with};

/// The identity, whose backward hands the very gradient on and counts its calls.
fn counted(x: &Tensor, calls: &Arc<AtomicUsize>) -> Tensor {
    join_all("counted", &[x], Value::Tensor(x.detach()), Counted(calls.clone())).unwrap()
}

struct Counted(Arc<AtomicUsize>);

impl Gradients for Counted {
    fn gradients(&self, _output: &Tensor, grad: &Tensor) -> Result<Vec<Tensor>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(vec![grad.clone()])
    }
}

#[test]
fn each_node_is_asked_once_whatever_leads_to_it() {
    let calls = Arc::new(AtomicUsize::new(0));
    let x = var(&[1.0, 2.0]);
    let a = counted(&x, &calls);
    let b = counted(&a, &calls);
    // Reached from our nodes alone, and through candle's operations at two depths.
    let c = weighted(&[&b, &a.sqr().unwrap(), &b.affine(2.0, 0.0).unwrap(), &counted(&b, &calls)]).unwrap();
    let expected = [1.0 + 2.0 * 2.0 + 6.0 + 4.0, 1.0 + 2.0 * 4.0 + 6.0 + 4.0];
    let passes: [fn(&Tensor) -> Result<GradStore>; 2] = [Tensor::backward, backward];
    for pass in passes {
        calls.store(0, Ordering::Relaxed);
        assert_grad(&pass(&c).unwrap(), &x, &expected);
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }
}

#[test]
fn a_gradient_that_an_operator_lent_is_not_written_to() {
    let calls = Arc::new(AtomicUsize::new(0));
    let x = var(&[1.0]);
    let grad = Tensor::new(&[5.0f64], &Device::Cpu).unwrap();
    let a = counted(&x, &calls);
    let y = counted(&a, &calls);
    for _ in 0..2 {
        let grads = backward_with(&weighted(&[&y, &y, &y, &a, &a]).unwrap(), &grad).unwrap();
        assert_grad(&grads, &x, &[5.0 * 15.0]);
        assert_eq!(grad.to_vec1::<f64>().unwrap(), [5.0]);
    }
    let grads = backward_with(&y, &grad).unwrap();
    assert_grad(&grads, &x, &[5.0]);
}

#[test]
fn frozen_operands_of_candle_get_no_entry() {
    let x = var(&[1.0, 2.0]);
    let frozen = Tensor::new(&[3.0f64, 4.0], &Device::Cpu).unwrap();
    let product = (x.as_tensor() * &frozen).unwrap();
    for loss in [weighted(&[&product]).unwrap(), product.clone(), weighted(&[&product]).unwrap().sum_all().unwrap()] {
        let grads = backward(&loss).unwrap();
        assert_eq!(grads.get_ids().count(), 1);
        assert_grad(&grads, &x, &[3.0, 4.0]);
    }
}

#[test]
fn a_loss_may_be_a_variable_or_untracked() {
    let x = var(&[1.0, 2.0]);
    assert_grad(&backward(&x).unwrap(), &x, &[1.0, 1.0]);
    assert_eq!(backward(&x.detach()).unwrap().get_ids().count(), 0);
}

#[test]
fn a_gradient_that_does_not_fit_the_output_is_an_error() {
    let x = var(&[1.0, 2.0]);
    let y = weighted(&[x.as_tensor()]).unwrap();
    let wide = Tensor::zeros((1, 2), DType::F64, &Device::Cpu).unwrap();
    let error = backward_with(&y, &wide).unwrap_err().to_string();
    assert!(error.contains("backward: the gradient has shape [1, 2], expected [2]"), "{error}");
    let coarse = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
    let error = backward_with(&y, &coarse).unwrap_err().to_string();
    assert!(error.contains("backward: the gradient is f32 but the output is f64"), "{error}");
}

#[test]
fn sums_are_the_same_in_every_dtype_and_layout() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        // More than one task, and not a whole number of them.
        let x = Var::from_tensor(&Tensor::ones((3, 20_011), dtype, &Device::Cpu).unwrap()).unwrap();
        let y = weighted(&[x.as_tensor()]).unwrap();
        let y = weighted(&[&y, &y, &y, &y.t().unwrap().contiguous().unwrap().t().unwrap().contiguous().unwrap()]);
        let y = y.unwrap();
        let grad = y.detach().t().unwrap().contiguous().unwrap().t().unwrap();
        let grads = backward_with(&y, &grad).unwrap();
        let dx = grads.get(&x).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(dx.flatten_all().unwrap().to_vec1::<f32>().unwrap(), vec![100.0; 3 * 20_011]);
    }
}
