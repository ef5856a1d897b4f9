//! Hugging Face chat templates, rendered as `transformers.apply_chat_template` renders them.
//!
//! Templates are Jinja2 text that leans on Python: whitespace control as `transformers` sets it, `raise_exception`,
//! `strftime_now`, `tojson` without HTML escapes, loop controls, `{% generation %}` blocks, and methods of Python's
//! strings and dicts such as `.strip()` or `.get()`. Tools and documents are always `none`.

mod calendar;
mod json;
mod python;

use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

const TEMPLATE_FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_NAME: &str = "chat_template";

/// One message of a conversation: a `role`, a `content`, and whatever other fields the template reads.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Value")]
pub struct Message(Value);

impl Message {
    /// A message of plain text.
    pub fn new(role: &str, content: &str) -> Self {
        Self(Value::from_pairs([("role", role), ("content", content)]))
    }

    /// Who speaks: usually `system`, `user` or `assistant`.
    pub fn role(&self) -> String {
        self.field("role").map(|role| role.to_string()).unwrap_or_default()
    }

    fn field(&self, name: &str) -> Option<Value> {
        self.0.get_attr(name).ok().filter(|value| !value.is_undefined() && !value.is_none())
    }

    /// The message as a template sees it, with its reasoning under every name that templates read.
    fn with_reasoning_aliases(&self) -> Value {
        let Some(reasoning) = ["reasoning_content", "thinking", "reasoning"].iter().find_map(|name| self.field(name))
        else {
            return self.0.clone();
        };
        let Ok(keys) = self.0.try_iter() else { return self.0.clone() };
        let given: Vec<_> = keys.map(|key| (key.clone(), self.0.get_item(&key).unwrap_or_default())).collect();
        let alias = |name: &str| (Value::from(name), reasoning.clone());
        Value::from_pairs([alias("thinking")].into_iter().chain(given).chain([alias("reasoning_content")]))
    }
}

impl TryFrom<Value> for Message {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        match value.get_attr("role") {
            Ok(role) if role.as_str().is_some() => Ok(Self(value)),
            _ => Err("a message must be an object with a text `role`"),
        }
    }
}

/// A compiled chat template with the special tokens it may write.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("special_tokens", &self.special_tokens).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// `special_tokens` are the variables such as `bos_token` and `eos_token` by name; see
    /// [`Tokenizer::special_tokens`](crate::tokenizer::Tokenizer::special_tokens).
    ///
    /// # Errors
    /// When the template does not parse.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(template_error)?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(python::call_method);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(TEMPLATE_NAME, python::without_generation_blocks(source))
            .map_err(template_error)?;
        Ok(Self { environment, special_tokens }.with_now(SystemTime::now()))
    }

    /// The template of a model folder: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` (the one
    /// named `default` where there are several). `None` when the folder has neither.
    ///
    /// # Errors
    /// When a file cannot be read or the template does not parse.
    pub fn from_folder(dir: &Path, special_tokens: BTreeMap<String, String>) -> Result<Option<Self>> {
        let path = dir.join(TEMPLATE_FILE);
        if let Some(source) = read_if_present(&path)? {
            return Self::new(&source, special_tokens).map(Some).map_err(|error| in_file(error, &path));
        }
        let path = dir.join(CONFIG_FILE);
        let Some(config) = read_if_present(&path)? else { return Ok(None) };
        let config: TemplateConfig = serde_json::from_str(&config).map_err(|error| Error::tokenizer(&path, error))?;
        match config.chat_template.map(ConfiguredTemplate::source).transpose().map_err(|e| in_file(e, &path))? {
            Some(source) => Self::new(&source, special_tokens).map(Some).map_err(|error| in_file(error, &path)),
            None => Ok(None),
        }
    }

    /// The same template with another time for `strftime_now`, which is otherwise the time of its creation, in UTC.
    ///
    /// A run that must be repeatable fixes the time, since some templates write the date into every prompt.
    #[must_use]
    pub fn with_now(mut self, now: SystemTime) -> Self {
        self.environment.add_function("strftime_now", move |format: String| calendar::strftime(now, &format));
        self
    }

    /// The text of a conversation.
    ///
    /// With `add_generation_prompt` it ends where the assistant's next turn begins.
    ///
    /// # Errors
    /// When the template refuses the messages, for example because their roles do not alternate.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<_> = messages.iter().map(Message::with_reasoning_aliases).collect();
        let mut context: BTreeMap<&str, Value> =
            self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token))).collect();
        context.insert("messages", Value::from(messages));
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        let template = self.environment.get_template(TEMPLATE_NAME).map_err(template_error)?;
        template.render(Value::from(context)).map_err(template_error)
    }
}

#[derive(Deserialize)]
struct TemplateConfig {
    chat_template: Option<ConfiguredTemplate>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ConfiguredTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl ConfiguredTemplate {
    fn source(self) -> Result<String> {
        match self {
            Self::One(source) => Ok(source),
            Self::Named(templates) => {
                let names = templates.iter().map(|t| format!("`{}`", t.name)).collect::<Vec<_>>().join(", ");
                let default = templates.into_iter().find(|template| template.name == "default");
                let missing = || Error::ChatTemplate(format!("none of the templates is named `default`: {names}"));
                default.map(|template| template.template).ok_or_else(missing)
            }
        }
    }
}

fn read_if_present(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

fn in_file(error: Error, path: &Path) -> Error {
    match error {
        Error::ChatTemplate(message) => Error::ChatTemplate(format!("{}: {message}", path.display())),
        error => error,
    }
}

fn template_error(error: minijinja::Error) -> Error {
    let message = match (error.detail(), error.kind()) {
        // What the template itself said through `raise_exception`, or what a method refused.
        (Some(detail), ErrorKind::InvalidOperation) => detail.to_owned(),
        (Some(detail), kind) => format!("{kind}: {detail}"),
        (None, kind) => kind.to_string(),
    };
    Error::ChatTemplate(match error.line() {
        Some(line) => format!("{message} (line {line} of the template)"),
        None => message,
    })
}
