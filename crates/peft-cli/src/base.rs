//! The base model of a command: a folder, or the little model inside the binary.

use crate::args::BaseArgs;
use anyhow::{Result, bail};
use candle_peft::models::{CausalLm, load_model};
use candle_peft::train::chat::ChatTemplate;
use candle_peft::train::tokenizer::Tokenizer;
use candle_peft::{PeftModel, TinyLlama};
use std::path::{Path, PathBuf};

const TOKENIZER_FILE: &str = "tokenizer.json";

/// A folder with a base model.
pub(crate) struct BaseFolder {
    dir: PathBuf,
    name: String,
    /// The embedded model, whose files vanish with this value.
    _embedded: Option<TinyLlama>,
}

impl BaseFolder {
    /// The folder that was asked for, or the embedded model's.
    pub(crate) fn open(base: Option<&Path>) -> Result<Self> {
        match base {
            Some(dir) if dir.is_dir() => {
                Ok(Self { dir: dir.to_owned(), name: dir.display().to_string(), _embedded: None })
            }
            Some(dir) if dir.exists() => bail!("{}: not a folder; --base takes the folder of a model", dir.display()),
            Some(dir) => bail!("{}: no such folder", dir.display()),
            None => {
                let tiny = TinyLlama::unpack()?;
                let (dir, name) = (tiny.path().to_owned(), TinyLlama::NAME.to_owned());
                Ok(Self { dir, name, _embedded: Some(tiny) })
            }
        }
    }

    /// Where the files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What to call the model.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Loads the model. `seed` makes the random initial values of a new adapter.
    pub(crate) fn load(&self, args: &BaseArgs, seed: u64) -> Result<PeftModel<CausalLm>> {
        let device = args.device.open()?;
        let model = load_model(&self.dir, Some(args.dtype.into()), &device)?;
        Ok(PeftModel::new(model).with_base_name(&self.name).with_init_seed(seed))
    }

    /// The tokenizer, if the folder has one.
    pub(crate) fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let exists = self.dir.join(TOKENIZER_FILE).exists();
        Ok(exists.then(|| Tokenizer::from_folder(&self.dir)).transpose()?)
    }

    /// The chat template, if the folder has one.
    pub(crate) fn chat_template(&self, tokenizer: Option<&Tokenizer>) -> Result<Option<ChatTemplate>> {
        let Some(tokenizer) = tokenizer else { return Ok(None) };
        Ok(ChatTemplate::from_folder(&self.dir, tokenizer.special_tokens().clone())?)
    }
}
