//! The little Llama that comes with this crate.

use peft_core::{Error, Result, checkpoint::write_folder};
use std::path::Path;
use tempfile::TempDir;

macro_rules! asset {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../assets/tiny-llama/", $name)).as_slice())
    };
}

const FILES: [(&str, &[u8]); 4] =
    [asset!("config.json"), asset!("model.safetensors"), asset!("tokenizer.json"), asset!("tokenizer_config.json")];

/// A Llama of 430 thousand parameters, compiled in, for trying things out without a download.
///
/// It adds numbers below 50, and gets about half of the answers right: its training text mixes right sums with ones that are
/// off by one (`examples/train_tiny_llama.rs` made it).
///
/// ```
/// let tiny = candle_peft::TinyLlama::unpack()?;
/// assert!(tiny.path().join("model.safetensors").is_file());
/// # Ok::<(), candle_peft::Error>(())
/// ```
#[derive(Debug)]
pub struct TinyLlama {
    dir: TempDir,
}

impl TinyLlama {
    /// What adapters of it call their base model.
    pub const NAME: &'static str = "candle-peft/tiny-llama";

    /// Writes the model's files into a temporary folder, which goes when this value is dropped.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn unpack() -> Result<Self> {
        let dir = TempDir::with_prefix("tiny-llama-")
            .map_err(|e| Error::io("create a folder in", std::env::temp_dir(), e))?;
        write_folder(dir.path(), &FILES)?;
        Ok(Self { dir })
    }

    /// The Hugging Face model folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}
