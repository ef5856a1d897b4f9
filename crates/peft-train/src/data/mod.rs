//! Training data: JSONL rows become token ids with labels, and those become batches.
//!
//! # Rows
//!
//! Each line of a data file is a JSON object of one of these forms; other fields are ignored, blank lines are skipped.
//!
//! | Row | Text | Loss on |
//! |---|---|---|
//! | `{"text": "…"}` | the text, then the end token | every token |
//! | `{"prompt": "…", "completion": "…"}` | both as one text, then the end token | the completion |
//! | `{"prompt": […], "completion": […]}` of chat messages | the chat template | the completion |
//! | `{"messages": [{"role": "…", "content": "…"}, …]}` | the chat template | the last message, if the assistant wrote it; else every token |
//! | `{"input_ids": […]}` | none: the ids are taken as they are | every token |
//! | `{"input_ids": […], "labels": […]}` | none | where the label is not -100 |
//!
//! The end token (`eos_token`) is added only where the tokenizer names one and the row does not end with it already;
//! a chat template writes its own.
//!
//! A prompt and its completion are encoded together, as a model meets them in running text, if the ids of the prompt
//! alone begin the result; otherwise (the border falls inside a token) they are encoded apart and joined.
//! For chats the prompt is everything before the completion, rendered up to where the assistant's turn begins. If the
//! template does not render that as a beginning of the whole, a `prompt`/`completion` row is an error and a `messages`
//! row counts every token.

mod batch;
mod dataset;
mod encode;
mod order;
mod prompt;
mod row;

pub use batch::Batch;
pub use dataset::{Dataset, DatasetOptions, Example};
pub use encode::{Encoded, Encoder};
pub use order::{BatchOrder, Batches};
pub use row::Row;

/// The label of a token without a loss, as in PyTorch.
pub const IGNORE_INDEX: i64 = -100;
