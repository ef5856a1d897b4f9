//! Optimizer steps on a model and a data set.

use super::SftConfig;
use crate::data::{Batch, BatchOrder, Batches, Dataset};
use crate::error::{Error, Result};
use crate::eval::{Evaluation, batch_of, evaluate};
use crate::fingerprint::{Fingerprint, derived_seed};
use crate::loss::NextTokenLoss;
use crate::metrics::TrainMetrics;
use crate::optim::Gradients;
use crate::state::TrainerState;
use crate::updates::Updates;
use candle_core::{DType, Device, Tensor};
use peft_core::PeftModel;
use peft_models::CausalLanguageModel;
use std::time::Instant;

/// Trains the active adapters of a model, one optimizer step at a time.
///
/// Steps count from 1; step `n` reads batches `(n - 1) * grad_accum ..` of the data order.
#[derive(Debug)]
pub struct Trainer<'a, M> {
    model: &'a mut PeftModel<M>,
    data: &'a Dataset,
    device: Device,
    config: SftConfig,
    order: BatchOrder,
    batches: Batches,
    updates: Updates,
}

impl<'a, M: CausalLanguageModel> Trainer<'a, M> {
    /// A trainer before its first step. The model is put into training mode.
    ///
    /// # Errors
    /// When an option is out of range or nothing is to be trained.
    pub fn new(model: &'a mut PeftModel<M>, data: &'a Dataset, config: SftConfig) -> Result<Self> {
        let schedule = config.validated_schedule()?;
        let order = BatchOrder::new(data.examples().len(), config.batch_size, config.shuffle.then_some(config.seed))?;
        let mut updates = Updates::new(model, config.optimizer, schedule, config.grad_clip)?;
        config.record(updates.fingerprint_mut())?;
        updates.fingerprint_mut().record_digest("data", data.fingerprint());
        model.train()?;
        let batches = order.batches_from(0);
        Ok(Self { device: model.base().device(), model, data, config, order, batches, updates })
    }

    /// The model in training.
    pub fn model(&self) -> &PeftModel<M> {
        self.model
    }

    /// The options.
    pub fn config(&self) -> &SftConfig {
        &self.config
    }

    /// Steps taken so far, those before a resume included.
    pub fn finished_steps(&self) -> u64 {
        self.updates.step()
    }

    /// Whether all steps of the run have been taken.
    pub fn is_finished(&self) -> bool {
        self.finished_steps() >= self.config.steps
    }

    /// Takes one optimizer step.
    ///
    /// # Errors
    /// [`Error::NonFiniteLoss`], [`Error::NonFiniteGradient`], and on the first step
    /// [`MissingGradients`](peft_core::Error::MissingGradients) for a trainable that the loss does not reach. The parameters
    /// are those before the step then, and calling this again tries the same step again.
    pub fn step(&mut self) -> Result<TrainMetrics> {
        let result = self.try_step();
        if result.is_err() {
            self.batches = self.order.batches_from(self.first_batch());
        }
        result
    }

    fn try_step(&mut self) -> Result<TrainMetrics> {
        let started = Instant::now();
        let step = self.finished_steps() + 1;
        let mut micro_batches = Vec::with_capacity(self.config.grad_accum);
        for rows in self.batches.by_ref().take(self.config.grad_accum) {
            micro_batches.push(batch_of(self.data, &rows, &self.device)?);
        }
        let tokens: usize = micro_batches.iter().map(|batch| batch.target_count).sum();
        let mut gradients = Gradients::new(self.updates.trainables().clone());
        let mut loss_sum = 0.0;
        for (index, batch) in micro_batches.iter().enumerate() {
            self.model.reseed(derived_seed([self.config.seed, step, index as u64]))?;
            let checkpointing =
                self.config.activation_memory.checkpointing(self.model.base(), batch.input_ids.dims2()?)?;
            let loss = NextTokenLoss::of_batch_with(self.model.base(), batch, checkpointing)?;
            loss_sum += finite_loss(&loss, batch, step)?;
            let store = loss.backward(1.0 / tokens as f64)?;
            // The graph goes before the next one is built.
            drop(loss);
            self.updates.audit(self.model, &store)?;
            gradients.accumulate(&store, 1.0)?;
        }
        let learning_rate = self.learning_rate();
        let grad_norm = self.updates.apply(gradients)?;
        self.updates.finish_step();
        Ok(TrainMetrics {
            step,
            loss: loss_sum / tokens as f64,
            learning_rate,
            grad_norm,
            tokens: tokens as u64,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// The learning rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.updates.learning_rate()
    }

    /// Evaluates the model on other data, with the batch size of the training. Training can go on afterwards.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn evaluate(&mut self, data: &Dataset) -> Result<Evaluation> {
        let evaluation = evaluate(self.model, data, self.config.batch_size);
        self.model.train()?;
        evaluation
    }

    /// Checks that the parameters are finite and that the next batch still has a finite loss, so that the present state is
    /// one to go on from.
    ///
    /// # Errors
    /// [`Error::NonFiniteLoss`], or an optimizer error naming the parameter.
    pub fn check_finite(&mut self) -> Result<()> {
        self.updates.check_finite()?;
        let Some(rows) = self.batches.clone().next() else { return Ok(()) };
        let batch = batch_of(self.data, &rows, &self.device)?;
        self.model.eval()?;
        let loss = NextTokenLoss::of_batch(self.model.base(), &batch);
        self.model.train()?;
        finite_loss(&loss?, &batch, self.finished_steps() + 1).map(|_| ())
    }

    /// A snapshot of the run, to be saved and [restored](Self::restore).
    pub fn state(&self) -> Result<TrainerState> {
        self.updates.state()
    }

    /// Goes on where a run with the same options, data and model stood.
    ///
    /// # Errors
    /// [`Error::Resume`] naming each option that differs, or when the state is beyond the steps of this run. Nothing has
    /// changed then.
    pub fn restore(&mut self, state: &TrainerState) -> Result<()> {
        self.updates.restore(state, self.config.steps)?;
        self.batches = self.order.batches_from(self.first_batch());
        Ok(())
    }

    /// Records facts that a resumed run must share beyond the trainer's own options.
    pub(super) fn fingerprint_mut(&mut self) -> &mut Fingerprint {
        self.updates.fingerprint_mut()
    }

    /// The number of the next step's first batch.
    fn first_batch(&self) -> u64 {
        self.finished_steps() * self.config.grad_accum as u64
    }
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}

/// The value of a summed loss.
fn finite_loss(loss: &NextTokenLoss, batch: &Batch, step: u64) -> Result<f64> {
    let sum = scalar(&loss.sum()?)?;
    if sum.is_finite() {
        Ok(sum)
    } else {
        Err(Error::NonFiniteLoss { step, value: sum / batch.target_count as f64, last_good: None })
    }
}
