//! What a layer computes, by hand, and which gradients it leaves behind.

use candle_core::{DType, Device, Module, Tensor, TensorId};
use peft_core::checkpoint::DetachedAdapter;
use peft_core::nn::Linear;
use peft_core::{Adapter, PeftModel, adaptable};
use peft_ia3::Ia3Config;
use peft_testkit::assert::{assert_close, assert_same, values};
use peft_testkit::tiny::noise;
use std::collections::{BTreeMap, BTreeSet};

struct Net {
    up: Linear,
    down: Linear,
}
adaptable!(Net { up as "up_proj", down as "down_proj" });

impl Net {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.down.forward(&self.up.forward(xs)?)
    }
}

/// Two layers with biases in f64, the second stored transposed.
fn net() -> PeftModel<Net> {
    let draw = |shape: &[usize], seed| noise(shape, DType::F64, seed).unwrap();
    let up = Linear::new(draw(&[5, 3], 1), Some(draw(&[5], 2)));
    PeftModel::new(Net { up, down: Linear::from_transposed(draw(&[5, 4], 3), Some(draw(&[4], 4))) })
}

fn xs() -> Tensor {
    noise((7, 3), DType::F64, 5).unwrap()
}

fn adapted() -> PeftModel<Net> {
    let mut model = net();
    model.add_adapter("default", Ia3Config::new(["up_proj", "down_proj"], ["down_proj"])).unwrap();
    for (name, var) in model.trainable() {
        let seed = if name.contains("up_proj") { 6 } else { 7 };
        var.set(&noise(var.shape(), DType::F64, seed).unwrap()).unwrap();
    }
    model.eval().unwrap();
    model
}

fn persisted(adapter: &Adapter) -> BTreeMap<String, Tensor> {
    adapter.params.persisted().map(|(key, tensor)| (key.to_string(), tensor.clone())).collect()
}

/// `l (W x + b)` and `W (l x) + b`, element by element.
#[test]
fn outputs_are_scaled_with_their_bias_and_inputs_before_the_weight() {
    let model = adapted();
    let l = persisted(model.adapter("default").unwrap());
    let (up, down) = (&l["base_model.model.up_proj.ia3_l"], &l["base_model.model.down_proj.ia3_l"]);
    assert_eq!((up.dims(), down.dims()), ([5, 1].as_slice(), [1, 5].as_slice()));
    let v = |t: &Tensor| values(t).unwrap();
    let draw = |shape: &[usize], seed| v(&noise(shape, DType::F64, seed).unwrap());
    let (w1, b1, w2, b2) = (draw(&[5, 3], 1), draw(&[5], 2), draw(&[5, 4], 3), draw(&[4], 4));
    let (l1, l2, x) = (v(up), v(down), v(&xs()));
    let mut expected = vec![];
    for row in 0..7 {
        let inner: Vec<f64> =
            (0..5).map(|i| l1[i] * ((0..3).map(|j| w1[3 * i + j] * x[3 * row + j]).sum::<f64>() + b1[i])).collect();
        expected.extend((0..4).map(|o| (0..5).map(|i| w2[4 * i + o] * l2[i] * inner[i]).sum::<f64>() + b2[o]));
    }
    let expected = Tensor::from_vec(expected, (7, 4), &Device::Cpu).unwrap();
    // The same sums in another order: some roundings of numbers of the order of 1.
    assert_close("the outputs", &model.base().forward(&xs()).unwrap(), &expected, 1e-15);
}

/// A vector of zeros takes the weights with it, and PEFT's unmerging, a division, cannot bring them back.
#[test]
fn zeros_are_merged_and_taken_out_again() {
    let mut model = adapted();
    let base = net().base().forward(&xs()).unwrap();
    for (_, var) in model.trainable() {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    let zeros = model.base().forward(&xs()).unwrap();
    model.merge().unwrap();
    assert_same("merged", &model.base().forward(&xs()).unwrap(), &zeros);
    model.unmerge().unwrap();
    model.disable().unwrap();
    assert_same("without the adapter", &model.base().forward(&xs()).unwrap(), &base);
}

/// Nothing but the vectors has a gradient at the end: no weight, and no activation that no vector had touched.
#[test]
fn gradients_belong_to_vectors_alone() {
    let mut model = adapted();
    model.train().unwrap();
    let grads = model.base().forward(&xs()).unwrap().sum_all().unwrap().backward().unwrap();
    let ids = |ids: Vec<TensorId>| ids.into_iter().map(|id| format!("{id:?}")).collect::<BTreeSet<_>>();
    let vectors = ids(model.vars().iter().map(|var| var.id()).collect());
    assert_eq!(ids(grads.get_ids().copied().collect()), vectors);
}

/// A vector tells one side of its weight; that is enough for what needs no base model.
#[test]
fn an_adapter_opens_without_its_base() {
    let model = adapted();
    let adapter = model.adapter("default").unwrap();
    let detached = DetachedAdapter::from_source(adapter.config.clone(), &persisted(adapter)).unwrap();
    let sides: Vec<_> = detached.sites.iter().map(|s| (s.path.as_str(), s.spec.rows, s.spec.cols)).collect();
    assert_eq!(sides, [("up_proj", 5, 0), ("down_proj", 0, 5)]);
    let weight = noise((5, 4), DType::F64, 3).unwrap();
    let delta = detached.sites[1].layer.delta_weight(&weight.t().unwrap()).unwrap();
    let expected = model.delta_weight("default", "down_proj").unwrap();
    // Without a base the vector is kept in f32.
    assert_close("the delta", &delta.t().unwrap(), &expected, 1e-7);
}
