//! Steps of group relative policy optimization.

use super::GrpoConfig;
use super::policy::{Policy, Update};
use super::rollout::{Rollouts, Source};
use super::rows::Rows;
use crate::accuracy::{Accuracy, AccuracyOptions, accuracy};
use crate::data::{BatchOrder, Encoder};
use crate::error::{Error, Result};
use crate::fingerprint::{Fingerprint, derived_seed};
use crate::generate::Generator;
use crate::metrics::GrpoMetrics;
use crate::optim::Gradients;
use crate::reward::Rewards;
use crate::state::TrainerState;
use crate::task::Task;
use crate::updates::Updates;
use peft_core::PeftModel;
use peft_models::CausalLanguageModel;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Instant;

/// Trains the active adapters of a model on a task by group relative policy optimization: the model completes each prompt several
/// times, and what did better than the others of its prompt becomes likelier.
///
/// Everything a step does follows from its number, the seed and the parameters before it.
#[derive(Debug)]
pub struct Trainer<'a, M> {
    model: &'a mut PeftModel<M>,
    task: &'a Task,
    rewards: Rewards,
    encoder: Encoder<'a>,
    config: GrpoConfig,
    max_new_tokens: usize,
    generator: Generator,
    updates: Updates,
}

/// What the updates of a step came to.
#[derive(Default)]
struct Totals {
    /// The loss of the first update.
    loss: Option<f64>,
    grad_norms: Vec<f64>,
    tokens: usize,
    clipped_low: usize,
    clipped_high: usize,
    /// Over the updates that go through the completions for the first time.
    kl: f64,
    gap: f64,
    first_tokens: usize,
}

impl Totals {
    fn add(&mut self, update: &Update, grad_norm: f64, first: bool) {
        self.loss.get_or_insert(update.loss);
        self.grad_norms.push(grad_norm);
        self.tokens += update.tokens;
        self.clipped_low += update.clipped_low;
        self.clipped_high += update.clipped_high;
        if first {
            self.kl += update.kl;
            self.gap += update.gap;
            self.first_tokens += update.tokens;
        }
    }
}

impl<'a, M: CausalLanguageModel> Trainer<'a, M> {
    /// A trainer before its first step, with the rewards of the task. The model is put into training mode. `encoder` turns the prompts of
    /// the task into tokens.
    ///
    /// # Errors
    /// When an option is out of range, nothing is to be trained, or the encoder has no tokenizer.
    pub fn new(model: &'a mut PeftModel<M>, task: &'a Task, encoder: Encoder<'a>, config: GrpoConfig) -> Result<Self> {
        let schedule = config.validated_schedule()?;
        task.rewards().check()?;
        let max_new_tokens = config.max_new_tokens.unwrap_or_else(|| task.max_new_tokens());
        let generation = config.generation(max_new_tokens, encoder.stop_ids(model.base())?);
        let generator = encoder.generator(generation, task.stop_strings())?;
        let mut updates = Updates::new(model, config.optimizer, schedule, config.grad_clip)?;
        let fingerprint = updates.fingerprint_mut();
        config.record(fingerprint)?;
        fingerprint.record("max_new_tokens", max_new_tokens);
        fingerprint.record("task", task.name());
        fingerprint.record_digest("task_data", task.fingerprint());
        model.train()?;
        let rewards = task.rewards();
        let trainer = Self { model, task, rewards, encoder, config, max_new_tokens, generator, updates };
        Ok(trainer.recorded())
    }

    /// With other rewards than those of the task.
    ///
    /// # Errors
    /// As [`Rewards::check`].
    pub fn with_rewards(mut self, rewards: Rewards) -> Result<Self> {
        rewards.check()?;
        self.rewards = rewards;
        Ok(self.recorded())
    }

    fn recorded(mut self) -> Self {
        let rewards = format!("{:?}", self.rewards);
        self.updates.fingerprint_mut().record("rewards", rewards);
        self
    }

    /// The model in training.
    pub fn model(&self) -> &PeftModel<M> {
        self.model
    }

    /// The options.
    pub fn config(&self) -> &GrpoConfig {
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

    /// The learning rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.updates.learning_rate()
    }

    /// Draws completions, rates them, and updates the parameters.
    ///
    /// # Errors
    /// [`Error::NonFiniteLoss`], [`Error::NonFiniteGradient`], those of the rewards, and at the first update
    /// [`MissingGradients`](peft_core::Error::MissingGradients) for a trainable that the loss does not reach. The parameters are those
    /// before the step then, and calling this again tries the same step again.
    pub fn step(&mut self) -> Result<GrpoMetrics> {
        Ok(self.logged_step(0)?.0)
    }

    /// A step, and the completions of its first prompts as they are written down.
    pub(super) fn logged_step(&mut self, prompts: usize) -> Result<(GrpoMetrics, Vec<Value>)> {
        let before = self.updates.state()?;
        let result = self.try_step(prompts);
        if result.is_err() {
            self.updates.restore(&before, self.config.steps)?;
            self.model.train()?;
        }
        result
    }

