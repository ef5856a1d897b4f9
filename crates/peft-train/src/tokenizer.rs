//! The tokenizer of a model folder: text to ids, ids to text, and the special tokens.

use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizers::processors::template::TemplateProcessing;

const TOKENIZER_FILE: &str = "tokenizer.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";
const MODEL_CONFIG_FILE: &str = "config.json";
/// The special tokens that Hugging Face names.
const SPECIAL_TOKEN_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A model's tokenizer.
///
/// It encodes as `transformers` does: truncation and padding stored in `tokenizer.json` are off, and where
/// `tokenizer_config.json` sets `add_bos_token` or `add_eos_token`, those decide what is put around a text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    special_tokens: BTreeMap<String, String>,
    stop_ids: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model folder, and the special tokens from the configuration files beside it.
    ///
    /// A special token is looked up in `tokenizer_config.json`, then in `special_tokens_map.json`, then by its id
    /// (`bos_token_id`, …) in `config.json`.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing or a file is broken, and when the begin or end token is not in the vocabulary.
    pub fn from_folder(dir: &Path) -> Result<Self> {
        let path = dir.join(TOKENIZER_FILE);
        let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| Error::tokenizer(&path, error))?;
        inner.with_truncation(None).map_err(|error| Error::tokenizer(&path, error))?;
        inner.with_padding(None);

        let config: TokenizerConfig = read_json_or_default(&dir.join(TOKENIZER_CONFIG_FILE))?;
        let map: SpecialTokens = read_json_or_default(&dir.join(SPECIAL_TOKENS_FILE))?;
        let model: TokenIds = read_json_or_default(&dir.join(MODEL_CONFIG_FILE))?;
        let generation: TokenIds = read_json_or_default(&dir.join(GENERATION_CONFIG_FILE))?;

        let mut special_tokens = BTreeMap::new();
        for name in SPECIAL_TOKEN_NAMES {
            let named = config.special_tokens.content(name).or_else(|| map.content(name));
            let token = named.or_else(|| model.first(name).and_then(|id| inner.id_to_token(id)));
            if let Some(token) = token {
                special_tokens.insert(name.to_owned(), token);
            }
        }
        let mut tokenizer = Self { path, inner, special_tokens, stop_ids: Vec::new() };
        for name in ["bos_token", "eos_token"] {
            if let (Some(token), None) = (tokenizer.special_tokens.get(name), tokenizer.special_id(name)) {
                return Err(Error::tokenizer(
                    &tokenizer.path,
                    format!("the {name} `{token}` is not in the vocabulary"),
                ));
            }
        }
        let eos = [generation.all("eos_token"), model.all("eos_token"), Vec::from_iter(tokenizer.eos_id())];
        tokenizer.stop_ids = eos.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default();
        if config.add_bos_token.is_some() || config.add_eos_token.is_some() {
            tokenizer.surround(config.add_bos_token == Some(true), config.add_eos_token == Some(true))?;
        }
        Ok(tokenizer)
    }

    /// Puts the begin and end tokens around every encoded text, in place of what `tokenizer.json` says.
    fn surround(&mut self, bos: bool, eos: bool) -> Result<()> {
        let bos = self.special_tokens.get("bos_token").filter(|_| bos).and_then(|t| Some((t.clone(), self.bos_id()?)));
        let eos = self.special_tokens.get("eos_token").filter(|_| eos).and_then(|t| Some((t.clone(), self.eos_id()?)));
        let piece = |token: &Option<(String, u32)>| token.iter().map(|(token, _)| token.clone()).collect::<Vec<_>>();
        let single = [piece(&bos), vec!["$A".to_owned()], piece(&eos)].concat();
        let template = TemplateProcessing::builder()
            .try_single(single)
            .map_err(|error| Error::tokenizer(&self.path, error))?
            .special_tokens(bos.into_iter().chain(eos).collect::<Vec<_>>())
            .build()
            .map_err(|error| Error::tokenizer(&self.path, error))?;
        self.inner.with_post_processor(Some(template));
        Ok(())
    }

    /// The special tokens by their Hugging Face names (`bos_token`, `eos_token`, …), as chat templates read them.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special_tokens
    }

    /// The id that begins a text, where the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.special_id("bos_token")
    }

    /// The id that ends a text, where the model has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.special_id("eos_token")
    }

    /// The id that fills short rows of a batch: the padding token, else the end token, else 0.
    ///
    /// Padding is masked, so the choice changes no result.
    pub fn pad_id(&self) -> u32 {
        self.special_id("pad_token").or_else(|| self.eos_id()).unwrap_or(0)
    }

    /// The ids that end a generation: those of `generation_config.json`, else of `config.json`, else the end token.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The number of ids, added tokens included; a model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.special_tokens.get(name).and_then(|token| self.inner.token_to_id(token))
    }

    /// The ids of a text, with the special tokens that the model expects around it.
    ///
    /// Special tokens that are spelled out in the text become their ids, as in `transformers`.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text, true)?.get_ids().to_vec())
    }

    /// The ids of a text alone, such as a rendered chat that spells its special tokens out.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text, false)?.get_ids().to_vec())
    }

    /// The ids of a text that goes on: as [`encode`](Self::encode), without special tokens after it.
    pub fn encode_open(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.encoding(text, true)?;
        // The mask marks what the post-processor added, not special tokens that the text spells out.
        let added = encoding.get_special_tokens_mask();
        let mut end = added.iter().rposition(|&added| added == 0).map_or(0, |last| last + 1);
        if end == 0 && self.bos_id().is_some() && encoding.get_ids().first().copied() == self.bos_id() {
            // Around an empty text the begin token is not told from the end token by its place.
            end = 1;
        }
        Ok(encoding.get_ids().iter().take(end).copied().collect())
    }

    fn encoding(&self, text: &str, add_special_tokens: bool) -> Result<tokenizers::Encoding> {
        self.inner.encode_fast(text, add_special_tokens).map_err(|error| Error::tokenizer(&self.path, error))
    }

    /// The text of ids; special tokens are left out unless `keep_special_tokens`.
    pub fn decode(&self, ids: &[u32], keep_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, !keep_special_tokens).map_err(|error| Error::tokenizer(&self.path, error))
    }

    /// A decoder for ids that come one by one; it leaves special tokens out.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, ids: Vec::new(), emitted: 0 }
    }
}

