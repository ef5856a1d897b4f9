//! Outputs and gradients against those of PyTorch and transformers, which `tests/fixtures/torch_{ops,attention}.py` wrote.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use peft_nn::{
    AttentionOptions, CrossEntropy, CrossEntropyOptions, Heads, IGNORE_INDEX, LowRank, OutputHead, RopeLayout, Rotary,
    WeightLayout, add, attention, cross_entropy, cross_entropy_with, embedding, gelu, gelu_new, layer_norm, linear,
    multi_head_attention, rms_norm, rope, rope_with_layout, softmax_last_dim, swiglu,
};

use crate::support::assert_close;

/// The tensors of one case: inputs become variables where PyTorch has a gradient for them.
struct Case {
    tensors: HashMap<String, Tensor>,
    vars: HashMap<String, Var>,
}

impl Case {
    fn load(name: &str) -> Self {
        let load = |file| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file);
            candle_core::safetensors::load(path, &Device::Cpu).unwrap()
        };
        let all = ["torch_ops.safetensors", "torch_attention.safetensors"].into_iter().flat_map(load);
        let prefix = format!("{name}.");
        let tensors: HashMap<String, Tensor> =
            all.filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?.to_string(), tensor))).collect();
        let vars = tensors
            .keys()
            .filter_map(|key| key.strip_suffix(".grad"))
            .map(|key| (key.to_string(), Var::from_tensor(&tensors[key]).unwrap()))
            .collect();
        Self { tensors, vars }
    }

    fn get(&self, key: &str) -> &Tensor {
        self.vars.get(key).map_or_else(|| &self.tensors[key], |var| var.as_tensor())
    }
}

fn check(op: &str, run: impl Fn(&Case) -> Result<Tensor>) {
    // bf16 keeps 8 bits; a sum of several rounded terms differs by a few of the last.
    for (dtype, tolerance) in [("float32", 2e-6), ("bfloat16", 1.0 / 64.0)] {
        let case = Case::load(&format!("{op}.{dtype}"));
        let output = run(&case).unwrap();
        assert_eq!(output.dtype(), case.get("output").dtype(), "{op} {dtype}");
        assert_close(&output, case.get("output"), tolerance);
        assert!(!case.vars.is_empty());
        let grads = (output * case.get("probe")).unwrap().sum_all().unwrap().backward().unwrap();
        for (key, var) in &case.vars {
            let expected = &case.tensors[&format!("{key}.grad")];
            assert_close(grads.get(var).unwrap(), expected, 2.0 * tolerance);
        }
    }
}

#[test]
fn linear_and_conv1d() {
    let run = |layout| move |c: &Case| linear(c.get("x"), c.get("weight"), layout, Some(c.get("bias")));
    check("linear", run(WeightLayout::OutIn));
    check("conv1d", run(WeightLayout::InOut));
}

#[test]
fn norms() {
    check("rms_norm", |c| rms_norm(c.get("x"), c.get("weight"), 1e-5));
    check("layer_norm", |c| layer_norm(c.get("x"), c.get("weight"), Some(c.get("bias")), 1e-5));
}

#[test]
fn rms_norm_rounds_as_transformers_does() {
    let case = Case::load("rms_norm.bfloat16");
    let output = rms_norm(case.get("x"), case.get("weight"), 1e-5).unwrap();
    assert_close(&output, case.get("output"), 0.0);
}

#[test]
fn swiglu_rounds_as_pytorch_does() {
    let case = Case::load("swiglu.bfloat16");
    assert_close(&swiglu(case.get("gate"), case.get("up")).unwrap(), case.get("output"), 0.0);
}

#[test]
fn rotary_embedding() {
    check("rope", |c| rope(c.get("x"), c.get("cos"), c.get("sin")));
    check("rope_interleaved", |c| rope_with_layout(c.get("x"), c.get("cos"), c.get("sin"), RopeLayout::Interleaved));
}

#[test]
fn softmax() {
    check("softmax", |c| softmax_last_dim(c.get("x")));
}

#[test]
fn grouped_query_attention_with_causal_and_padding_masks() {
    check("attention", |c| {
        let options = AttentionOptions::causal().with_key_padding(c.get("key_padding").clone());
        attention(c.get("q"), c.get("k"), c.get("v"), &options)
    });
}

#[test]
fn attention_of_whole_layers() {
    let heads = Heads { query: 6, key_value: 2 };
    let run = |options: AttentionOptions| {
        move |c: &Case| {
            let rotary = c.tensors.contains_key("cos").then(|| Rotary { cos: c.get("cos"), sin: c.get("sin") });
            multi_head_attention(c.get("q"), c.get("k"), c.get("v"), heads, rotary, &options)
        }
    };
    check("layer_causal", run(AttentionOptions::causal()));
    check("layer_window", run(AttentionOptions::causal().with_window(3)));
    check("layer_window_cached", run(AttentionOptions::causal().with_window(3)));
    check("layer_full", run(AttentionOptions::full()));
}

#[test]
fn activations() {
    check("swiglu", |c| swiglu(c.get("gate"), c.get("up")));
    check("gelu_new", |c| gelu_new(c.get("x")));
    check("gelu", |c| gelu(c.get("x")));
}

#[test]
fn addition() {
    check("add", |c| add(c.get("x"), c.get("y")));
}

#[test]
fn mean_cross_entropy() {
    check("cross_entropy", |c| {
        let loss = cross_entropy(c.get("logits"), c.get("labels"), IGNORE_INDEX)?;
        assert_eq!((loss.count(), loss.per_token().dtype()), (3, DType::F32));
        loss.mean()
    });
}

/// Whole logits and a head, at a temperature, with the entropies.
#[test]
fn policies() {
    let entropies = |case: &Case, losses: &CrossEntropy| {
        assert_close(losses.entropies().unwrap(), case.get("entropies"), 2e-6);
        assert!(!losses.entropies().unwrap().track_op());
    };
    check("policy", |c| {
        let head = OutputHead::new(c.get("weight"), WeightLayout::OutIn).with_logit_scale(1.0 / 0.7).with_entropies();
        let losses = head.cross_entropy(c.get("hidden"), c.get("labels"), IGNORE_INDEX)?;
        entropies(c, &losses);
        Ok(losses.per_token().clone())
    });
    check("policy", |c| {
        let logits = linear(c.get("hidden"), c.get("weight"), WeightLayout::OutIn, None)?;
        let options = CrossEntropyOptions::default().with_logit_scale(1.0 / 0.7).with_entropies();
        let losses = cross_entropy_with(&logits, c.get("labels"), options)?;
        entropies(c, &losses);
        Ok(losses.per_token().clone())
    });
}

#[test]
fn head_with_a_low_rank_change() {
    check("head", |c| {
        let change = LowRank::new(c.get("a").clone(), c.get("b").clone()).with_scale(0.5);
        let head = OutputHead::new(c.get("weight"), WeightLayout::OutIn).with_bias(Some(c.get("bias")));
        let losses = head.with_low_rank(Some(&change)).cross_entropy(c.get("hidden"), c.get("labels"), IGNORE_INDEX)?;
        assert_eq!(losses.count(), 4);
        losses.mean()
    });
}

#[test]
fn embedding_lookup() {
    check("embedding", |c| embedding(c.get("ids"), c.get("weight")));
}
