//! Optimizer steps.

use crate::tiny;
use candle_core::{Device, Tensor, Var};
use peft_core::nn::Linear;
use peft_core::{
    Adaptable, AdapterLayer, AdapterMethod, HostKind, HostSpec, HostView, Mode, ModuleNames, ParamBuilder, ParamKey,
    PeftModel, Site, TargetSpec, Walk, WalkMut,
};
use peft_models::{CausalLanguageModel, CausalLm, ForwardOptions, ModelShape};
use peft_train::Error;
use peft_train::loss::NextTokenLoss;
use peft_train::optim::{OptimizerConfig, SgdConfig};
use peft_train::schedule::ScheduleKind;
use peft_train::sft::{SftConfig, Trainer};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

fn values(model: &PeftModel<impl Adaptable>) -> Vec<f32> {
    let vars = model.vars();
    vars.iter().flat_map(|var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

fn trained(config: SftConfig, mut model: PeftModel<CausalLm>) -> (Vec<f64>, Vec<f32>) {
    let data = tiny::dataset(&tiny::rows(10, 1));
    let mut trainer = Trainer::new(&mut model, &data, config).unwrap();
    let mut losses = vec![];
    while !trainer.is_finished() {
        losses.push(trainer.step().unwrap().loss);
    }
    (losses, values(&model))
}

#[test]
fn training_lowers_the_loss_and_repeats_itself() {
    let config = SftConfig { steps: 30, batch_size: 10, ..tiny::config() };
    let (losses, values) = trained(config.clone(), tiny::with_method(tiny::method()));
    assert!(losses[29] < losses[0] - 0.1, "{losses:?}");
    assert_eq!((losses, values), trained(config, tiny::with_method(tiny::method())));
}

#[test]
fn dropout_follows_the_seed() {
    let [first, again, other] = [1, 1, 2].map(|seed| {
        // Rows in file order: the seed decides about dropout alone.
        let config = SftConfig { seed, shuffle: false, ..tiny::config() };
        trained(config, tiny::with_dropout())
    });
    assert_eq!(first, again);
    assert_ne!(first.1, other.1);
}

/// One step of plain descent, with gradients from a loss over all rows at once.
#[test]
fn a_step_over_several_batches_is_one_over_all_their_tokens() {
    // Rows of very different lengths, so that a mean of means would differ.
    let rows = [vec![1, 2], vec![9; 30], vec![3, 4, 5], vec![7; 12]].to_vec();
    let data = tiny::dataset(&rows);
    let optimizer = OptimizerConfig::Sgd(SgdConfig::default());
    let config = SftConfig {
        steps: 1,
        batch_size: 1,
        grad_accum: 4,
        learning_rate: 0.5,
        optimizer,
        schedule: ScheduleKind::Constant,
        shuffle: false,
        ..SftConfig::default()
    };
    let mut accumulated = tiny::adapted();
    let metrics = Trainer::new(&mut accumulated, &data, config).unwrap().step().unwrap();

    let mut whole = tiny::adapted();
    whole.train().unwrap();
    let before = values(&whole);
    let batch = peft_train::data::Batch::collate(data.examples().iter().map(|e| &e.encoded), 0, &Device::Cpu).unwrap();
    let loss = NextTokenLoss::of_batch(whole.base(), &batch).unwrap().mean().unwrap();
    let grads = loss.backward().unwrap();
    let gradient: Vec<f32> = whole
        .vars()
        .iter()
        .flat_map(|v| grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
        .collect();

    assert_eq!(metrics.tokens, 1 + 29 + 2 + 11);
    let expected = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((metrics.loss - expected).abs() < 1e-6 * expected, "{} {expected}", metrics.loss);
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    assert!((metrics.grad_norm - norm).abs() < 1e-5 * norm, "{} {norm}", metrics.grad_norm);
    for ((found, before), gradient) in values(&accumulated).into_iter().zip(before).zip(gradient) {
        assert!((found - (before - 0.5 * gradient)).abs() < 1e-6);
    }
}

#[test]
fn the_schedule_and_the_clipping_reach_the_optimizer() {
    let data = tiny::dataset(&tiny::rows(4, 1));
    let optimizer = OptimizerConfig::Sgd(SgdConfig::default());
    let config =
        SftConfig { steps: 4, warmup_steps: 2, grad_clip: Some(1e-3), optimizer, learning_rate: 1.0, ..tiny::config() };
    let mut last = values(&tiny::adapted());
    let mut rates = vec![];
    let mut moved = vec![];
    for steps in 1..=4 {
        let mut model = tiny::adapted();
        let mut trainer = Trainer::new(&mut model, &data, config.clone()).unwrap();
        let metrics = (0..steps).map(|_| trainer.step().unwrap()).last().unwrap();
        assert!(metrics.grad_norm > 1e-3);
        rates.push(metrics.learning_rate);
        let now = values(&model);
        moved.push(now.iter().zip(&last).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt());
        last = now;
    }
    assert_eq!(rates, [0.0, 0.5, 1.0, 0.5]);
    for (moved, rate) in moved.iter().zip(rates) {
        assert!((moved - 1e-3 * rate).abs() < 1e-6, "moved {moved} at rate {rate}");
    }
}

#[test]
fn options_out_of_range_are_named() {
    let data = tiny::dataset(&tiny::rows(4, 1));
    let refuse =
        |config: SftConfig| Trainer::new(&mut tiny::adapted(), &data, config).map(|_| ()).unwrap_err().to_string();
    assert!(refuse(SftConfig { steps: 0, ..tiny::config() }).contains("steps"));
    assert!(refuse(SftConfig { batch_size: 0, ..tiny::config() }).contains("batch_size"));
    assert!(refuse(SftConfig { grad_accum: 0, ..tiny::config() }).contains("grad_accum"));
    assert!(refuse(SftConfig { grad_clip: Some(-1.0), ..tiny::config() }).contains("grad_clip"));
    assert!(refuse(SftConfig { learning_rate: f64::INFINITY, ..tiny::config() }).contains("learning_rate"));
    assert!(refuse(SftConfig { warmup_steps: 7, ..tiny::config() }).contains("warm-up"));
    let nothing = Trainer::new(&mut PeftModel::new(tiny::base()), &data, tiny::config()).map(|_| ()).unwrap_err();
    assert!(nothing.to_string().contains("nothing to train"), "{nothing}");
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_step() {
    let data = tiny::dataset(&tiny::rows(4, 1));
    let mut model = tiny::adapted();
    let var = model.vars().remove(0);
    let poison = vec![f32::NAN; var.elem_count()];
    var.set(&Tensor::from_vec(poison, var.shape(), &Device::Cpu).unwrap()).unwrap();
    let mut trainer = Trainer::new(&mut model, &data, tiny::config()).unwrap();
    for _ in 0..2 {
        let error = trainer.step().unwrap_err();
        assert!(matches!(error, Error::NonFiniteLoss { step: 1, .. }), "{error}");
        assert_eq!(trainer.finished_steps(), 0);
    }
    let error = trainer.check_finite().unwrap_err().to_string();
    assert!(error.contains("tinylora_v"), "{error}");
}

/// Trains one number that is used and one that is not.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct HalfDead {
    #[serde(flatten)]
    targets: TargetSpec,
}

#[derive(Debug)]
struct Scale(Var);

impl AdapterLayer for Scale {
    fn forward(
        &self,
        _host: HostView<'_>,
        _input: &Tensor,
        output: Tensor,
        _mode: Mode,
    ) -> candle_core::Result<Tensor> {
        output.broadcast_mul(self.0.as_tensor())
    }

    fn delta_weight(&self, base: &Tensor) -> peft_core::Result<Tensor> {
        Ok(base.zeros_like()?)
    }
}

impl AdapterMethod for HalfDead {
    const PEFT_TYPE: &'static str = "HALF_DEAD";

    fn targets(&self) -> &TargetSpec {
        &self.targets
    }

    fn targets_mut(&mut self) -> &mut TargetSpec {
        &mut self.targets
    }

    fn supports(&self, host: &HostSpec) -> bool {
        host.kind == HostKind::Linear
    }

    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> peft_core::Result<Vec<Arc<dyn AdapterLayer>>> {
        let mut one = |key| {
            let ones = || Ok(Tensor::ones(1, candle_core::DType::F32, &Device::Cpu)?);
            params.trainable(key, 1, candle_core::DType::F32, &Device::Cpu, ones)
        };
        one(ParamKey::shared("idle"))?;
        let mut layers: Vec<Arc<dyn AdapterLayer>> = vec![];
        for site in sites {
            layers.push(Arc::new(Scale(one(ParamKey::site(&site.path, "scale"))?.var().clone())));
        }
        Ok(layers)
    }
}

#[test]
fn a_trainable_without_a_gradient_is_caught_on_the_first_step() {
    let data = tiny::dataset(&tiny::rows(4, 1));
    let mut model = PeftModel::new(tiny::base());
    let targets = TargetSpec::new(ModuleNames::list(["q_proj"]));
    model.add_adapter("default", HalfDead { targets }).unwrap();
    let error = Trainer::new(&mut model, &data, tiny::config()).unwrap().step().unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Core(peft_core::Error::MissingGradients(_))), "{message}");
    assert!(message.contains("base_model.idle") && !message.contains("scale"), "{message}");
}

/// A model from outside.
#[derive(Debug)]
struct Wrapped(CausalLm);

impl Adaptable for Wrapped {
    fn visit(&self, walk: &mut Walk<'_>) -> peft_core::Result<()> {
        self.0.visit(walk)
    }

    fn visit_mut(&mut self, walk: &mut WalkMut<'_>) -> peft_core::Result<()> {
        self.0.visit_mut(walk)
    }
}

impl CausalLanguageModel for Wrapped {
    fn shape(&self) -> ModelShape {
        self.0.shape()
    }

    fn eos_token_ids(&self) -> &[u32] {
        &[]
    }

    fn config_fields(&self) -> serde_json::Map<String, serde_json::Value> {
        self.0.config_fields()
    }

    fn hidden(&self, input_ids: &Tensor, options: ForwardOptions<'_>) -> candle_core::Result<Tensor> {
        self.0.hidden(input_ids, options)
    }

    fn head(&self) -> &Linear {
        self.0.head()
    }
}

#[test]
fn any_causal_language_model_can_be_trained() {
    let data = tiny::dataset(&tiny::rows(4, 1));
    let mut model = PeftModel::new(Wrapped(tiny::base()));
    model.add_adapter("default", tiny::method()).unwrap();
    let before = values(&model);
    let mut trainer = Trainer::new(&mut model, &data, tiny::config()).unwrap();
    trainer.step().unwrap();
    assert_ne!(values(&model), before);
}
