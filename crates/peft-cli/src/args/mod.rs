//! What the command line accepts.

mod grpo;
mod task;
mod training;
mod values;

pub(crate) use grpo::GrpoArgs;
pub(crate) use task::{AnswerArgs, RewardArgs, TaskArgs};
pub(crate) use training::TrainingArgs;
pub(crate) use values::{
    CombinationArg, ConversionArg, LossTypeArg, OptimizerArg, RolloutArg, ScaleRewardsArg, ScheduleArg,
};

use crate::device::{DTypeArg, DeviceArg};
use clap::builder::{NonEmptyStringValueParser, RangedU64ValueParser};
use clap::{Args, Parser, Subcommand};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use values::{finite, non_negative, positive, probability, share};

/// Train, evaluate, merge and convert adapters of language models.
#[derive(Debug, Parser)]
#[command(name = "candle-peft", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 success, 2 wrong usage, 1 any other error.")]
pub(crate) struct Cli {
    /// Print exactly one JSON object on standard output; on an error it has the single field `error`
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an untrained adapter
    Init(InitArgs),
    /// Train an adapter on a JSONL file, or on the right answers to a task
    Train(Box<TrainArgs>),
    /// Train an adapter by reinforcement learning on a task with verifiable rewards
    Grpo(Box<GrpoArgs>),
    /// Measure the loss on a JSONL file, or how often a task is solved
    Eval(Box<EvalArgs>),
    /// Continue a prompt
    Generate(GenerateArgs),
    /// Fold an adapter into its base model and save a complete model folder
    Merge(MergeArgs),
    /// Turn an adapter into one of another method or format, exactly unless a rank or threshold is given
    Convert(ConvertArgs),
    /// Combine LoRA adapters of one base model into a new one, without the base model
    Combine(CombineArgs),
    /// Show what an adapter or model holds, or what is wrong with it
    Inspect(InspectArgs),
    /// Show a run as an HTML page: curves, evaluations, options and completions
    Report(ReportArgs),
    /// Publish an adapter on the Hugging Face Hub, with a model card
    Push(PushArgs),
}

/// The base model and where it runs.
#[derive(Debug, Args)]
pub(crate) struct BaseArgs {
    /// The base model: a folder, or a name on the Hub such as user/name or user/name@revision [default: the one that the adapter
    /// names, else the embedded tiny Llama]
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,

    /// Where to compute: cpu, cuda[:N] or metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceArg,

    /// The dtype that the base model is loaded in
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub(crate) dtype: DTypeArg,

    #[command(flatten)]
    pub(crate) factors: FactorArgs,
}

/// Factors of the base model's weights, which are kept from one run to the next.
#[derive(Debug, Args)]
pub(crate) struct FactorArgs {
    /// Decompose weights anew, without the cache of factors in $CANDLE_PEFT_CACHE or ~/.cache/candle-peft
    #[arg(long)]
    pub(crate) no_factor_cache: bool,
}

/// A new adapter's config.
#[derive(Debug, Args)]
pub(crate) struct MethodArgs {
    /// An adapter_config.json, or a folder or repository on the Hub that holds one
    #[arg(long, value_name = "FILE", conflicts_with = "method")]
    pub(crate) config: Option<String>,

    /// The adapter method with its defaults: tinylora, lora, lora-xs, vera or ia3
    #[arg(long, value_name = "METHOD")]
    pub(crate) method: Option<String>,

    /// Set a config field; may be repeated. A value is JSON, or a list such as q_proj,v_proj, or plain text
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) base: BaseArgs,

    #[command(flatten)]
    pub(crate) method: MethodArgs,

    /// The adapter folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Leave out what follows from the base model: the result needs this very model, and is not for PEFT
    #[arg(long)]
    pub(crate) compact: bool,

    /// Seed of random initial values
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) training: TrainingArgs,

    #[command(flatten)]
    pub(crate) data: DataArgs,

    #[command(flatten)]
    pub(crate) task: TaskArgs,

    /// The course of the learning rate after the warm-up
    #[arg(long, value_enum, default_value_t = ScheduleArg::Linear)]
    pub(crate) schedule: ScheduleArg,

    /// Batches per optimizer step
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) grad_accum: NonZeroUsize,

    /// Scale gradients down to this norm [default: never]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(crate) grad_clip: Option<f64>,

    /// A JSONL file to evaluate on before and after training
    #[arg(long, value_name = "FILE")]
    pub(crate) eval_data: Option<PathBuf>,

    /// Evaluate after every N steps too
    #[arg(long, value_name = "N", requires = "eval_data", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub(crate) eval_every: Option<u64>,

    /// Save adapter and state after every N steps
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub(crate) save_every: u64,

    /// Read the rows in the order of the file
    #[arg(long)]
    pub(crate) no_shuffle: bool,
}

