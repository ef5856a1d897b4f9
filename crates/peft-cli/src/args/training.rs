//! What trainings of any kind accept.

use super::values::{OptimizerArg, bytes, non_negative};
use super::{BaseArgs, MethodArgs};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What is trained, how its parameters change, and where the result goes.
#[derive(Debug, Args)]
pub(crate) struct TrainingArgs {
    #[command(flatten)]
    pub(crate) base: BaseArgs,

    /// An adapter to start from: a folder, or a name on the Hub
    #[arg(long, value_name = "ADAPTER", conflicts_with_all = ["config", "method", "set"])]
    pub(crate) adapter: Option<String>,

    #[command(flatten)]
    pub(crate) method: MethodArgs,

    /// The folder for the trained adapter, metrics.jsonl and the state to resume from
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Save the adapter without what follows from the base model: it needs this very model then, and is not for PEFT
    #[arg(long)]
    pub(crate) compact: bool,

    /// Steps of the whole run
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub(crate) steps: u64,

    /// The peak of the learning rate
    #[arg(long, value_name = "X", value_parser = non_negative)]
    pub(crate) learning_rate: f64,

    /// The optimizer, with PyTorch's constants
    #[arg(long, value_enum, default_value_t = OptimizerArg::Adamw)]
    pub(crate) optimizer: OptimizerArg,

    /// Weight decay
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = non_negative)]
    pub(crate) weight_decay: f64,

    /// Steps over which the learning rate rises from zero
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) warmup: u64,

    /// Seed of data, dropout, sampling and random initial values
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,

    /// The memory that activations may take, such as 2GB: as few blocks as possible are computed again in the backward pass to keep to
    /// it [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = bytes, conflicts_with = "checkpointing")]
    pub(crate) activation_memory: Option<usize>,

    /// Keep the input of every K-th block only, and compute the blocks again in the backward pass: less memory, more time
    /// [default: all is kept]
    #[arg(long, value_name = "K")]
    pub(crate) checkpointing: Option<NonZeroUsize>,

    /// Go on with the run that was interrupted in --out; all other options must be the same
    #[arg(long)]
    pub(crate) resume: bool,
}