/// Text that grows id by id.
///
/// A character whose bytes are spread over several ids appears with its last one.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last ids whose text is out, and those whose text is held back.
    ids: Vec<u32>,
    /// How many of `ids` are out.
    emitted: usize,
}

impl DecodeStream<'_> {
    /// The text that `id` completes; empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.held_back()?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.advance();
        Ok(text)
    }

    /// The text held back: what is left of a character that was never completed.
    pub fn finish(mut self) -> Result<String> {
        let text = self.held_back()?;
        self.advance();
        Ok(text)
    }

    /// Some decoders treat the first id of a text differently, so the new ids are decoded after the last ones.
    fn held_back(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.emitted], false)?;
        let all = self.tokenizer.decode(&self.ids, false)?;
        match all.strip_prefix(&before) {
            Some(text) => Ok(text.to_owned()),
            // A decoder that rewrites earlier text: what is out is out.
            None => self.tokenizer.decode(&self.ids[self.emitted..], false),
        }
    }

    fn advance(&mut self) {
        self.ids.drain(..self.emitted);
        self.emitted = self.ids.len();
    }
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    #[serde(flatten)]
    special_tokens: SpecialTokens,
}

/// Fields such as `eos_token`, among others.
#[derive(Deserialize, Default)]
#[serde(transparent)]
struct SpecialTokens(BTreeMap<String, serde_json::Value>);

impl SpecialTokens {
    /// A token written as text or as an object with its text in `content`.
    fn content(&self, name: &str) -> Option<String> {
        let token = self.0.get(name)?;
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    }
}

/// Fields such as `eos_token_id`, among others.
#[derive(Deserialize, Default)]
#[serde(transparent)]
struct TokenIds(BTreeMap<String, serde_json::Value>);

impl TokenIds {
    /// The ids of a special token, written as a number or a list of numbers.
    fn all(&self, name: &str) -> Vec<u32> {
        let ids = match self.0.get(&format!("{name}_id")) {
            Some(serde_json::Value::Array(ids)) => ids.as_slice(),
            Some(id) => std::slice::from_ref(id),
            None => &[],
        };
        ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    }

    fn first(&self, name: &str) -> Option<u32> {
        self.all(name).first().copied()
    }
}

fn read_json_or_default<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| Error::tokenizer(path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(Error::io("read", path, error)),
    }
}
