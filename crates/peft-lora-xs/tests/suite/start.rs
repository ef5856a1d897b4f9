//! How a fresh adapter begins.

use crate::support::{Small, everywhere, model, output};
use peft_core::PeftModel;
use peft_testkit::assert::{assert_close, assert_same, largest, values};

fn fresh(init_std: f64) -> PeftModel<Small> {
    let mut model = model().with_init_seed(3);
    model.add_adapter("default", everywhere(5).with_init_std(init_std)).unwrap();
    model
}

#[test]
fn a_standard_deviation_of_zero_begins_at_the_exact_identity_and_trains() {
    let mut adapted = fresh(0.0);
    let plain = output(&model());
    assert_same("in training", &output(&adapted), &plain);
    let grads = output(&adapted).sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for (name, var) in adapted.trainable() {
        assert!(largest(grads.get(&var).unwrap()).unwrap() > 1e-3, "{name}");
    }
    adapted.eval().unwrap();
    assert_same("at inference", &output(&adapted), &plain);
}

/// `torch.nn.init.normal_(torch.empty(r, r), 0, 1e-5)` three times after `torch.manual_seed(3)`, PyTorch 2.11: the first four
/// elements and the last.
#[test]
fn r_is_what_pytorch_draws() {
    let drawn = [
        (
            "embedding",
            5,
            [
                -7.66442894928332e-7,
                3.598815055738669e-6,
                -7.820168320904486e-6,
                7.152773378038546e-7,
                -2.7121457151224604e-6,
            ],
        ),
        (
            "up",
            5,
            [
                1.0279964953952003e-5,
                7.189108828242752e-7,
                -1.8447618685968337e-6,
                -1.5158844689722173e-5,
                5.009264896216337e-6,
            ],
        ),
        (
            "down",
            4,
            [
                -9.136279572885542e-7,
                -7.349226962105604e-6,
                1.9858762243529782e-5,
                3.6247588468540926e-6,
                -8.822831659927033e-6,
            ],
        ),
    ];
    let model = fresh(1e-5);
    let params = &model.adapter("default").unwrap().params;
    for (path, rank, expected) in drawn {
        let r = params.tensor(&peft_core::ParamKey::site(path, "lora_xs_R")).unwrap();
        let r = values(r).unwrap();
        assert_eq!(r.len(), rank * rank, "{path}");
        let found = [r[0], r[1], r[2], r[3], r[rank * rank - 1]];
        assert_eq!(found, expected, "{path}");
    }
    assert_close("the output", &output(&model), &output(&crate::support::model()), 1e-3);
}
