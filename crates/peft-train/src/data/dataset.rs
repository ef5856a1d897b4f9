//! A data file, tokenized.

use super::{Encoded, Encoder, IGNORE_INDEX, Row};
use crate::chat::Message;
use crate::error::{Error, Result};
use crate::fingerprint::Digest;
use crate::task::{Prompt, Task};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// What the model and the user allow a row to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatasetOptions {
    /// Cuts rows after this many tokens; without it a row that the model cannot take is an error.
    pub max_length: Option<usize>,
    /// The longest sequence that the model takes (`max_position_embeddings`).
    pub context_length: usize,
    /// The rows of the model's embedding.
    pub vocab_size: usize,
}

/// A tokenized row and where it came from. At least one of its tokens has a loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Its ids and labels.
    pub encoded: Encoded,
    /// Its line in the data file, counted from 1.
    pub line: usize,
}

impl Deref for Example {
    type Target = Encoded;

    fn deref(&self) -> &Encoded {
        &self.encoded
    }
}

/// The examples of one data file, in its order.
#[derive(Debug, Clone)]
pub struct Dataset {
    path: PathBuf,
    examples: Vec<Example>,
    without_targets: Vec<usize>,
}

impl Dataset {
    /// Reads and tokenizes a JSONL file.
    ///
    /// A row whose every token with a loss lies beyond `max_length` is left out and listed in
    /// [`without_targets`](Self::without_targets).
    ///
    /// # Errors
    /// Names the line that is not a row, does not fit the model, or has no token with a loss to begin with. Fails when
    /// no row is left, and when `max_length` is beyond the model.
    pub fn from_jsonl(path: &Path, encoder: &Encoder<'_>, options: DatasetOptions) -> Result<Self> {
        if let Some(max_length) = options.max_length {
            check_max_length(max_length, options.context_length)?;
        }
        let file = File::open(path).map_err(|error| Error::io("read", path, error))?;
        let mut dataset = Self { path: path.to_owned(), examples: Vec::new(), without_targets: Vec::new() };
        for (index, text) in BufReader::new(file).lines().enumerate() {
            let line = index + 1;
            let text = text.map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => Error::row(path, line, "is not UTF-8 text"),
                _ => Error::io("read", path, error),
            })?;
            if !text.trim().is_empty() {
                let row = Row::parse(&text).map_err(|message| Error::row(path, line, message))?;
                dataset.push(line, &row, encoder, &options)?;
            }
        }
        if dataset.examples.is_empty() {
            return Err(Error::EmptyDataset(dataset.path));
        }
        Ok(dataset)
    }

    /// Tokenizes the right answers to the first training problems of a task: what supervised training sees of it.
    ///
    /// # Errors
    /// As [`from_jsonl`](Self::from_jsonl), with problems for lines; and when the task has no right answers to show.
    pub fn from_task(task: &Task, problems: u64, encoder: &Encoder<'_>, options: DatasetOptions) -> Result<Self> {
        if let Some(max_length) = options.max_length {
            check_max_length(max_length, options.context_length)?;
        }
        let path = PathBuf::from(task.name());
        let mut dataset = Self { path, examples: Vec::new(), without_targets: Vec::new() };
        for index in 0..problems {
            let problem = task.problem(index);
            let answer = task
                .demonstration(&problem)
                .ok_or_else(|| Error::option("task", format!("{} has no right answers to learn from", task.name())))?;
            let row = match &problem.prompt {
                Prompt::Text(prompt) => Row::Completion { prompt: prompt.clone(), completion: answer },
                Prompt::Chat(messages) => Row::ChatCompletion {
                    prompt: messages.clone(),
                    completion: vec![Message::new("assistant", &answer)],
                },
            };
            dataset.push(index as usize + 1, &row, encoder, &options)?;
        }
        if dataset.examples.is_empty() {
            return Err(Error::EmptyDataset(dataset.path));
        }
        Ok(dataset)
    }

    fn push(&mut self, line: usize, row: &Row, encoder: &Encoder<'_>, options: &DatasetOptions) -> Result<()> {
        let path = &self.path;
        let mut encoded = encoder.encode(row).map_err(|error| Error::row(path, line, error.to_string()))?;
        if encoded.target_count() == 0 {
            return Err(Error::row(path, line, "no token of this row has a loss"));
        }
        if let Some(max_length) = options.max_length {
            encoded.ids.truncate(max_length);
            encoded.labels.truncate(max_length);
        } else if encoded.ids.len() > options.context_length {
            let (path, length, limit) = (path.clone(), encoded.ids.len(), options.context_length);
            return Err(Error::SequenceTooLong { path, line, length, limit });
        }
        check_ids(path, line, &encoded, options.vocab_size)?;
        if encoded.target_count() == 0 {
            self.without_targets.push(line);
        } else {
            self.examples.push(Example { encoded, line });
        }
        Ok(())
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The examples in file order; never empty.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// The lines that were left out because `max_length` cut off all that was to be learnt.
    pub fn without_targets(&self) -> &[usize] {
        &self.without_targets
    }

    /// A number that stands for the ids and labels in their order, the same on every machine.
    ///
    /// A resumed run compares it to tell whether its data has changed.
    pub fn fingerprint(&self) -> u64 {
        let mut digest = Digest::default();
        for example in &self.examples {
            digest.word(example.ids.len() as u64);
            example.ids.iter().for_each(|&id| digest.word(u64::from(id)));
            example.labels.iter().for_each(|&label| digest.word(label as u64));
        }
        digest.finish()
    }
}

fn check_max_length(max_length: usize, context_length: usize) -> Result<()> {
    if max_length < 2 {
        return Err(Error::option(
            "max_length",
            format!("{max_length} leaves no token to predict; it must be at least 2"),
        ));
    }
    if max_length > context_length {
        let message = format!("{max_length} is more than the {context_length} tokens that the model takes");
        return Err(Error::option("max_length", message));
    }
    Ok(())
}

fn check_ids(path: &Path, line: usize, encoded: &Encoded, vocab_size: usize) -> Result<()> {
    let out_of_range = |&&id: &&u32| usize::try_from(id).map_or(true, |id| id >= vocab_size);
    if let Some(&id) = encoded.ids.iter().find(out_of_range) {
        return Err(Error::TokenOutOfRange { path: path.to_owned(), line, id, vocab_size });
    }
    let is_label = |label: i64| label == IGNORE_INDEX || usize::try_from(label).is_ok_and(|label| label < vocab_size);
    if let Some(label) = encoded.labels.iter().find(|&&label| !is_label(label)) {
        let message = format!("label {label} is neither {IGNORE_INDEX} nor one of the {vocab_size} token ids");
        return Err(Error::row(path, line, message));
    }
    Ok(())
}
