use candle_core::{DType, Device, Tensor, Var};
use peft_nn::embedding;

use crate::support::{assert_same_bits, check_gradients, elements, error, random};

fn ids(dtype: DType) -> Tensor {
    Tensor::new(&[[0u32, 3, 1], [3, 3, 0]], &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

#[test]
fn rows_of_the_weight_in_the_order_of_the_ids() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let weight = random((4, 2), 1).to_dtype(dtype).unwrap();
        for ids in [ids(DType::U32), ids(DType::I64), ids(DType::U8)] {
            let rows = embedding(&ids, &weight).unwrap();
            assert_eq!(rows.dims(), [2, 3, 2]);
            assert!(!rows.track_op());
            assert_same_bits(&rows.get(0).unwrap().get(1).unwrap(), &weight.get(3).unwrap());
            assert_same_bits(&rows.get(1).unwrap().get(2).unwrap(), &weight.get(0).unwrap());
        }
    }
}

#[test]
fn the_gradient_of_a_trained_weight_adds_up_over_repeated_ids() {
    check_gradients(&[random((4, 2), 1)], |v| embedding(&ids(DType::U32), &v[0]));
    check_gradients(&[random((2, 4), 1)], |v| embedding(&ids(DType::U32).t()?, &v[0].t()?));
}

/// In f32: sixteen times 1 / 16 added to 16 in bf16, one by one, would be lost.
#[test]
fn the_gradient_of_a_sixteen_bit_weight_is_rounded_once() {
    let weight = Var::from_tensor(&random((2, 3), 1).to_dtype(DType::BF16).unwrap()).unwrap();
    let ids = Tensor::zeros(17, DType::U32, &Device::Cpu).unwrap();
    let mut factors = vec![0.0625f32; 17];
    factors[0] = 16.0;
    let factors = Tensor::from_vec(factors, (17, 1), &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
    let output = embedding(&ids, &weight).unwrap().broadcast_mul(&factors).unwrap();
    let grads = output.sum_all().unwrap().backward().unwrap();
    assert_eq!(elements(grads.get(&weight).unwrap()), [17.0, 17.0, 17.0, 0.0, 0.0, 0.0]);
}

#[test]
fn no_ids_give_no_rows() {
    let ids = Tensor::zeros((2, 0), DType::U32, &Device::Cpu).unwrap();
    assert_eq!(embedding(&ids, &random((4, 3), 1)).unwrap().dims(), [2, 0, 3]);
}

#[test]
fn ids_outside_the_vocabulary_are_errors() {
    let weight = random((4, 2), 1);
    for (id, shown) in [(4, "4"), (-1, "-1"), (i64::MAX, "9223372036854775807"), (u32::MAX.into(), "4294967295")] {
        let ids = Tensor::new(&[0, id], &Device::Cpu).unwrap();
        assert!(error(embedding(&ids, &weight)).contains(&format!("token id {shown} is out of range")));
    }
    let largest = Tensor::new(&[u32::MAX], &Device::Cpu).unwrap();
    assert!(error(embedding(&largest, &weight)).contains("out of range"));
    assert!(error(embedding(&weight, &weight)).contains("ids are f64"));
    assert!(error(embedding(&ids(DType::U32), &random(4, 1))).contains("(vocabulary, width)"));
}
