//! The page that the Hub shows for an adapter.

use crate::RepoRef;
use crate::source::is_commit;
use std::fmt::Write;

/// A README.md for a pushed adapter, with the metadata by which the Hub files it under its base model.
///
/// ```
/// let mut card = peft_hub::ModelCard::new("TINYLORA");
/// card.parameters = Some(13);
/// card.base_model = Some("HuggingFaceTB/SmolLM2-135M-Instruct".into());
/// let text = card.render("user/adapter");
/// assert!(text.starts_with("---\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\nlibrary_name: peft\n"));
/// assert!(text.contains("PeftModel.from_pretrained(base, \"user/adapter\")"));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelCard {
    /// The method's `peft_type`.
    pub peft_type: String,
    /// How many numbers were trained, where that is known.
    pub parameters: Option<usize>,
    /// Name of the base model on the Hub.
    pub base_model: Option<String>,
    /// The commit of the base model that it was made for.
    pub base_revision: Option<String>,
    /// Rows of a table: what, and how much of it.
    pub facts: Vec<(String, String)>,
}

impl ModelCard {
    /// A card that says nothing but the method.
    pub fn new(peft_type: impl Into<String>) -> Self {
        Self { peft_type: peft_type.into(), parameters: None, base_model: None, base_revision: None, facts: vec![] }
    }

    /// The text, for an adapter that is called `repo` on the Hub.
    pub fn render(&self, repo: &str) -> String {
        // The Hub refuses cards whose base model is no repository, such as a folder of somebody's machine.
        let base = self.base_model.as_deref().filter(|base| base.contains('/') && RepoRef::new(base).is_ok());
        let tag: String =
            self.peft_type.to_lowercase().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let tag = tag.replace('_', "-");
        let mut card = String::from("---\n");
        if let Some(base) = base {
            line(&mut card, format_args!("base_model: {base}"));
        }
        line(&mut card, format_args!("library_name: peft\npipeline_tag: text-generation\ntags:"));
        if let Some(base) = base {
            line(&mut card, format_args!("- base_model:adapter:{base}"));
        }
        line(&mut card, format_args!("- {tag}\n- candle-peft\n---\n"));
        let name = repo.rsplit('/').next().unwrap_or(repo);
        line(&mut card, format_args!("# {name}\n"));
        let of = match (base, &self.base_model) {
            (Some(base), _) => format!("of [{base}](https://huggingface.co/{base})"),
            (None, Some(other)) => format!("of `{}`, which is not on the Hub under this name", plain(other)),
            (None, None) => "whose base model is not recorded".to_owned(),
        };
        let trained = match self.parameters {
            Some(1) => ", with one trained number".to_owned(),
            Some(count) => format!(", with {count} trained numbers"),
            None => String::new(),
        };
        line(&mut card, format_args!("A `{}` adapter {of}{trained}.\n", plain(&self.peft_type)));
        if let Some(revision) = &self.base_revision {
            line(&mut card, format_args!("It was made for commit `{}` of the base model.\n", plain(revision)));
        }
        if !self.facts.is_empty() {
            line(&mut card, format_args!("| | |\n|---|---|"));
            for (what, value) in &self.facts {
                line(&mut card, format_args!("| {} | {} |", plain(what), plain(value)));
            }
            card.push('\n');
        }
        let base = base.unwrap_or("BASE_MODEL");
        let revision = self.base_revision.as_deref().filter(|revision| is_commit(revision));
        let revision = revision.map(|revision| format!(", revision=\"{revision}\"")).unwrap_or_default();
        line(
            &mut card,
            format_args!(
                "## Load it\n\nWith [PEFT](https://github.com/huggingface/peft):\n\n```python\n\
                 from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
                 base = AutoModelForCausalLM.from_pretrained(\"{base}\"{revision})\n\
                 model = PeftModel.from_pretrained(base, \"{repo}\")\n```\n"
            ),
        );
        line(
            &mut card,
            format_args!(
                "With candle-peft, in Rust:\n\n```rust\nuse candle_peft::{{FromPretrained, PeftModel}};\n\n\
                 let model = PeftModel::from_pretrained(\"{repo}\")?;\n```\n\nor on the command line:\n\n```sh\n\
                 candle-peft generate --adapter {repo} --prompt \"…\"\n```"
            ),
        );
        card
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a string does not fail.
    let _ = writeln!(text, "{line}");
}

/// Text that stays within a line and a cell.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || c == '|' { ' ' } else { c }).collect()
}
