//! What every kind of training has: parameters, an optimizer, a schedule, and a state to resume from.

use crate::error::{Error, Result};
use crate::fingerprint::{Digest, Fingerprint};
use crate::optim::{Gradients, Optimizer, OptimizerConfig, Trainables};
use crate::schedule::Schedule;
use crate::state::TrainerState;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device};
use peft_core::{PeftModel, Walk};
use peft_models::CausalLanguageModel;

/// Elements per weight of the base model that tell whether a resumed run has the same model.
const BASE_SAMPLES: usize = 64;

/// The parameters of a run and how they change. A step may update them several times.
#[derive(Debug)]
pub(crate) struct Updates {
    trainables: Trainables,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
    grad_clip: Option<f64>,
    fingerprint: Fingerprint,
    step: u64,
    /// Whether a backward pass has shown that every trainable gets a gradient.
    audited: bool,
}

impl Updates {
    /// The active adapters of a model before the first step.
    ///
    /// # Errors
    /// When nothing is to be trained.
    pub(crate) fn new<M: CausalLanguageModel>(
        model: &PeftModel<M>,
        optimizer: OptimizerConfig,
        schedule: Schedule,
        grad_clip: Option<f64>,
    ) -> Result<Self> {
        let trainables = Trainables::new(model.trainable())?;
        let optimizer = optimizer.build(trainables.clone())?;
        let mut fingerprint = Fingerprint::default();
        record_model(&mut fingerprint, model, &trainables)?;
        Ok(Self { trainables, optimizer, schedule, grad_clip, fingerprint, step: 0, audited: false })
    }

    /// What gradients are summed for.
    pub(crate) fn trainables(&self) -> &Trainables {
        &self.trainables
    }

    /// Finished steps, those before a resume included.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// The learning rate of the next step.
    pub(crate) fn learning_rate(&self) -> f64 {
        self.schedule.lr(usize::try_from(self.step).unwrap_or(usize::MAX))
    }

    /// Refuses the first gradients if they leave a trainable out.
    pub(crate) fn audit<M: CausalLanguageModel>(&mut self, model: &PeftModel<M>, store: &GradStore) -> Result<()> {
        if !self.audited {
            model.audit_gradients(store)?;
            self.audited = true;
        }
        Ok(())
    }

    /// Clips the gradients, updates the parameters, and returns the norm before clipping.
    pub(crate) fn apply(&mut self, mut gradients: Gradients) -> Result<f64> {
        let norm = match self.grad_clip {
            Some(max_norm) => gradients.clip_norm(max_norm)?,
            None => gradients.norm()?,
        };
        self.optimizer.step(&gradients, self.learning_rate())?;
        Ok(norm)
    }

    /// Counts a step, after its last update.
    pub(crate) fn finish_step(&mut self) {
        self.step += 1;
    }

    /// Refuses parameters with infinities or NaN.
    pub(crate) fn check_finite(&self) -> Result<()> {
        for (name, var) in self.trainables.iter() {
            // Infinities and NaN survive a multiplication with zero, nothing else does.
            let sum = (var.as_detached_tensor() * 0.0)?.sum_all()?;
            if sum.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()? != 0.0 {
                return Err(Error::Optimizer(format!("`{name}` is no longer finite after step {}", self.step)));
            }
        }
        Ok(())
    }

    /// Facts that a resumed run must share.
    pub(crate) fn fingerprint_mut(&mut self) -> &mut Fingerprint {
        &mut self.fingerprint
    }

    /// A snapshot: later updates do not change it.
    pub(crate) fn state(&self) -> Result<TrainerState> {
        let parameters =
            self.trainables.iter().map(|(name, var)| Ok((name.to_owned(), var.as_detached_tensor().copy()?)));
        Ok(TrainerState {
            step: self.step,
            fingerprint: self.fingerprint.clone(),
            parameters: parameters.collect::<Result<_>>()?,
            optimizer: self.optimizer.state()?,
        })
    }

    /// Goes back, or on, to a snapshot of a run of `steps` steps.
    ///
    /// # Errors
    /// [`Error::Resume`] when it is one of another run. Nothing has changed then.
    pub(crate) fn restore(&mut self, state: &TrainerState, steps: u64) -> Result<()> {
        self.fingerprint.check_same(&state.fingerprint)?;
        if state.step > steps {
            let saved = state.step;
            return Err(Error::Resume(format!("the saved run is at step {saved}, beyond the {steps} asked for")));
        }
        let mut values = Vec::new();
        for (name, var) in self.trainables.iter() {
            let saved = state.parameters.get(name).filter(|saved| saved.shape() == var.shape());
            let saved = saved.ok_or_else(|| Error::Resume(format!("the saved state has no fitting `{name}`")))?;
            values.push(saved.to_device(var.device())?.to_dtype(var.dtype())?);
        }
        self.optimizer.load_state(&state.optimizer)?;
        for ((_, var), value) in self.trainables.iter().zip(&values) {
            var.set(value)?;
        }
        self.step = state.step;
        Ok(())
    }
}

/// Records the base model, the active adapters' configs, and the values that training starts from.
fn record_model<M: CausalLanguageModel>(
    fingerprint: &mut Fingerprint,
    model: &PeftModel<M>,
    trainables: &Trainables,
) -> Result<()> {
    let mut base = Digest::default();
    model.base().visit(&mut Walk::new(&mut |path, host| {
        base.text(path);
        for tensor in [host.base().stored().ok(), host.bias()].into_iter().flatten() {
            base.tensor(tensor, BASE_SAMPLES).map_err(candle_core::Error::from)?;
        }
        Ok(())
    }))?;
    fingerprint.record_digest("base", base.finish());
    fingerprint.record("device", device_name(&model.base().device()));

    let active: Vec<&str> = model.active().collect();
    for name in &active {
        let prefix = if active.len() > 1 { format!("adapter.{name}.") } else { "adapter.".to_owned() };
        let method = &model.adapter(name)?.config.method;
        fingerprint.record(format!("{prefix}peft_type"), method.peft_type());
        fingerprint.record_fields(&prefix, method.to_json()?);
    }
    let mut initial = Digest::default();
    for (name, var) in trainables.iter() {
        initial.text(name);
        initial.tensor(var.as_tensor(), usize::MAX)?;
    }
    fingerprint.record_digest("initial_parameters", initial.finish());
    Ok(())
}

/// Devices of one kind compute the same; others round differently.
fn device_name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}
