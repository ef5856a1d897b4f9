//! Samples of what the model wrote.

use super::text::{escape, excerpt, number};
use super::thinning::Thinned;
use crate::error::{Error, Result};
use crate::json_lines::{self, Object};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

/// How much is shown: steps, problems of a step, completions of a problem, characters of a text.
const STEPS: usize = 8;
const PROBLEMS: usize = 3;
const COMPLETIONS: usize = 8;
const CHARACTERS: usize = 2000;

/// Some steps of `completions.jsonl`, with the first and the last among them.
#[derive(Debug)]
pub(super) struct Completions(Thinned<Step>);

#[derive(Debug)]
struct Step {
    step: f64,
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct Problem {
    prompt: String,
    answer: Option<String>,
    completions: Vec<Completion>,
    /// Those that are not kept.
    left_out: usize,
}

#[derive(Debug)]
struct Completion {
    text: String,
    reward: Option<f64>,
    strict: Option<bool>,
    flexible: Option<bool>,
    finish_reason: Option<String>,
}

impl Completions {
    /// None where there is no file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut steps = Thinned::new(STEPS);
        match json_lines::read_growing(path, &mut |_, line| take(&mut steps, &line)) {
            Err(Error::Io { error, .. }) if error.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
        Ok(Self(steps))
    }

    /// A section, or nothing.
    pub(super) fn html(&self) -> String {
        let steps: Vec<&Step> = self.0.iter().collect();
        if steps.is_empty() {
            return String::new();
        }
        let last = steps.len() - 1;
        let steps: String =
            steps.iter().enumerate().map(|(index, step)| step.html(index == 0 || index == last)).collect();
        format!("<section><h2>Completions</h2>\n<p>Some problems of some steps.</p>\n{steps}</section>\n")
    }
}

fn take(steps: &mut Thinned<Step>, line: &Object) -> Result<(), String> {
    let step = line.get("step").and_then(Value::as_f64).ok_or("has no `step` that is a number")?;
    let problem = Problem::parse(line)?;
    match steps.last_mut() {
        Some(last) if last.step == step => {
            if last.problems.len() < PROBLEMS {
                last.problems.push(problem);
            }
        }
        _ => steps.push(Step { step, problems: vec![problem] }),
    }
    Ok(())
}

impl Problem {
    fn parse(line: &Object) -> Result<Self, String> {
        let text = |name: &str| line.get(name).and_then(Value::as_str);
        let prompt = text("prompt").ok_or("has no `prompt` that is a text")?;
        let completions =
            line.get("completions").and_then(Value::as_array).ok_or("has no `completions` that are a list")?;
        let shown = completions.iter().take(COMPLETIONS).map(Completion::parse).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            prompt: prompt.to_owned(),
            answer: text("answer").map(str::to_owned),
            left_out: completions.len() - shown.len(),
            completions: shown,
        })
    }

    fn html(&self) -> String {
        let answer = self.answer.as_deref().map_or(String::new(), |answer| {
            format!("<p>The answer: <code>{}</code></p>\n", excerpt(answer, CHARACTERS))
        });
        let rows: String = self.completions.iter().map(Completion::html).collect();
        let left_out = match self.left_out {
            0 => String::new(),
            count => format!("<p>{count} more completions are not shown.</p>\n"),
        };
        format!(
            "<article>\n<pre class=\"prompt\">{}</pre>\n{answer}<div class=\"wide\"><table>\n<tr><th>completion</th><th>reward</th>\
             <th>strict</th><th>flexible</th><th>ended by</th></tr>\n{rows}</table></div>\n{left_out}</article>\n",
            excerpt(&self.prompt, CHARACTERS)
        )
    }
}

impl Completion {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = value.get("text").and_then(Value::as_str).ok_or("has a completion without a `text`")?;
        let truth = |name: &str| value.get(name).and_then(Value::as_bool);
        Ok(Self {
            text: text.to_owned(),
            reward: value.get("reward").and_then(Value::as_f64),
            strict: truth("strict"),
            flexible: truth("flexible"),
            finish_reason: value.get("finish_reason").and_then(Value::as_str).map(str::to_owned),
        })
    }

    fn html(&self) -> String {
        let mark = |truth: Option<bool>| match truth {
            Some(true) => "<td class=\"yes\">right</td>",
            Some(false) => "<td class=\"no\">wrong</td>",
            None => "<td></td>",
        };
        format!(
            "<tr><td><pre>{}</pre></td><td class=\"number\">{}</td>{}{}<td>{}</td></tr>\n",
            excerpt(&self.text, CHARACTERS),
            self.reward.map_or(String::new(), number),
            mark(self.strict),
            mark(self.flexible),
            escape(self.finish_reason.as_deref().unwrap_or_default()),
        )
    }
}

impl Step {
    fn html(&self, open: bool) -> String {
        let problems: String = self.problems.iter().map(Problem::html).collect();
        let open = if open { " open" } else { "" };
        format!("<details{open}><summary>Step {}</summary>\n{problems}</details>\n", self.step)
    }
}
