//! Supervised fine-tuning.
//!
//! A [`Trainer`] takes optimizer steps on a [`PeftModel`](peft_core::PeftModel) and a data set; [`run`] drives one to the
//! end in an output folder, with metrics, evaluation, saved states and exact resume. Use the trainer alone for a loop of
//! your own:
//!
//! ```no_run
//! use peft_core::PeftModel;
//! use peft_models::CausalLanguageModel;
//! use peft_train::data::Dataset;
//! use peft_train::sft::{SftConfig, Trainer};
//!
//! fn fine_tune<M: CausalLanguageModel>(model: &mut PeftModel<M>, data: &Dataset) -> peft_train::Result<()> {
//!     let config = SftConfig { steps: 20, learning_rate: 1e-2, ..SftConfig::default() };
//!     let mut trainer = Trainer::new(model, data, config)?;
//!     while !trainer.is_finished() {
//!         let metrics = trainer.step()?;
//!         tracing::info!(step = metrics.step, loss = metrics.loss);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Exactness
//!
//! Everything a step does follows from its number: the rows of its batches, the dropout masks, the learning rate. A run
//! that is killed at any moment and resumed therefore ends with the same bytes as one that was not.
//!
//! # Gradient accumulation
//!
//! A step over `grad_accum` batches minimises the mean loss over all their tokens with a loss, as if they were one batch.
//! (The mean of the batches' means would let tokens of short batches count for more.)

mod config;
mod run;
mod trainer;

pub use crate::activation_memory::ActivationMemory;
pub use crate::fingerprint::Fingerprint;
pub use crate::run::{METRICS_FILE, STATE_FILE};
pub use crate::state::TrainerState;
pub use config::SftConfig;
pub use run::{RunOptions, RunSummary, run};
pub use trainer::Trainer;
