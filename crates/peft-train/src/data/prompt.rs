//! Prompts of tasks as a model reads them, and its answers as text.

use super::Encoder;
use crate::error::Result;
use crate::generate::{Generation, GenerationConfig, Generator};
use crate::task::Prompt;
use peft_models::CausalLanguageModel;

impl Encoder<'_> {
    /// A prompt as the model sees it: chat messages go through the chat template, up to where the assistant's turn begins.
    ///
    /// # Errors
    /// When messages need a chat template that is not there, or it refuses them.
    pub fn prompt_text(&self, prompt: &Prompt) -> Result<String> {
        match prompt {
            Prompt::Text(text) => Ok(text.clone()),
            Prompt::Chat(messages) => self.template()?.render(messages, true),
        }
    }

    /// The token ids of a prompt, with what the tokenizer puts before a text, without what it puts after one.
    ///
    /// # Errors
    /// As [`prompt_text`](Self::prompt_text), and when there is no tokenizer or it refuses the text.
    pub fn prompt_ids(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => self.tokenizer()?.encode_open(text),
            // A template writes its own special tokens.
            Prompt::Chat(_) => self.tokenizer()?.encode_bare(&self.prompt_text(prompt)?),
        }
    }

    /// The text of a completion, without special tokens, up to the first of the texts that end it.
    ///
    /// # Errors
    /// When there is no tokenizer.
    pub fn completion_text(&self, completion: &Generation, stop_strings: &[String]) -> Result<String> {
        let mut text = self.tokenizer()?.decode(completion.text_ids(), false)?;
        if let Some(end) = stop_strings.iter().filter_map(|stop| text.find(stop.as_str())).min() {
            text.truncate(end);
        }
        Ok(text)
    }

    /// The ids that end a text: those of the tokenizer's folder, else those of the model.
    ///
    /// # Errors
    /// When there is no tokenizer.
    pub fn stop_ids(&self, model: &(impl CausalLanguageModel + ?Sized)) -> Result<Vec<u32>> {
        Ok(match self.tokenizer()?.stop_ids() {
            [] => model.eos_token_ids().to_vec(),
            ids => ids.to_vec(),
        })
    }

    /// What generates completions that end at these texts too.
    pub(crate) fn generator(&self, config: GenerationConfig, stop_strings: &[String]) -> Result<Generator> {
        let generator = Generator::new(config)?;
        if stop_strings.is_empty() {
            return Ok(generator);
        }
        generator.with_stop_strings(self.tokenizer()?, stop_strings.to_vec())
    }
}
