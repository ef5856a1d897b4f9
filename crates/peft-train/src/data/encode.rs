//! From rows to token ids and labels.

use super::{IGNORE_INDEX, Row};
use crate::chat::{ChatTemplate, Message};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

const ASSISTANT: &str = "assistant";

/// What turns rows into token ids: a tokenizer and a chat template, each only needed by rows that use it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Encoder<'a> {
    /// Needed by every row but `input_ids`.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Needed by chat messages.
    pub chat: Option<&'a ChatTemplate>,
}

/// Token ids with one label each: the id itself, or [`IGNORE_INDEX`] where no loss is wanted.
///
/// Labels are aligned to the ids; that a model predicts the next token is the loss function's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The token ids.
    pub ids: Vec<u32>,
    /// As many labels.
    pub labels: Vec<i64>,
}

impl Encoded {
    /// Ids that are all learnt.
    fn all(ids: Vec<u32>) -> Self {
        Self::after(0, ids)
    }

    /// Ids that are learnt from the `prompt`-th on.
    fn after(prompt: usize, ids: Vec<u32>) -> Self {
        let label = |(index, &id): (usize, &u32)| if index < prompt { IGNORE_INDEX } else { i64::from(id) };
        let labels = ids.iter().enumerate().map(label).collect();
        Self { ids, labels }
    }

    /// The number of tokens with a loss. The first one has none, whatever its label: nothing predicts it.
    pub fn target_count(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORE_INDEX).count()
    }
}

impl Encoder<'_> {
    /// Tokenizes a row; [the module](super) tells how.
    ///
    /// # Errors
    /// When the row needs a tokenizer or a chat template that is not there, or one of them refuses it.
    pub fn encode(&self, row: &Row) -> Result<Encoded> {
        match row {
            Row::Text(text) => Ok(Encoded::all(self.ended(self.tokenizer()?.encode(text)?)?)),
            Row::Completion { prompt, completion } => self.completion(prompt, completion),
            Row::ChatCompletion { prompt, completion } => {
                let messages = [prompt.as_slice(), completion].concat();
                self.chat_completion(&messages, prompt.len())?.ok_or_else(|| {
                    Error::ChatTemplate("renders the prompt differently when the completion follows it".to_owned())
                })
            }
            Row::Chat(messages) => self.chat(messages),
            Row::Tokens { input_ids, labels: None } => Ok(Encoded::all(input_ids.clone())),
            Row::Tokens { input_ids, labels: Some(labels) } => {
                Ok(Encoded { ids: input_ids.clone(), labels: labels.clone() })
            }
        }
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded> {
        let tokenizer = self.tokenizer()?;
        let prompt_ids = tokenizer.encode_open(prompt)?;
        let whole = tokenizer.encode(&[prompt, completion].concat())?;
        let ids = if whole.starts_with(&prompt_ids) {
            whole
        } else {
            [prompt_ids.as_slice(), &tokenizer.encode_bare(completion)?].concat()
        };
        Ok(Encoded::after(prompt_ids.len(), self.ended(ids)?))
    }

    fn chat(&self, messages: &[Message]) -> Result<Encoded> {
        if let [prompt @ .., last] = messages
            && last.role() == ASSISTANT
            && !prompt.is_empty()
            && let Some(encoded) = self.chat_completion(messages, prompt.len())?
        {
            return Ok(encoded);
        }
        let text = self.template()?.render(messages, false)?;
        Ok(Encoded::all(self.tokenizer()?.encode_bare(&text)?))
    }

    /// The messages with a loss from the `prompt`-th on; `None` if the prompt is not rendered as a prefix.
    fn chat_completion(&self, messages: &[Message], prompt: usize) -> Result<Option<Encoded>> {
        let (template, tokenizer) = (self.template()?, self.tokenizer()?);
        let whole = template.render(messages, false)?;
        // Some templates open the assistant's turn with text, such as a thinking tag, that finished turns lack.
        for add_generation_prompt in [true, false] {
            let prompt = template.render(&messages[..prompt], add_generation_prompt)?;
            if let Some(completion) = whole.strip_prefix(&prompt) {
                let prompt_ids = tokenizer.encode_bare(&prompt)?;
                let mut ids = tokenizer.encode_bare(&whole)?;
                if !ids.starts_with(&prompt_ids) {
                    ids = [prompt_ids.as_slice(), &tokenizer.encode_bare(completion)?].concat();
                }
                return Ok(Some(Encoded::after(prompt_ids.len(), ids)));
            }
        }
        Ok(None)
    }

    /// The ids with the end token after them, where there is one.
    fn ended(&self, mut ids: Vec<u32>) -> Result<Vec<u32>> {
        if let Some(eos) = self.tokenizer()?.eos_id()
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        Ok(ids)
    }

    pub(super) fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing = "this row needs a tokenizer, but the model folder has no tokenizer.json";
        self.tokenizer.ok_or_else(|| Error::option("data", missing))
    }

    pub(super) fn template(&self) -> Result<&ChatTemplate> {
        self.chat.ok_or_else(|| {
            Error::ChatTemplate(
                "chat messages need one, but the model folder has none (chat_template.jinja)".to_owned(),
            )
        })
    }
}
