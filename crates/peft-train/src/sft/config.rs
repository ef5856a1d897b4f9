//! The options of a run.

use crate::activation_memory::ActivationMemory;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::optim::{AdamWConfig, OptimizerConfig};
use crate::schedule::{Schedule, ScheduleKind};

/// What a [`Trainer`](super::Trainer) does.
#[derive(Debug, Clone, PartialEq)]
pub struct SftConfig {
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Rows per batch.
    pub batch_size: usize,
    /// Batches per optimizer step.
    pub grad_accum: usize,
    /// The peak of the learning rate.
    pub learning_rate: f64,
    /// The optimizer and its constants.
    pub optimizer: OptimizerConfig,
    /// The course of the learning rate.
    pub schedule: ScheduleKind,
    /// Steps over which the learning rate rises from zero.
    pub warmup_steps: u64,
    /// The greatest norm of a step's gradients; larger ones are scaled down to it.
    pub grad_clip: Option<f64>,
    /// Whether each epoch visits the rows in an order of its own, or all of them in the order of the file.
    pub shuffle: bool,
    /// The seed of shuffling and dropout.
    pub seed: u64,
    /// What is kept from forward to backward, and what is computed again.
    pub activation_memory: ActivationMemory,
}

/// The defaults of `transformers.TrainingArguments`, but without gradient clipping and with 100 steps in place of 3 epochs.
impl Default for SftConfig {
    fn default() -> Self {
        Self {
            steps: 100,
            batch_size: 8,
            grad_accum: 1,
            learning_rate: 5e-5,
            optimizer: OptimizerConfig::AdamW(AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() }),
            schedule: ScheduleKind::Linear,
            warmup_steps: 0,
            grad_clip: None,
            shuffle: true,
            seed: 0,
            activation_memory: ActivationMemory::default(),
        }
    }
}

impl SftConfig {
    /// Refuses values out of range, and makes the schedule.
    pub(super) fn validated_schedule(&self) -> Result<Schedule> {
        if self.steps == 0 {
            return Err(Error::option("steps", "it must be at least 1"));
        }
        if self.grad_accum == 0 {
            return Err(Error::option("grad_accum", "it must be at least 1"));
        }
        if let Some(norm) = self.grad_clip
            && !(norm.is_finite() && norm > 0.0)
        {
            return Err(Error::option("grad_clip", format!("{norm} is not a positive number")));
        }
        let count = |option, steps: u64| {
            usize::try_from(steps).map_err(|_| Error::option(option, format!("{steps} steps are too many")))
        };
        let (warmup, steps) = (count("warmup", self.warmup_steps)?, count("steps", self.steps)?);
        Schedule::new(self.schedule, self.learning_rate, warmup, steps)
    }

    /// Records what a resumed run must have in common with the run it continues.
    ///
    /// The number of steps belongs to it only where the learning rate depends on it: a run with a constant rate can be
    /// resumed with more steps.
    pub(super) fn record(&self, fingerprint: &mut Fingerprint) -> Result<()> {
        if self.schedule != ScheduleKind::Constant {
            fingerprint.record("steps", self.steps);
        }
        fingerprint.record("batch_size", self.batch_size);
        fingerprint.record("grad_accum", self.grad_accum);
        fingerprint.record("learning_rate", self.learning_rate);
        fingerprint.record("schedule", self.schedule.to_string());
        fingerprint.record("warmup", self.warmup_steps);
        fingerprint.record("grad_clip", self.grad_clip);
        fingerprint.record("shuffle", self.shuffle);
        fingerprint.record("seed", self.seed);
        // It changes the rounding of gradients that blocks share.
        if self.activation_memory != ActivationMemory::default() {
            fingerprint.record("activation_memory", format!("{:?}", self.activation_memory));
        }
        let optimizer = serde_json::to_value(self.optimizer).map_err(peft_core::Error::from)?;
        fingerprint.record_fields("", optimizer);
        Ok(())
    }
}
