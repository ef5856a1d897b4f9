//! Adapters onto the Hub.

use crate::{Pretrained, PretrainedError};
use peft_core::Error;
use peft_core::checkpoint::{DetachedAdapter, read_adapter};
use peft_hub::{ModelCard, PushOptions, Pushed};
use serde_json::Value;
use std::path::Path;

/// Fields of configs that say how large an adapter is and where it sits, as PEFT spells them.
const FACTS: [&str; 7] = ["r", "u", "weight_tying", "lora_alpha", "use_dora", "target_modules", "bias"];

impl Pretrained {
    /// Publishes the adapter of a folder under `user/name`, with a model card where the folder has no README.md. The repository is
    /// made if need be.
    ///
    /// # Errors
    /// When the folder's adapter is broken, and as [`peft_hub::Hub::push`].
    pub fn push(&self, dir: impl AsRef<Path>, repo: &str, options: PushOptions) -> Result<Pushed, PretrainedError> {
        let dir = dir.as_ref();
        let card = self.model_card(dir)?;
        Ok(self.hub()?.push(dir, repo, &options.card(card))?)
    }

    /// The model card of an adapter's folder, which makes sure that the adapter is whole as far as that can be told without its
    /// base model.
    ///
    /// # Errors
    /// When it is not.
    pub fn model_card(&self, dir: impl AsRef<Path>) -> Result<ModelCard, Error> {
        let dir = dir.as_ref();
        let (config, file) = read_adapter(dir, self.registry())?;
        let mut card = ModelCard::new(config.method.peft_type());
        if !config.method.needs_base() {
            let adapter = DetachedAdapter::from_source(config.clone(), &file);
            card.parameters = Some(adapter.map_err(|e| e.at(dir.display().to_string()))?.trainable_count());
        }
        let fields = config.method.to_json()?;
        let fact = |name: &&str| {
            let text = match fields.get(name)? {
                Value::Null | Value::Bool(false) => return None,
                Value::String(text) if text == "none" => return None,
                Value::String(text) => text.clone(),
                Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
                other => other.to_string(),
            };
            Some((format!("`{name}`"), text))
        };
        card.facts = FACTS.iter().filter_map(fact).collect();
        card.base_model = config.meta.base_model_name_or_path;
        card.base_revision = config.meta.revision;
        Ok(card)
    }
}
