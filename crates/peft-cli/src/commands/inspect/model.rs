//! What a model folder holds.

use crate::base::{chat_template, tokenizer};
use anyhow::Result;
use candle_core::Device;
use candle_peft::PeftModel;
use candle_peft::models::{CausalLanguageModel, ModelShape, load_model};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

#[derive(Debug, Serialize)]
pub(in crate::commands) struct ModelReport {
    dir: PathBuf,
    model_type: Option<String>,
    dtype: &'static str,
    layers: usize,
    hidden_size: usize,
    vocab_size: usize,
    max_positions: usize,
    parameters: usize,
    bytes: usize,
    eos_token_ids: Vec<u32>,
    /// Ids of the tokenizer, where there is one.
    tokenizer_size: Option<usize>,
    has_chat_template: bool,
}

impl ModelReport {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let model = PeftModel::new(load_model(dir, None, &Device::Cpu)?);
        let tokenizer = tokenizer(dir)?;
        let has_chat_template = chat_template(dir, tokenizer.as_ref())?.is_some();
        let parameters = model.param_counts()?.total;
        let model = model.base();
        let ModelShape { layers, hidden_size, vocab_size, max_positions, .. } = model.shape();
        Ok(Self {
            dir: dir.to_owned(),
            model_type: candle_peft::core::Adaptable::model_type(model).map(str::to_owned),
            dtype: model.dtype().as_str(),
            layers,
            hidden_size,
            vocab_size,
            max_positions,
            parameters,
            bytes: parameters * model.dtype().size_in_bytes(),
            eos_token_ids: model.eos_token_ids().to_vec(),
            tokenizer_size: tokenizer.map(|tokenizer| tokenizer.vocab_size()),
            has_chat_template,
        })
    }
}

impl fmt::Display for ModelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model       {}", self.dir.display())?;
        writeln!(f, "type        {}", self.model_type.as_deref().unwrap_or("not named"))?;
        writeln!(f, "parameters  {} {}, {} bytes", self.parameters, self.dtype, self.bytes)?;
        writeln!(f, "layers      {} of width {}", self.layers, self.hidden_size)?;
        writeln!(f, "vocabulary  {}", self.vocab_size)?;
        writeln!(f, "context     {} tokens", self.max_positions)?;
        match self.tokenizer_size {
            Some(size) => writeln!(f, "tokenizer   {size} ids")?,
            None => writeln!(f, "tokenizer   none")?,
        }
        write!(f, "template    {}", if self.has_chat_template { "for chats" } else { "none" })
    }
}
