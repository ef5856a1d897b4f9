//! Models and adapters from the [Hugging Face Hub](https://huggingface.co), and back to it.
//!
//! [`Hub`] turns a name into a folder that everything else here reads: `"user/name"`, `"user/name@revision"`, `"user/name/folder"`,
//! `"hf://…"`, or a local folder, which wins. It fetches what is needed and no more, into the cache that Python's `huggingface_hub`
//! uses too, and keeps nothing that does not match its hash. [`Hub::push`] publishes an adapter.
//!
//! Calls block. No repository's code is ever run.

mod cache;
mod card;
mod client;
mod digest;
mod download;
mod error;
mod hub;
mod progress;
mod push;
mod settings;
mod source;
mod token;
mod wanted;

pub use card::ModelCard;
pub use error::{Error, Result};
pub use hub::{Hub, Origin, Snapshot};
pub use progress::{Progress, Silent};
pub use push::{PushOptions, Pushed};
pub use settings::Settings;
pub use source::{RepoRef, Source};
pub use token::Token;
pub use wanted::Part;
