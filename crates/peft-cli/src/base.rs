//! The base model of a command: a folder, or the little model inside the binary.

use crate::args::BaseArgs;
use anyhow::{Context, Result, bail};
use candle_peft::PeftModel;
use candle_peft::models::{CausalLm, load_model};
use candle_peft::train::chat::ChatTemplate;
use candle_peft::train::tokenizer::Tokenizer;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TOKENIZER_FILE: &str = "tokenizer.json";

/// The embedded tiny Llama as the files of its folder; empty in a build without one.
const EMBEDDED: &[(&str, &[u8])] = &[];
/// What configs of adapters call it.
const EMBEDDED_NAME: &str = "tiny-llama";

/// A folder with a base model.
pub(crate) struct BaseFolder {
    dir: PathBuf,
    name: String,
    /// Where the embedded model was unpacked; vanishes with this value.
    _unpacked: Option<TempDir>,
}

impl BaseFolder {
    /// The folder that was asked for, or the embedded model's.
    pub(crate) fn open(base: Option<&Path>) -> Result<Self> {
        match base {
            Some(dir) if dir.is_dir() => {
                Ok(Self { dir: dir.to_owned(), name: dir.display().to_string(), _unpacked: None })
            }
            Some(dir) if dir.exists() => bail!("{}: not a folder; --base takes the folder of a model", dir.display()),
            Some(dir) => bail!("{}: no such folder", dir.display()),
            None if EMBEDDED.is_empty() => bail!("this build has no embedded model; name one with --base DIR"),
            None => {
                let unpacked = TempDir::new().context("cannot unpack the embedded model")?;
                for (file, bytes) in EMBEDDED {
                    let path = unpacked.path().join(file);
                    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
                }
                let dir = unpacked.path().to_owned();
                Ok(Self { dir, name: EMBEDDED_NAME.to_owned(), _unpacked: Some(unpacked) })
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
