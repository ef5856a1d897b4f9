//! The base model of a command: one that was named, the one that an adapter was made for, or the little model inside the binary.

use crate::args::BaseArgs;
use anyhow::Result;
use candle_peft::hub::{Part, Snapshot};
use candle_peft::models::CausalLm;
use candle_peft::train::chat::ChatTemplate;
use candle_peft::train::tokenizer::Tokenizer;
use candle_peft::{BaseFolder, PeftModel, Pretrained};
use std::path::Path;

const TOKENIZER_FILE: &str = "tokenizer.json";

/// A folder with a base model.
pub(crate) struct Base {
    folder: BaseFolder,
}

impl Base {
    /// The base model that was asked for, or that of the adapter, or the embedded one.
    pub(crate) fn open(
        base: Option<&str>,
        adapter: Option<&Snapshot>,
        part: Part,
        pretrained: &Pretrained,
    ) -> Result<Self> {
        let folder = match (base, adapter) {
            (Some(base), _) => pretrained.base(base, part)?,
            (None, Some(adapter)) => pretrained.base_for(None, adapter, part)?,
            (None, None) => BaseFolder::embedded()?,
        };
        Ok(Self { folder })
    }

    /// Where the files are.
    pub(crate) fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// What to call the model.
    pub(crate) fn name(&self) -> &str {
        self.folder.name()
    }

    /// Loads the model. `seed` makes the random initial values of a new adapter.
    pub(crate) fn load(&self, args: &BaseArgs, seed: u64) -> Result<PeftModel<CausalLm>> {
        let device = args.device.open()?;
        let model = self.folder.load(Some(args.dtype.into()), &device)?.with_init_seed(seed);
        Ok(args.factors.on(model))
    }

    /// The tokenizer, if the folder has one.
    pub(crate) fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        tokenizer(self.dir())
    }

    /// The chat template, if the folder has one.
    pub(crate) fn chat_template(&self, tokenizer: Option<&Tokenizer>) -> Result<Option<ChatTemplate>> {
        chat_template(self.dir(), tokenizer)
    }
}

/// The tokenizer of a model's folder, if it has one.
pub(crate) fn tokenizer(dir: &Path) -> Result<Option<Tokenizer>> {
    let exists = dir.join(TOKENIZER_FILE).exists();
    Ok(exists.then(|| Tokenizer::from_folder(dir)).transpose()?)
}

/// The chat template of a model's folder, if it has one.
pub(crate) fn chat_template(dir: &Path, tokenizer: Option<&Tokenizer>) -> Result<Option<ChatTemplate>> {
    let Some(tokenizer) = tokenizer else { return Ok(None) };
    Ok(ChatTemplate::from_folder(dir, tokenizer.special_tokens().clone())?)
}