    fn try_step(&mut self, logged: usize) -> Result<(GrpoMetrics, Vec<Value>)> {
        let started = Instant::now();
        let step = self.finished_steps() + 1;
        let source = Source { task: self.task, rewards: &self.rewards, encoder: self.encoder };
        let rollouts = Rollouts::draw(&source, self.model, &mut self.generator, &self.config, step)?;
        let rollout_seconds = started.elapsed().as_secs_f64();
        let learning_rate = self.learning_rate();
        let totals = self.update(&rollouts, step)?;
        self.updates.finish_step();

        let (reward_std, zero_advantage) = rollouts.spread(self.config.group_size);
        let names = self.rewards.names().map(str::to_owned);
        let parts = names.enumerate().map(|(i, name)| (name, rollouts.mean(|completion| completion.scored.parts[i])));
        let share = |count: usize| count as f64 / totals.tokens.max(1) as f64;
        let of_first = |sum: f64| sum / totals.first_tokens.max(1) as f64;
        let metrics = GrpoMetrics {
            step,
            reward: rollouts.mean(|completion| completion.scored.total),
            reward_std,
            rewards: parts.collect::<BTreeMap<_, _>>(),
            failed_rewards: rollouts.completions.iter().map(|completion| completion.scored.failures.len() as u64).sum(),
            strict: rollouts.share(|completion| completion.reading.strict),
            flexible: rollouts.share(|completion| completion.reading.flexible),
            completion_tokens: rollouts.mean(|completion| completion.generation.ids.len() as f64),
            truncated: rollouts.share(|completion| completion.is_truncated()),
            entropy: rollouts.entropy(),
            kl: (self.config.beta > 0.0).then(|| of_first(totals.kl)),
            clip_low: share(totals.clipped_low),
            clip_high: share(totals.clipped_high),
            rollout_gap: of_first(totals.gap),
            loss: totals.loss.unwrap_or(0.0),
            learning_rate,
            grad_norm: totals.grad_norms.iter().sum::<f64>() / totals.grad_norms.len().max(1) as f64,
            zero_advantage,
            tokens: rollouts.tokens() as u64,
            seconds: started.elapsed().as_secs_f64(),
            rollout_seconds,
        };
        let log = rollouts.log(step, logged, self.encoder)?;
        Ok((metrics, log))
    }

    /// All updates of a step.
    fn update(&mut self, rollouts: &Rollouts, step: u64) -> Result<Totals> {
        let GrpoConfig { num_iterations, mini_batches, beta, seed, .. } = self.config;
        let mut rows = Rows::new(rollouts, &self.config);
        if beta > 0.0 {
            self.model.disable()?;
            let reference = self.frozen_log_probs(&rows);
            self.model.enable()?;
            rows.set_reference(reference?);
        }
        // With a single update through all rows, the first one sees the old parameters itself.
        if mini_batches > 1 {
            rows.set_old(self.frozen_log_probs(&rows)?);
        }
        let mut totals = Totals::default();
        for iteration in 0..num_iterations {
            for (part, completions) in
                mini_batches_of(rollouts, mini_batches, [seed, step, iteration as u64])?.iter().enumerate()
            {
                self.model.reseed(derived_seed([seed, step, (iteration * mini_batches + part) as u64]))?;
                let mut gradients = Gradients::new(self.updates.trainables().clone());
                let policy = Policy { model: self.model, config: &self.config };
                let normalizer = rows.normalizer(completions, self.max_new_tokens, &self.config);
                let update = policy.update(&mut rows, completions, normalizer, &mut gradients, &mut |store| {
                    self.updates.audit(self.model, store)
                })?;
                if !update.loss.is_finite() {
                    return Err(Error::NonFiniteLoss { step, value: update.loss, last_good: None });
                }
                // Without a completion to learn from there is nothing to change.
                let norm = if update.tokens > 0 { self.updates.apply(gradients)? } else { 0.0 };
                totals.add(&update, norm, iteration == 0);
            }
        }
        Ok(totals)
    }

    /// The log-probabilities of all rows as the model is now, without gradients.
    fn frozen_log_probs(&mut self, rows: &Rows) -> Result<Vec<Vec<f64>>> {
        self.model.eval()?;
        let values = Policy { model: self.model, config: &self.config }.log_probs(rows);
        self.model.train()?;
        values
    }

    /// How often the model solves held-out problems of the task. Training can go on afterwards.
    ///
    /// # Errors
    /// As [`accuracy`].
    pub fn evaluate(&mut self, options: &AccuracyOptions) -> Result<Accuracy> {
        let accuracy = accuracy(self.model, self.task, self.encoder, options);
        self.model.train()?;
        accuracy
    }

    /// Checks that the parameters are finite, so that the present state is one to go on from.
    ///
    /// # Errors
    /// An optimizer error naming the parameter.
    pub fn check_finite(&self) -> Result<()> {
        self.updates.check_finite()
    }

    /// A snapshot of the run, to be saved and [restored](Self::restore).
    pub fn state(&self) -> Result<TrainerState> {
        self.updates.state()
    }

    /// Goes on where a run with the same options, task and model stood.
    ///
    /// # Errors
    /// [`Error::Resume`] naming each option that differs, or when the state is beyond the steps of this run. Nothing has changed then.
    pub fn restore(&mut self, state: &TrainerState) -> Result<()> {
        self.updates.restore(state, self.config.steps)
    }

    /// Records facts that a resumed run must share beyond the trainer's own options.
    pub(super) fn fingerprint_mut(&mut self) -> &mut Fingerprint {
        self.updates.fingerprint_mut()
    }
}

/// The completions of each update, in an order of its own where there are several.
fn mini_batches_of(rollouts: &Rollouts, parts: usize, seed: [u64; 3]) -> Result<Vec<Vec<usize>>> {
    let count = rollouts.completions.len();
    if parts == 1 {
        return Ok(vec![(0..count).collect()]);
    }
    let mut orders = BatchOrder::new(count, count, Some(derived_seed(seed)))?.batches_from(0);
    let order = orders.next().unwrap_or_default();
    let start = |part: usize| part * count / parts;
    let part = |part: usize| {
        let mut completions = order[start(part)..start(part + 1)].to_vec();
        // Those of one prompt side by side share it.
        completions.sort_unstable();
        completions
    };
    Ok((0..parts).map(part).collect())
}
