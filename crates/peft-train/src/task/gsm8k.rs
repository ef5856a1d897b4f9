//! Rows of GSM8K.

use super::problem::{Problem, Prompt};
use crate::chat::Message;
use crate::json_lines::Object;
use crate::reward::marked_number;
use serde_json::Value;

/// The field of a problem that holds the worked answer.
pub(super) const SOLUTION: &str = "solution";

const FORM: &str = "a row is {\"question\": text, \"answer\": text with `#### ` and a number at its end}";

/// How a question is put to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Gsm8kPrompt {
    /// `Question: … Think step by step.`, and `Answer:` on a line of its own, as in PEFT's `method_comparison`: for base models, and
    /// those trained on such text. The form of the answer is not asked for.
    #[default]
    Text,
    /// A message of the user that asks for `#### ` and the number on the last line: for models that chat.
    Chat,
}

impl Gsm8kPrompt {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Chat => "chat",
        }
    }

    fn of(self, question: &str) -> Prompt {
        match self {
            Self::Text => Prompt::Text(format!("Question: {question} Think step by step.\nAnswer:")),
            Self::Chat => {
                let ask = "Think step by step. End with a line of #### and the answer as a number.";
                Prompt::Chat(vec![Message::new("user", &format!("{question}\n{ask}"))])
            }
        }
    }
}

/// The problem of a row.
pub(super) fn problem(mut row: Object, prompt: Gsm8kPrompt) -> Result<Problem, String> {
    let text = |name: &str, row: &mut Object| match row.shift_remove(name) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text),
        Some(_) => Err(format!("`{name}` must be a text; {FORM}")),
        None => Err(format!("has no `{name}`; {FORM}")),
    };
    let solution = text("answer", &mut row)?;
    let question = text("question", &mut row)?;
    let Some(answer) = marked_number(&solution).map(str::to_owned) else {
        return Err(format!("`answer` has no number after its last `#### `; {FORM}"));
    };
    let problem = Problem::new(prompt.of(&question), answer);
    row.insert("question".to_owned(), question.into());
    row.insert(SOLUTION.to_owned(), solution.into());
    Ok(problem.with_fields(row))
}
