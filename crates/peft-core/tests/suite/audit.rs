//! The gradient audit: what got no gradient is named.

use crate::methods::Bottleneck;
use crate::support::{named, stir, tiny, with_bottleneck};
use candle_core::{Module, Tensor};
use peft_core::nn::Linear;
use peft_core::{Error, PeftModel, TargetSpec, adaptable};
use peft_testkit::tiny::{TinySpec, noise};

#[test]
fn a_whole_graph_passes() {
    let targets =
        TargetSpec { modules_to_save: Some(vec!["norm".into()]), ..named(&["embed_tokens", "up_proj", "down_proj"]) };
    let mut model = tiny();
    model.add_adapter("default", Bottleneck { bias: "all".into(), ..Bottleneck::on(targets) }).unwrap();
    stir(&model, 1);
    let loss = model.base().forward(&TinySpec::default().ids().unwrap()).unwrap().sqr().unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    model.audit_gradients(&grads).unwrap();
    assert_eq!(model.vars().len(), 5 + 4 + 4);
}

#[test]
fn frozen_tensors_get_no_gradient() {
    let model = with_bottleneck(named(&["up_proj", "down_proj"]));
    let loss = model.base().forward(&TinySpec::default().ids().unwrap()).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    for path in ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj", "lm_head", "model.norm"] {
        assert!(grads.get(&crate::support::weight(&model, path)).is_none(), "{path}");
    }
}

/// Two layers, of which the second sees its input through a cut in the graph.
struct Cut {
    first: Linear,
    second: Linear,
}
adaptable!(Cut { first, second });

impl Cut {
    fn forward(&self, xs: &Tensor) -> Tensor {
        self.second.forward(&self.first.forward(xs).unwrap().detach()).unwrap()
    }
}

#[test]
fn a_dead_trainable_is_named() {
    let layer = |seed| Linear::new(noise((3, 3), candle_core::DType::F32, seed).unwrap(), None);
    let mut model = PeftModel::new(Cut { first: layer(1), second: layer(2) });
    model.add_adapter("default", Bottleneck::on(named(&["first", "second"]))).unwrap();
    let xs = noise((2, 3), candle_core::DType::F32, 3).unwrap();
    let grads = model.base().forward(&xs).sum_all().unwrap().backward().unwrap();
    let error = model.audit_gradients(&grads).unwrap_err();
    match &error {
        Error::MissingGradients(names) => assert_eq!(names, &["base_model.model.first.bottleneck_B"]),
        error => panic!("{error}"),
    }
    assert!(error.to_string().starts_with("no gradient reached `base_model.model.first.bottleneck_B`: "), "{error}");
}

#[test]
fn long_lists_of_names_are_cut_short() {
    let names = (0..20).map(|i| format!("p{i}")).collect();
    let text = Error::MissingGradients(names).to_string();
    assert!(text.contains("`p7` and 12 more") && !text.contains("p8"), "{text}");
}

#[test]
fn inactive_adapters_need_no_gradient() {
    let mut model = with_bottleneck(named(&["up_proj"]));
    model.add_adapter("other", Bottleneck::on(named(&["down_proj"]))).unwrap();
    let loss = model.base().forward(&TinySpec::default().ids().unwrap()).unwrap().sum_all().unwrap();
    model.audit_gradients(&loss.backward().unwrap()).unwrap();
    model.activate(&["default", "other"]).unwrap();
    let error = model.audit_gradients(&loss.backward().unwrap()).unwrap_err().to_string();
    assert!(error.contains("`default/base_model.model.model.layers.0.mlp.up_proj.bottleneck_B`"), "{error}");
}
