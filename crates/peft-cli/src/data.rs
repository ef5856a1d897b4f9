//! Data files as a base model reads them.

use crate::args::DataArgs;
use crate::base::Base;
use crate::output::note;
use anyhow::Result;
use candle_peft::models::ModelShape;
use candle_peft::train::chat::ChatTemplate;
use candle_peft::train::data::{Dataset, DatasetOptions, Encoder};
use candle_peft::train::task::Task;
use candle_peft::train::tokenizer::Tokenizer;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// 26 July 2024 in seconds since 1970: the date that templates of Llama 3 fall back to.
///
/// Some templates write the day into every prompt. Training data must not change from one day to the next.
const TEMPLATE_DATE: Duration = Duration::from_secs(1_721_952_000);

/// A template whose today is always the same.
pub(crate) fn dated(template: ChatTemplate) -> ChatTemplate {
    template.with_now(SystemTime::UNIX_EPOCH + TEMPLATE_DATE)
}

/// Reads data files for one model.
pub(crate) struct DataReader {
    tokenizer: Option<Tokenizer>,
    chat: Option<ChatTemplate>,
    options: DatasetOptions,
}

impl DataReader {
    pub(crate) fn new(base: &Base, shape: ModelShape, args: &DataArgs) -> Result<Self> {
        let tokenizer = base.tokenizer()?;
        let chat = base.chat_template(tokenizer.as_ref())?;
        let chat = chat.map(dated);
        let options = DatasetOptions {
            max_length: args.max_length,
            context_length: shape.max_positions,
            vocab_size: shape.vocab_size,
        };
        Ok(Self { tokenizer, chat, options })
    }

    /// The right answers to the first training problems of a task.
    pub(crate) fn demonstrations(&self, task: &Task, problems: u64) -> Result<Dataset> {
        let encoder = Encoder { tokenizer: self.tokenizer.as_ref(), chat: self.chat.as_ref() };
        Ok(Dataset::from_task(task, problems, &encoder, self.options)?)
    }

    /// Reads and tokenizes a file; rows that `--max-length` leaves nothing of are mentioned on standard error.
    pub(crate) fn read(&self, path: &Path) -> Result<Dataset> {
        let encoder = Encoder { tokenizer: self.tokenizer.as_ref(), chat: self.chat.as_ref() };
        let data = Dataset::from_jsonl(path, &encoder, self.options)?;
        if let Some(first) = data.without_targets().first() {
            let count = data.without_targets().len();
            let (path, s) = (path.display(), if count == 1 { "" } else { "s" });
            note(format_args!(
                "{path}: {count} row{s} left out, --max-length cuts off all that has a loss (line {first})"
            ));
        }
        Ok(data)
    }
}
