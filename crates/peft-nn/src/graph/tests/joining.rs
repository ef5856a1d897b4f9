use candle_core::{DType, Device, Result, Tensor, Var};

use super::{assert_grad, var, weighted};
use crate::graph::{Backward, Value, join};

struct Scale;

impl Backward<1> for Scale {
    const NAME: &'static str = "scale";

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some((grad * 2.0)?)])
    }
}

/// An operator whose backward is wrong in one way or another.
struct Wrong(Rule);

type Rule = fn(&Tensor) -> Option<Tensor>;

impl Backward<1> for Wrong {
    const NAME: &'static str = "wrong";

    fn backward(&self, _output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([(self.0)(grad)])
    }
}

/// `x * x`, whose backward reads the output or does not.
struct Square<const READS_OUTPUT: bool>(Tensor);

impl<const READS_OUTPUT: bool> Backward<1> for Square<READS_OUTPUT> {
    const NAME: &'static str = "square";
    const READS_OUTPUT: bool = READS_OUTPUT;

    fn backward(&self, output: &Tensor, grad: &Tensor, _wanted: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        assert_eq!((output.dims(), output.dtype()), (self.0.dims(), self.0.dtype()));
        let expected = if READS_OUTPUT { self.0.sqr()? } else { self.0.zeros_like()? };
        assert_eq!(output.to_vec1::<f64>()?, expected.to_vec1::<f64>()?);
        Ok([Some((grad * (&self.0 * 2.0)?)?)])
    }
}

#[test]
fn a_view_of_a_larger_tensor_is_joined_by_its_own_elements() {
    let x = Var::new(&[1f32, 2.], &Device::Cpu).unwrap();
    let column = Tensor::new(&[[9f32, 2.], [9., 4.]], &Device::Cpu).unwrap().narrow(1, 1, 1).unwrap();
    let value = Value::Tensor(column.squeeze(1).unwrap());
    let y = join([Some(&x)], value, Scale).unwrap();
    assert_eq!(y.to_vec1::<f32>().unwrap(), [2., 4.]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().to_vec1::<f32>().unwrap(), [2., 2.]);
}