/// A data file and how it is cut into batches.
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// A JSONL file of {"text"}, {"prompt","completion"}, {"messages"} or {"input_ids"[,"labels"]}
    #[arg(long, value_name = "FILE", required_unless_present = "task", conflicts_with = "task")]
    pub(crate) data: Option<PathBuf>,

    /// Rows per batch
    #[arg(long, value_name = "N", default_value = "8")]
    pub(crate) batch_size: NonZeroUsize,

    /// Cut rows after this many tokens [default: a row longer than the model's context is an error]
    #[arg(long, value_name = "L")]
    pub(crate) max_length: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) base: BaseArgs,

    /// An adapter: a folder, or a name on the Hub [default: the base model alone]
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) adapter: Option<String>,

    #[command(flatten)]
    pub(crate) data: DataArgs,

    #[command(flatten)]
    pub(crate) task: TaskArgs,

    #[command(flatten)]
    pub(crate) answers: AnswerArgs,

    /// Seed of the answers
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) base: BaseArgs,

    /// An adapter: a folder, or a name on the Hub such as user/name or user/name@revision [default: the base model alone]
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) adapter: Option<String>,

    /// The text to continue
    #[arg(long, value_name = "S")]
    pub(crate) prompt: String,

    /// Send the prompt as a user's message through the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,

    /// Stop after this many tokens
    #[arg(long, value_name = "N", default_value = "128")]
    pub(crate) max_new_tokens: NonZeroUsize,

    /// Sampling temperature; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = non_negative)]
    pub(crate) temperature: f64,

    /// Sample from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability)]
    pub(crate) top_p: f64,

    /// Sample from this many of the likeliest tokens [default: all]
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<NonZeroUsize>,

    /// Sample from the tokens that have at least this share of the likeliest one's probability
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    pub(crate) min_p: f64,

    /// Divide the positive logits of tokens that were seen by this, and multiply the negative ones; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    pub(crate) repetition_penalty: f64,

    /// End the text before this one; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,

    /// How many continuations to generate; all are printed, with --json in the field `samples`
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) samples: NonZeroUsize,

    /// Seed of the sampling
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    pub(crate) base: BaseArgs,

    /// The adapter: a folder, or a name on the Hub
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) adapter: String,

    /// The model folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Refuse to write NaN or infinity
    #[arg(long)]
    pub(crate) safe: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The adapter: a folder, or a name on the Hub
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) adapter: String,

    /// What to convert to: a method of PEFT, or the format of another program
    #[arg(long, value_enum)]
    pub(crate) to: ConversionArg,

    /// The adapter folder to write, or with --to gguf the file
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,

    /// Base model, a folder or a name on the Hub: for mlx and gguf, which read its config.json; for a method whose change depends
    /// on the weights; for an adapter whose modules' names do not tell their order; for compact checkpoints [default: the one that
    /// the adapter names]
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,

    #[command(flatten)]
    pub(crate) factors: FactorArgs,

    /// Approximate each module with this rank, where it is not smaller already [default: exact]
    #[arg(long, value_name = "N", conflicts_with = "threshold")]
    pub(crate) rank: Option<NonZeroUsize>,

    /// Give each module the least rank that keeps this share of its delta's energy, the sum of its squared singular values
    #[arg(long, value_name = "T", value_parser = probability)]
    pub(crate) threshold: Option<f64>,
}

#[derive(Debug, Args)]
pub(crate) struct CombineArgs {
    /// A LoRA adapter, a folder or a name on the Hub; may be repeated
    #[arg(long = "adapter", value_name = "ADAPTER", required = true)]
    pub(crate) adapters: Vec<String>,

    /// The weight of an adapter, which may be negative: one per --adapter, in their order
    #[arg(long = "weight", value_name = "X", required = true, allow_negative_numbers = true, value_parser = finite)]
    pub(crate) weights: Vec<f64>,

    /// How to combine them: svd and cat take the sum of the deltas, linear those of the factors
    #[arg(long = "type", value_enum, value_name = "TYPE", default_value_t = CombinationArg::Svd)]
    pub(crate) combination: CombinationArg,

    /// The rank of an svd combination [default: the largest of the adapters]
    #[arg(long, value_name = "N")]
    pub(crate) rank: Option<NonZeroUsize>,

    /// The adapter folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// An adapter or a model: a folder, or a name on the Hub
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// Check that the adapter fits this base model too; without it the modules of VeRA and of compact checkpoints are not known
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,

    #[command(flatten)]
    pub(crate) factors: FactorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The run's folder, with its metrics.jsonl
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,

    /// The file to write [default: report.html in the run's folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The adapter folder
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,

    /// Where to: user/name or user/name@branch; the repository is made if need be
    #[arg(value_name = "REPO")]
    pub(crate) repo: String,

    /// Make the repository a private one
    #[arg(long)]
    pub(crate) private: bool,

    /// The message of the commit
    #[arg(long, value_name = "TEXT", default_value = "Upload adapter")]
    pub(crate) message: String,
}
