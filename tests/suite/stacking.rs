//! Adapters of different methods on the same layers: each sees the host with those before it, and merging folds them in that order.

use candle_core::{DType, Module, Tensor};
use candle_peft::core::nn::Linear;
use candle_peft::core::{BoxedMethod, ParamKey};
use candle_peft::ia3::Ia3Config;
use candle_peft::lora::LoraConfig;
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::{ModuleNames, PeftModel, TargetSpec, adaptable};
use peft_testkit::assert::{assert_close, assert_relatively_close, assert_same, check_relatively_close};
use peft_testkit::tiny::{TinyModel, TinySpec, noise};

const ORDERS: [[&str; 3]; 6] = [
    ["ia3", "lora", "tinylora"],
    ["ia3", "tinylora", "lora"],
    ["lora", "ia3", "tinylora"],
    ["tinylora", "ia3", "lora"],
    ["lora", "tinylora", "ia3"],
    ["tinylora", "lora", "ia3"],
];

/// A method by the name that its adapter gets.
fn method(name: &str, modules: &[&str], feedforward: &[&str]) -> BoxedMethod {
    let targets = TargetSpec::new(ModuleNames::list(modules.iter().copied()));
    match name {
        "lora" => LoraConfig::with_rank(2, targets).into(),
        "tinylora" => TinyLoraConfig::new(targets).with_u(3).into(),
        _ => Ia3Config::new(modules.iter().copied(), feedforward.iter().copied()).into(),
    }
}

/// Attaches these methods in this order, as if trained, and activates them all.
fn stack<M: candle_peft::core::Adaptable>(base: M, methods: &[(&str, BoxedMethod)]) -> PeftModel<M> {
    let mut model = PeftModel::new(base);
    for (name, method) in methods {
        model.add_adapter(name, method.clone()).unwrap();
        for (i, (_, var)) in model.trainable().into_iter().enumerate() {
            // Another change for every parameter, and the same in every order of attachment.
            let change = noise(var.shape(), DType::F64, 10 + i as u64).unwrap().to_dtype(var.dtype()).unwrap();
            var.set(&(var.as_tensor() + change).unwrap().detach()).unwrap();
        }
    }
    model.activate(&methods.iter().map(|(name, _)| *name).collect::<Vec<_>>()).unwrap();
    model.eval().unwrap();
    model
}

fn tiny(dtype: DType, order: &[&str]) -> PeftModel<TinyModel> {
    let modules = ["up_proj", "down_proj", "lm_head"];
    let methods: Vec<_> = order.iter().map(|name| (*name, method(name, &modules, &["down_proj"]))).collect();
    stack(TinySpec::of(dtype).build().unwrap(), &methods)
}

fn logits(model: &PeftModel<TinyModel>) -> Tensor {
    model.base().forward(&TinySpec::default().ids().unwrap()).unwrap()
}

#[test]
fn merging_gives_what_forward_gives_in_every_order() {
    let pairs = [["ia3", "lora"], ["lora", "ia3"]];
    let orders = pairs.iter().map(<[_; 2]>::as_slice).chain(ORDERS.iter().map(<[_; 3]>::as_slice));
    for order in orders {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-13)] {
            let mut model = tiny(dtype, order);
            let separate = logits(&model);
            model.merge().unwrap();
            assert_relatively_close(&format!("{order:?} {dtype:?}"), &logits(&model), &separate, tolerance);
            model.unmerge().unwrap();
            assert_same(&format!("{order:?} {dtype:?} unmerged"), &logits(&model), &separate);
        }
    }
}

#[test]
fn the_order_of_attachment_matters() {
    let (inside, outside) = (logits(&tiny(DType::F64, &["lora", "ia3"])), logits(&tiny(DType::F64, &["ia3", "lora"])));
    check_relatively_close("the logits", &inside, &outside, 1e-3).unwrap_err();
}

/// Gradients pass through the layers around: through an IA3 that is the innermost, in the middle, and the outermost.
#[test]
fn gradients_of_a_stack_match_finite_differences() {
    for order in ORDERS.into_iter().step_by(2) {
        let mut model = tiny(DType::F64, &order);
        model.train().unwrap();
        let loss = || logits(&model).sqr()?.mean_all();
        model.audit_gradients(&loss().unwrap().backward().unwrap()).unwrap();
        peft_testkit::gradient::check(&model.trainable(), &loss).unwrap_or_else(|e| panic!("{order:?}: {e}"));
    }
}

struct Net {
    proj: Linear,
}
adaptable!(Net { proj });

/// What a stack makes of `W x + b`, method by method: the state is a weight `(out, in)` and a bias.
fn by_hand(model: &PeftModel<Net>, order: &[&str], feedforward: bool, xs: &Tensor) -> Tensor {
    let (weight, bias) = (noise((4, 5), DType::F64, 1).unwrap(), noise(4, DType::F64, 2).unwrap());
    let state = order.iter().fold((weight, bias), |(weight, bias), name| {
        let tensor = |key: &str| {
            let params = &model.adapter(name).unwrap().params;
            params.tensor(&ParamKey::site("proj", key)).unwrap().clone()
        };
        let plus = |delta: Tensor| ((&weight + delta).unwrap(), bias.clone());
        match *name {
            "lora" => plus(tensor("lora_B.weight").matmul(&tensor("lora_A.weight")).unwrap()),
            "tinylora" => {
                let v = model.adapter(name).unwrap().params.tensor(&ParamKey::shared("tinylora_v.0")).unwrap().clone();
                let r = tensor("tinylora_P").broadcast_mul(&v.reshape((3, 1, 1)).unwrap()).unwrap().sum(0).unwrap();
                plus(tensor("tinylora_B").matmul(&r).unwrap().matmul(&tensor("tinylora_A")).unwrap())
            }
            _ => {
                let l = tensor("ia3_l");
                let scaled = weight.broadcast_mul(&l).unwrap();
                if feedforward { (scaled, bias) } else { (scaled, (bias * l.flatten_all().unwrap()).unwrap()) }
            }
        }
    });
    xs.matmul(&state.0.t().unwrap()).unwrap().broadcast_add(&state.1).unwrap()
}

#[test]
fn three_methods_on_one_layer_compute_what_their_formulas_say() {
    let xs = noise((6, 5), DType::F64, 3).unwrap();
    for order in ORDERS {
        for (feedforward, transposed) in [(false, false), (false, true), (true, false), (true, true)] {
            let (weight, bias) = (noise((4, 5), DType::F64, 1).unwrap(), noise(4, DType::F64, 2).unwrap());
            let proj = match transposed {
                false => Linear::new(weight, Some(bias)),
                true => Linear::from_transposed(weight.t().unwrap().contiguous().unwrap(), Some(bias)),
            };
            let scaled: &[&str] = if feedforward { &["proj"] } else { &[] };
            let methods = order.map(|name| (name, method(name, &["proj"], scaled)));
            let mut model = stack(Net { proj }, &methods);
            let expected = by_hand(&model, &order, feedforward, &xs);
            let what = format!("{order:?}, feed-forward {feedforward}, transposed {transposed}");
            // Sums of numbers of the order of 1, in another order.
            assert_close(&what, &model.base().proj.forward(&xs).unwrap(), &expected, 1e-14);
            model.merge().unwrap();
            assert_close(&format!("{what}, merged"), &model.base().proj.forward(&xs).unwrap(), &expected, 1e-14);
        }
    }
}