#[test]
fn a_gradient_that_is_missing_or_does_not_fit_is_an_error() {
    let wrongs: [(Rule, &str); 3] = [
        (|_| None, "wrong: the backward pass left out a gradient"),
        (|grad| grad.unsqueeze(0).ok(), "wrong: the gradient of tracked input 0 is f32 [1, 1], expected f32 [1]"),
        (|grad| grad.to_dtype(DType::F64).ok(), "wrong: the gradient of tracked input 0 is f64 [1], expected f32 [1]"),
    ];
    for (wrong, expected) in wrongs {
        let x = Var::new(&[1f32], &Device::Cpu).unwrap();
        let y = join([Some(&x)], Value::Tensor(x.detach()), Wrong(wrong)).unwrap();
        for result in [y.backward(), crate::backward(&y)] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

#[test]
fn an_output_is_kept_for_a_backward_that_reads_it_and_for_no_other() {
    let x = var(&[3.0, -1.0]);
    let value = || Value::Tensor(x.detach().sqr().unwrap());
    let read = join([Some(x.as_tensor())], value(), Square::<true>(x.detach())).unwrap();
    let not_read = join([Some(x.as_tensor())], value(), Square::<false>(x.detach())).unwrap();
    for y in [read, not_read] {
        assert_grad(&y.backward().unwrap(), &x, &[6.0, -2.0]);
        assert_grad(&crate::backward(&y).unwrap(), &x, &[6.0, -2.0]);
    }
}

/// candle's own pass and ours, twice each: a graph is not used up.
#[track_caller]
fn assert_grads(loss: &Tensor, expected: &[(&Var, &[f64])]) {
    for _ in 0..2 {
        for grads in [loss.backward().unwrap(), crate::backward(loss).unwrap()] {
            assert_eq!(grads.get_ids().count(), expected.len());
            for (var, grad) in expected {
                assert_grad(&grads, var, grad);
            }
        }
    }
}

#[test]
fn any_number_of_inputs_is_joined() {
    for n in 1..=30 {
        let vars: Vec<Var> = (0..n).map(|i| var(&[i as f64, 1.0])).collect();
        let y = weighted(&vars.iter().map(Var::as_tensor).collect::<Vec<_>>()).unwrap();
        let weights: Vec<[f64; 2]> = (1..=n).map(|i| [i as f64; 2]).collect();
        let expected: Vec<(&Var, &[f64])> = vars.iter().zip(&weights).map(|(v, w)| (v, w.as_slice())).collect();
        assert_grads(&y, &expected);
        assert_grads(&y.sum_all().unwrap(), &expected);
    }
}

#[test]
fn only_tracked_inputs_of_many_get_gradients() {
    let (a, b) = (var(&[1.0]), var(&[2.0]));
    let frozen = a.detach();
    let y = weighted(&[&frozen, &a, &frozen, &frozen, &b, &frozen]).unwrap();
    assert_eq!(y.to_vec1::<f64>().unwrap(), [1.0 + 2.0 + 3.0 + 4.0 + 10.0 + 6.0]);
    assert_grads(&y, &[(&a, &[2.0]), (&b, &[5.0])]);
    assert!(!weighted(&[&frozen, &frozen]).unwrap().track_op());
}

#[test]
fn one_tensor_may_be_several_inputs() {
    let a = var(&[1.0, -2.0]);
    let computed = weighted(&[a.as_tensor()]).unwrap();
    let foreign = (a.as_tensor() * 10.0).unwrap();
    let y = weighted(&[&a, &computed, &foreign, &a, &computed, &foreign, &a]).unwrap();
    let expected = [(1 + 2 + 4 + 5 + 7) as f64 + 10.0 * (3 + 6) as f64; 2];
    assert_grads(&y, &[(&a, &expected)]);
}

#[test]
fn variables_results_of_ours_and_results_of_candle_may_be_mixed() {
    let (a, b, c) = (var(&[1.0]), var(&[3.0]), var(&[-1.0]));
    let ab = weighted(&[&a, &b]).unwrap();
    let squared = ab.sqr().unwrap();
    let y = weighted(&[&c, &ab, &squared, &a, &weighted(&[&squared, &c]).unwrap()]).unwrap();
    // y = c + 2 ab + 3 ab^2 + 4 a + 5 (ab^2 + 2 c), with ab = a + 2 b = 7
    let dab = 2.0 + 16.0 * 7.0;
    assert_grads(&y, &[(&a, &[dab + 4.0]), (&b, &[2.0 * dab]), (&c, &[11.0])]);
}

#[test]
fn what_a_failed_pass_left_is_not_counted_by_the_next() {
    let a = var(&[1.0]);
    let shared = weighted(&[a.as_tensor()]).unwrap();
    let fails = join([Some(&shared)], Value::Tensor(a.detach()), Wrong(|_| None)).unwrap();
    // The first input's gradient has arrived at `shared` when the second fails.
    let broken = weighted(&[&shared, &fails]).unwrap();
    assert!(broken.backward().is_err());
    assert_grads(&weighted(&[&shared, &shared]).unwrap(), &[(&a, &[3.0])]);
}

#[test]
fn threads_may_go_back_through_one_graph_at_a_time() {
    let vars: Vec<Var> = (0..7).map(|i| var(&[i as f64])).collect();
    let shared = weighted(&vars.iter().map(Var::as_tensor).collect::<Vec<_>>()).unwrap();
    let y = weighted(&[&shared, &shared, &vars[0], &vars[1], &vars[2]]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let grads = y.backward().unwrap();
                    assert_grad(&grads, &vars[0], &[3.0 + 3.0]);
                    assert_grad(&grads, &vars[6], &[3.0 * 7.0]);
                }
            });
        }
    });
}
