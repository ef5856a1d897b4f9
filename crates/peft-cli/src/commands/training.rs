//! What trainings of any kind begin with.

use super::adapter;
use crate::args::{LossTypeArg, OptimizerArg, RolloutArg, ScaleRewardsArg, ScheduleArg, TrainingArgs};
use crate::base::Base;
use crate::destination::{check_distinct, check_writable};
use crate::output::{note, usage_error};
use anyhow::Result;
use candle_peft::core::checkpoint::{DEFAULT_ADAPTER, Layout};
use candle_peft::hub::{Part, Snapshot};
use candle_peft::models::{CausalLm, Checkpointing};
use candle_peft::train::grpo::{LossType, RolloutWeights, ScaleRewards};
use candle_peft::train::optim::{AdamWConfig, OptimizerConfig, SgdConfig};
use candle_peft::train::schedule::ScheduleKind;
use candle_peft::train::sft::ActivationMemory;
use candle_peft::{AdapterConfig, PeftModel, Pretrained};

/// The model of a training before its adapter is there, so that data can be read and refused before weights are decomposed.
pub(super) struct Starting {
    pub(super) base: Base,
    pub(super) model: PeftModel<CausalLm>,
    pub(super) adapter: StartingAdapter,
}

/// The adapter to be trained, a new one or one that was there.
pub(super) enum StartingAdapter {
    New(Box<AdapterConfig>),
    Old(Snapshot),
}

/// What is trained.
pub(super) struct Trained {
    pub(super) peft_type: &'static str,
    pub(super) parameters: usize,
}

impl Starting {
    /// Refuses what cannot become a run, and loads the model.
    pub(super) fn open(args: &TrainingArgs, pretrained: &Pretrained) -> Result<Self> {
        let config = match &args.adapter {
            Some(_) => None,
            None if args.method.is_given() => Some(args.method.adapter_config(pretrained)?),
            None => {
                return Err(usage_error("nothing to train: name --adapter ADAPTER, --method METHOD or --config FILE"));
            }
        };
        if args.warmup > args.steps {
            let (warmup, steps) = (args.warmup, args.steps);
            return Err(usage_error(format!("--warmup {warmup} is more than --steps {steps}")));
        }
        check_writable(&args.out)?;
        let old = adapter(args.adapter.as_deref(), pretrained)?;
        if let Some(old) = &old {
            // A resumed run needs the adapter that it started from.
            check_distinct(&args.out, old.path(), "--adapter")?;
        }
        let base = Base::open(args.base.base.as_deref(), old.as_ref(), Part::Model, pretrained)?;
        let model = base.load(&args.base, args.seed)?;
        let adapter = match (old, config) {
            (Some(old), _) => StartingAdapter::Old(old),
            (None, Some(config)) => StartingAdapter::New(Box::new(config)),
            (None, None) => return Err(usage_error("nothing to train")),
        };
        Ok(Self { base, model, adapter })
    }
}

impl StartingAdapter {
    /// Adds the adapter to the model.
    pub(super) fn attach(self, model: &mut PeftModel<CausalLm>, pretrained: &Pretrained) -> Result<Trained> {
        match self {
            Self::New(config) => {
                model.add_adapter(DEFAULT_ADAPTER, *config)?;
            }
            Self::Old(adapter) => {
                pretrained.attach(model, DEFAULT_ADAPTER, &adapter)?;
            }
        }
        let peft_type = model.adapter(DEFAULT_ADAPTER)?.config.method.peft_type();
        Ok(Trained { peft_type, parameters: model.param_counts()?.trainable })
    }
}

impl TrainingArgs {
    pub(super) fn layout(&self) -> Layout {
        if self.compact { Layout::Compact } else { Layout::Peft }
    }

    pub(super) fn optimizer_config(&self) -> OptimizerConfig {
        let weight_decay = self.weight_decay;
        match self.optimizer {
            OptimizerArg::Adamw => OptimizerConfig::AdamW(AdamWConfig { weight_decay, ..AdamWConfig::default() }),
            OptimizerArg::Sgd => OptimizerConfig::Sgd(SgdConfig { weight_decay, ..SgdConfig::default() }),
        }
    }

    pub(super) fn activation_memory(&self) -> ActivationMemory {
        match (self.checkpointing, self.activation_memory) {
            (_, Some(bytes)) => ActivationMemory::Within(bytes),
            (Some(blocks), None) => ActivationMemory::Fixed(Checkpointing::Every(blocks.get())),
            (None, None) => ActivationMemory::default(),
        }
    }

    /// Says so if there was nothing to resume.
    pub(super) fn note_fresh_start(&self, resumed_from: Option<u64>) {
        if self.resume && resumed_from.is_none() {
            let out = self.out.display();
            note(format_args!("{out}: there was nothing to resume, so the run started from the beginning"));
        }
    }
}

impl From<ScheduleArg> for ScheduleKind {
    fn from(schedule: ScheduleArg) -> Self {
        match schedule {
            ScheduleArg::Constant => Self::Constant,
            ScheduleArg::Linear => Self::Linear,
            ScheduleArg::Cosine => Self::Cosine,
        }
    }
}

impl From<LossTypeArg> for LossType {
    fn from(loss_type: LossTypeArg) -> Self {
        match loss_type {
            LossTypeArg::Grpo => Self::Grpo,
            LossTypeArg::DrGrpo => Self::DrGrpo,
            LossTypeArg::Dapo => Self::Dapo,
            LossTypeArg::Bnpo => Self::Bnpo,
        }
    }
}

impl From<ScaleRewardsArg> for ScaleRewards {
    fn from(scale: ScaleRewardsArg) -> Self {
        match scale {
            ScaleRewardsArg::Group => Self::Group,
            ScaleRewardsArg::Batch => Self::Batch,
            ScaleRewardsArg::None => Self::None,
        }
    }
}

impl From<RolloutArg> for RolloutWeights {
    fn from(rollouts: RolloutArg) -> Self {
        match rollouts {
            RolloutArg::Live => Self::Live,
            RolloutArg::Merged => Self::Merged,
        }
    }
}
