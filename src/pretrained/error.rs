//! Why a model or adapter could not be loaded by its name.

use crate::Error;

/// What can go wrong when models and adapters are loaded by name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PretrainedError {
    /// They could not be fetched.
    #[error("{0}")]
    Hub(peft_hub::Error),
    /// They could not be loaded.
    #[error("{0}")]
    Peft(Error),
    /// The adapter does not say what it was made for, and nobody else did.
    #[error(
        "{adapter}: adapter_config.json does not name the base model; name it (`with_base`, or --base on the command line)"
    )]
    NoBase {
        /// The adapter.
        adapter: String,
    },
    /// The base model that the adapter names is not there.
    #[error(
        "{adapter} was made for {base}, as its adapter_config.json says, which cannot be had; name another base model \
         (`with_base`, or --base on the command line): {reason}"
    )]
    LostBase {
        /// The adapter.
        adapter: String,
        /// The base model that it names.
        base: String,
        /// Why that cannot be had.
        reason: String,
    },
    /// The base model that was given is not the one that the adapter was made for, and does not fit.
    #[error("the adapter was made for {expected} and does not fit {given}: {reason}")]
    OtherBase {
        /// The base model that the adapter names.
        expected: String,
        /// The base model that was given.
        given: String,
        /// What does not fit.
        reason: Box<Error>,
    },
}

impl From<peft_hub::Error> for PretrainedError {
    fn from(error: peft_hub::Error) -> Self {
        Self::Hub(error)
    }
}

impl From<Error> for PretrainedError {
    fn from(error: Error) -> Self {
        Self::Peft(error)
    }
}
