//! Dropout: seeded, unbiased, off at inference.

use crate::support::{assert_same, build, fill, largest_difference, plain, random, site, unseen};
use candle_core::{DType, Device, Tensor};
use peft_core::{AdapterLayer, HostKind, Mode, WeightLayout};
use std::sync::Arc;

/// Two layers of the same weights, with dropout `p`.
fn layers(kind: HostKind, p: f64) -> Vec<Arc<dyn AdapterLayer>> {
    let sites = ["a", "b"].map(|path| site(path, kind, random((6, 5), 4), WeightLayout::OutIn));
    let mut config = plain().with_r(3).with_u(4).with_weight_tying(1.0);
    config.tinylora_dropout = p;
    let (layers, params) = build(&config, &sites, None).unwrap();
    fill(&params);
    layers
}

fn input(kind: HostKind) -> (Tensor, Tensor) {
    match kind {
        HostKind::Embedding => (
            Tensor::new(&[[0u32, 5, 2, 2]], &Device::Cpu).unwrap(),
            Tensor::zeros((1, 4, 5), DType::F32, &Device::Cpu).unwrap(),
        ),
        _ => (random((4, 5), 6), Tensor::zeros((4, 6), DType::F32, &Device::Cpu).unwrap()),
    }
}

const KINDS: [HostKind; 2] = [HostKind::Linear, HostKind::Embedding];

#[test]
fn masks_follow_from_the_seed() {
    for kind in KINDS {
        let layers = layers(kind, 0.5);
        let (x, zero) = input(kind);
        let run = |layer: usize, seed| {
            layers[layer].reseed(seed);
            let y = || layers[layer].forward(unseen(&x), &x, zero.clone(), Mode::Train).unwrap();
            (y(), y())
        };
        let ((first, second), (again, again_second)) = (run(0, 7), run(0, 7));
        assert_same("first", &first, &again);
        assert_same("second", &second, &again_second);
        assert!(largest_difference(&first, &second) > 1e-6, "the next call has another mask");
        assert!(largest_difference(&first, &run(0, 8).0) > 1e-6, "another seed has another mask");
    }
}

#[test]
fn layers_have_masks_of_their_own() {
    let layers = layers(HostKind::Linear, 0.5);
    let ones = Tensor::ones((512, 5), DType::F32, &Device::Cpu).unwrap();
    let zero = Tensor::zeros((512, 6), DType::F32, &Device::Cpu).unwrap();
    // A row whose inputs were all dropped has no change, whatever the projection is.
    let dead = |layer: usize| -> Vec<usize> {
        layers[layer].reseed(3);
        let y =
            layers[layer].forward(unseen(&ones), &ones, zero.clone(), Mode::Train).unwrap().to_vec2::<f32>().unwrap();
        y.iter().enumerate().filter(|(_, row)| row.iter().all(|v| *v == 0.0)).map(|(i, _)| i).collect()
    };
    assert!(!dead(0).is_empty());
    assert_ne!(dead(0), dead(1));
}

#[test]
fn it_is_off_at_inference_and_without_probability() {
    for kind in KINDS {
        let (x, zero) = input(kind);
        let plain = layers(kind, 0.0)[0].forward(unseen(&x), &x, zero.clone(), Mode::Train).unwrap();
        let inferred = layers(kind, 0.7)[0].forward(unseen(&x), &x, zero.clone(), Mode::Infer).unwrap();
        assert_same("y", &plain, &inferred);
        let nothing = layers(kind, 1.0)[0].forward(unseen(&x), &x, zero.clone(), Mode::Train).unwrap();
        assert_same("all dropped", &nothing, &zero);
    }
}

#[test]
fn its_mean_is_the_layer_without_it() {
    const RUNS: usize = 4000;
    for kind in KINDS {
        let layers = layers(kind, 0.3);
        let (x, zero) = input(kind);
        layers[0].reseed(11);
        let runs: Vec<Tensor> =
            (0..RUNS).map(|_| layers[0].forward(unseen(&x), &x, zero.clone(), Mode::Train).unwrap().detach()).collect();
        let runs = Tensor::stack(&runs, 0).unwrap().to_dtype(DType::F64).unwrap();
        let mean = runs.mean(0).unwrap();
        let error = (runs.var(0).unwrap() / RUNS as f64).unwrap().sqrt().unwrap();
        let exact = layers[0].forward(unseen(&x), &x, zero, Mode::Infer).unwrap().to_dtype(DType::F64).unwrap();
        let deviation = ((mean - exact).unwrap().abs().unwrap() / (error + 1e-12).unwrap()).unwrap();
        let worst: f64 = deviation.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
        assert!(worst < 5.0, "{worst} standard errors off");
        assert!(worst > 0.01, "dropout did nothing");
    }
}
