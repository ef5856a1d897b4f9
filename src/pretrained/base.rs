//! Folders of base models.

use super::PretrainedError;
use crate::{Error, PeftModel, TinyLlama};
use candle_core::{DType, Device};
use peft_hub::Snapshot;
use peft_models::{CausalLm, load_model};
use std::path::Path;

/// The folder of a base model.
#[derive(Debug)]
pub struct BaseFolder {
    snapshot: Snapshot,
    name: String,
    /// The embedded model, whose files vanish with this value.
    _embedded: Option<TinyLlama>,
}

impl BaseFolder {
    /// The embedded Llama, unpacked.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn embedded() -> Result<Self, PretrainedError> {
        let tiny = TinyLlama::unpack()?;
        let snapshot = Snapshot::of_folder(tiny.path());
        Ok(Self { snapshot, name: TinyLlama::NAME.to_owned(), _embedded: Some(tiny) })
    }

    pub(super) fn of(snapshot: Snapshot) -> Self {
        Self { name: snapshot.name(), snapshot, _embedded: None }
    }

    /// Where the files are.
    pub fn path(&self) -> &Path {
        self.snapshot.path()
    }

    /// What adapters call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The commit that its files are of, if they are from the Hub.
    pub fn revision(&self) -> Option<&str> {
        self.snapshot.origin().map(|origin| &*origin.commit)
    }

    /// Loads the model, to attach adapters to; those that are saved name it, and the commit.
    ///
    /// # Errors
    /// As [`load_model`].
    pub fn load(&self, dtype: Option<DType>, device: &Device) -> Result<PeftModel<CausalLm>, Error> {
        let model = PeftModel::new(load_model(self.path(), dtype, device)?).with_base_name(self.name());
        Ok(self.revision().into_iter().fold(model, |model, revision| model.with_base_revision(revision)))
    }
}
