//! What training keeps in memory, and for how long.

use crate::allocations::allocated;
use crate::tiny;
use candle_core::{DType, Device};
use peft_core::PeftModel;
use peft_models::{CausalLanguageModel, CausalLm, Checkpointing, load_model};
use peft_train::sft::{ActivationMemory, SftConfig, Trainer};
use std::fs;
use std::path::PathBuf;

fn with_memory(activation_memory: ActivationMemory) -> SftConfig {
    SftConfig { steps: 10, grad_accum: 2, activation_memory, ..tiny::config() }
}

/// Losses and final parameters of a short run.
fn train(mut model: PeftModel<CausalLm>, config: SftConfig) -> (Vec<f64>, Vec<f32>) {
    let data = tiny::dataset(&tiny::rows(10, 1));
    let mut trainer = Trainer::new(&mut model, &data, config).unwrap();
    let mut losses = vec![];
    while !trainer.is_finished() {
        losses.push(trainer.step().unwrap().loss);
    }
    let vars = model.vars();
    (losses, vars.iter().flat_map(|var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect())
}

#[test]
fn what_is_kept_does_not_change_what_is_learnt() {
    let all = train(tiny::with_dropout(), with_memory(ActivationMemory::default()));
    for memory in [
        ActivationMemory::Fixed(Checkpointing::EveryBlock),
        ActivationMemory::Fixed(Checkpointing::Every(2)),
        ActivationMemory::Within(1),
    ] {
        let some = train(tiny::with_dropout(), with_memory(memory));
        // The first loss is before any update.
        assert_eq!(all.0[0], some.0[0]);
        for (all, some) in all.0.iter().zip(&some.0) {
            assert!((all - some).abs() < 1e-4, "{all} and {some} with {memory:?}");
        }
        for (all, some) in all.1.iter().zip(&some.1) {
            assert!((all - some).abs() < 1e-3, "{all} and {some} with {memory:?}");
        }
    }
    assert_eq!(all, train(tiny::with_dropout(), with_memory(ActivationMemory::Within(usize::MAX))));
}

#[test]
fn a_budget_needs_a_model_that_tells() {
    #[derive(Debug)]
    struct Silent(CausalLm);

    impl peft_core::Adaptable for Silent {
        fn visit(&self, walk: &mut peft_core::Walk<'_>) -> peft_core::Result<()> {
            self.0.visit(walk)
        }

        fn visit_mut(&mut self, walk: &mut peft_core::WalkMut<'_>) -> peft_core::Result<()> {
            self.0.visit_mut(walk)
        }
    }

    impl CausalLanguageModel for Silent {
        fn shape(&self) -> peft_models::ModelShape {
            self.0.shape()
        }

        fn eos_token_ids(&self) -> &[u32] {
            self.0.eos_token_ids()
        }

        fn config_fields(&self) -> serde_json::Map<String, serde_json::Value> {
            self.0.config_fields()
        }

        fn hidden(
            &self,
            ids: &candle_core::Tensor,
            options: peft_models::ForwardOptions<'_>,
        ) -> candle_core::Result<candle_core::Tensor> {
            self.0.hidden(ids, options)
        }

        fn head(&self) -> &peft_core::nn::Linear {
            self.0.head()
        }
    }

    let mut model = PeftModel::new(Silent(tiny::base()));
    model.add_adapter("default", tiny::method()).unwrap();
    let data = tiny::dataset(&tiny::rows(10, 1));
    let mut trainer = Trainer::new(&mut model, &data, with_memory(ActivationMemory::Within(1 << 20))).unwrap();
    let error = trainer.step().unwrap_err().to_string();
    assert!(error.contains("activation_memory"), "{error}");
}

/// Of f32 parameters on a model in bf16: the course of the losses is that of the model in f32, but for rounding.
#[test]
fn a_bf16_model_learns_as_one_in_f32() {
    let [wide, narrow] = [DType::F32, DType::BF16].map(|dtype| {
        let base = load_model(tiny::base_folder(), dtype, &Device::Cpu).unwrap();
        let mut model = PeftModel::new(base);
        model.add_adapter("default", tiny::method()).unwrap();
        assert!(model.vars().iter().all(|var| var.dtype() == DType::F32));
        let config = SftConfig { steps: 30, batch_size: 10, ..tiny::config() };
        train(model, config).0
    });
    assert!(wide[29] < wide[0] - 0.1, "nothing was learnt: {wide:?}");
    for (step, (wide, narrow)) in wide.iter().zip(&narrow).enumerate() {
        assert!((wide - narrow).abs() < 0.02, "step {step}: {wide} in f32, {narrow} in bf16");
    }
}

/// Bytes that this thread holds are counted exactly, so a few steps show what many would add up to.
#[test]
fn nothing_stays_from_one_step_to_the_next() {
    for memory in [ActivationMemory::default(), ActivationMemory::Fixed(Checkpointing::EveryBlock)] {
        let data = tiny::dataset(&tiny::rows(10, 1));
        let mut model = tiny::with_dropout();
        let config = SftConfig { steps: 250, ..with_memory(memory) };
        let mut trainer = Trainer::new(&mut model, &data, config).unwrap();
        for _ in 0..10 {
            trainer.step().unwrap();
        }
        let peak = allocated(|| trainer.step().unwrap()).2;
        assert!(peak > 100_000, "a step was seen to hold {peak} bytes");
        let steps = || {
            for _ in 0..200 {
                trainer.step().unwrap();
            }
        };
        // The list of the outputs of all threads may grow on this one; a step that left a tensor would show all the same.
        let kept = allocated(steps).1;
        assert!(kept < 50_000, "{kept} bytes stay of 200 steps with {memory:?}");
    }
}

/// The resident memory of this process.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// By itself: `cargo test -p peft-train --test suite -- --ignored resident_memory`
#[test]
#[ignore = "takes a while, and other tests would disturb the measurement"]
#[cfg(target_os = "linux")]
fn resident_memory_is_flat_over_200_steps() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-llama");
    for memory in [ActivationMemory::default(), ActivationMemory::Fixed(Checkpointing::EveryBlock)] {
        let mut model = PeftModel::new(load_model(&folder, None, &Device::Cpu).unwrap());
        model.add_adapter("default", tiny::method()).unwrap();
        let data = tiny::dataset(&tiny::rows(40, 1));
        let config = SftConfig { steps: 200, batch_size: 8, activation_memory: memory, ..tiny::config() };
        let mut trainer = Trainer::new(&mut model, &data, config).unwrap();
        let mut after_warm_up = 0;
        while !trainer.is_finished() {
            trainer.step().unwrap();
            if trainer.finished_steps() == 50 {
                after_warm_up = resident();
            }
        }
        let grown = resident().saturating_sub(after_warm_up);
        assert!(grown < 2 << 20, "{grown} bytes more than {after_warm_up} with {memory:?}");
    }
}
