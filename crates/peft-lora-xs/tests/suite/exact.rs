//! Deltas and gradients against factors that faer computes in f64.

use crate::support::{EMBED_SCALE, ids, model, output, trained, weight};
use candle_core::{DType, Device, Tensor};
use peft_core::{HostKind, ParamKey, PeftModel};
use peft_testkit::assert::{assert_close, assert_relatively_close, values};

/// Singular vectors are computed in f32: their error is its rounding over the gap to the next singular value, which is 0.1 and more in
/// these weights.
const F32: f64 = 2e-5;

/// `B` `(rows, r)` and `A` `(r, cols)`: the singular values are on the side of the input.
struct Factors {
    b: Tensor,
    a: Tensor,
}

/// The leading factors of a weight from a complete decomposition in f64, with the signs that this workspace chooses.
fn factors(path: &str, r: usize) -> Factors {
    let (weight, kind) = (weight(path), if path == "embedding" { HostKind::Embedding } else { HostKind::Linear });
    let (rows, cols) = weight.dims2().unwrap();
    let elements = values(&weight).unwrap();
    let svd = faer::MatRef::from_row_major_slice(&elements, rows, cols).thin_svd().unwrap();
    let (u, v) = (svd.U(), svd.V());
    let (mut b, mut a) = (vec![], vec![]);
    for j in 0..r {
        let largest = (0..rows).map(|i| u[(i, j)]).max_by(|x, y| x.abs().total_cmp(&y.abs())).unwrap();
        let value = svd.S().column_vector()[j];
        let (left, right) = match kind {
            HostKind::Embedding => (value * largest.signum(), largest.signum()),
            _ => (largest.signum(), value * largest.signum()),
        };
        b.extend((0..rows).map(|i| u[(i, j)] * left));
        a.extend((0..cols).map(|i| v[(i, j)] * right));
    }
    let matrix = |elements, shape: (usize, usize)| Tensor::from_vec(elements, shape, &Device::Cpu).unwrap();
    Factors { b: matrix(b, (r, rows)).t().unwrap().contiguous().unwrap(), a: matrix(a, (r, cols)) }
}

fn tensor(model: &PeftModel<crate::support::Small>, path: &str, name: &str) -> Tensor {
    model.adapter("default").unwrap().params.tensor(&ParamKey::site(path, name)).unwrap().clone()
}

#[test]
fn the_frozen_factors_are_the_leading_ones_with_the_singular_values_on_the_side_of_the_input() {
    let model = trained();
    for path in ["embedding", "up", "down"] {
        let Factors { b, a } = factors(path, 3);
        assert_close(path, &tensor(&model, path, "lora_xs_B"), &b, F32);
        assert_close(path, &tensor(&model, path, "lora_xs_A"), &a, F32);
        // The other side is orthonormal.
        let plain = if path == "embedding" { a.t().unwrap().contiguous().unwrap() } else { b };
        let gram = plain.t().unwrap().matmul(&plain).unwrap();
        assert_close(path, &gram, &Tensor::eye(3, DType::F64, &Device::Cpu).unwrap(), 1e-12);
    }
}

#[test]
fn deltas_are_the_scaled_product() {
    let model = trained();
    for path in ["embedding", "up", "down"] {
        let Factors { b, a } = factors(path, 3);
        let expected = (b.matmul(&tensor(&model, path, "lora_xs_R")).unwrap().matmul(&a).unwrap() * 2.0).unwrap();
        let delta = model.delta_weight("default", path).unwrap();
        let delta = if path == "down" { delta.t().unwrap() } else { delta };
        assert_relatively_close(path, &delta, &expected, F32);
    }
}

/// `dR = scaling * B^T dW A^T`, where `dW` is the gradient of the adapted weight.
#[test]
fn gradients_are_those_of_the_weight_between_the_factors() {
    let mut adapted = trained();
    let expected = {
        // The same model with its adapter merged, layer by layer by hand.
        let plus = |path: &str| {
            let delta = adapted.delta_weight("default", path).unwrap();
            let delta = if path == "down" { delta.t().unwrap().contiguous().unwrap() } else { delta };
            (weight(path) + delta).unwrap()
        };
        let (embed, up, down) = (plus("embedding"), plus("up"), plus("down"));
        let ids = ids().flatten_all().unwrap();
        let x0 = (embed.index_select(&ids, 0).unwrap() * EMBED_SCALE).unwrap();
        let x1 = x0.matmul(&up.t().unwrap().contiguous().unwrap()).unwrap();
        let y = x1.matmul(&down.t().unwrap().contiguous().unwrap()).unwrap();
        // The loss is half the sum of squares, so the gradient of the output is the output.
        let t = |tensor: &Tensor| tensor.t().unwrap().contiguous().unwrap();
        let d1 = y.matmul(&down).unwrap();
        let d0 = d1.matmul(&up).unwrap();
        let rows = Tensor::zeros((11, 6), DType::F64, &Device::Cpu).unwrap();
        let d_embed = rows.index_add(&ids, &(d0 * EMBED_SCALE).unwrap(), 0).unwrap();
        [("embedding", d_embed), ("up", t(&d1).matmul(&x0).unwrap()), ("down", t(&y).matmul(&x1).unwrap())].map(
            |(path, weight)| {
                let Factors { b, a } = factors(path, 3);
                (path, (t(&b).matmul(&weight).unwrap().matmul(&t(&a)).unwrap() * 2.0).unwrap())
            },
        )
    };
    adapted.train().unwrap();
    let loss = (output(&adapted).sqr().unwrap().sum_all().unwrap() * 0.5).unwrap();
    let grads = loss.backward().unwrap();
    adapted.audit_gradients(&grads).unwrap();
    let trainable = adapted.trainable();
    assert_eq!(trainable.len(), 3, "R alone is trained");
    for (path, expected) in expected {
        let key = ParamKey::site(path, "lora_xs_R").to_string();
        let (_, var) = trainable.iter().find(|(name, _)| *name == key).unwrap();
        assert_relatively_close(path, grads.get(var).unwrap(), &expected, F32);
    }
}

#[test]
fn a_rank_beyond_a_weight_is_the_weights_own() {
    let mut model = model();
    let mut config = crate::support::everywhere(40);
    config.lora_xs_alpha = 80.0;
    model.add_adapter("default", config).unwrap();
    for (path, rank) in [("embedding", 6), ("up", 6), ("down", 4)] {
        let r = tensor(&model, path, "lora_xs_R");
        assert_eq!(r.dims(), [rank, rank], "{path}");
        // All directions are kept: with R the identity the delta is the weight, times the scaling of the config's rank.
        let (_, var) = model.trainable().into_iter().find(|(name, _)| name.contains(path)).unwrap();
        var.set(&Tensor::eye(rank, DType::F64, &Device::Cpu).unwrap()).unwrap();
        let delta = model.delta_weight("default", path).unwrap();
        let delta = if path == "down" { delta.t().unwrap() } else { delta };
        assert_close(path, &delta, &(weight(path) * 2.0).unwrap(), F32);
    }
}
