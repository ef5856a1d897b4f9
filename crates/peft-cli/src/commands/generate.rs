//! `generate`: continuations of a prompt.

mod shown;

use super::adapter;
use crate::args::GenerateArgs;
use crate::base::Base;
use crate::output::{Output, write_text};
use anyhow::{Context, Result, anyhow};
use candle_peft::Pretrained;
use candle_peft::core::checkpoint::DEFAULT_ADAPTER;
use candle_peft::hub::Part;
use candle_peft::models::CausalLanguageModel;
use candle_peft::train::chat::Message;
use candle_peft::train::generate::{FinishReason, GenerationConfig, Generator, Request};
use candle_peft::train::tokenizer::{DecodeStream, Tokenizer};
use serde::Serialize;
use shown::Shown;
use std::fmt;

/// What stands between samples.
const SEPARATOR: &str = "---";

#[derive(Debug, Serialize)]
struct Report {
    prompt: String,
    prompt_tokens: usize,
    /// The first of them.
    #[serde(flatten)]
    first: Sample,
    /// All of them, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    samples: Vec<Sample>,
}

#[derive(Debug, Clone, Serialize)]
struct Sample {
    text: String,
    tokens: Vec<u32>,
    finish_reason: FinishReason,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.samples.is_empty() {
            return f.write_str(&self.first.text);
        }
        let texts: Vec<&str> = self.samples.iter().map(|sample| sample.text.as_str()).collect();
        f.write_str(&texts.join(&format!("\n{SEPARATOR}\n")))
    }
}

pub(super) fn run(args: &GenerateArgs, pretrained: &Pretrained, output: Output) -> Result<()> {
    let adapter = adapter(args.adapter.as_deref(), pretrained)?;
    let base = Base::open(args.base.base.as_deref(), adapter.as_ref(), Part::Model, pretrained)?;
    let tokenizer = base.tokenizer()?;
    let tokenizer = tokenizer
        .with_context(|| format!("{}: no tokenizer.json, so text cannot be generated", base.dir().display()))?;
    let prompt = prompt_ids(args, &base, &tokenizer)?;
    let mut model = base.load(&args.base, 0)?;
    if let Some(adapter) = &adapter {
        pretrained.attach(&mut model, DEFAULT_ADAPTER, adapter)?;
    }
    model.eval()?;
    let stop_ids = match tokenizer.stop_ids() {
        [] => model.base().eos_token_ids(),
        ids => ids,
    };
    let config = GenerationConfig {
        max_new_tokens: args.max_new_tokens.get(),
        temperature: args.temperature,
        top_k: args.top_k.map(Into::into),
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
        stop_ids: stop_ids.to_vec(),
        ..GenerationConfig::default()
    };

    let mut texts: Vec<Text<'_>> = (0..args.samples.get()).map(|_| Text::new(&tokenizer, &args.stop)).collect();
    let mut failed = None;
    let mut show = |piece: &str| {
        if output.streams() && !piece.is_empty() {
            failed = failed.take().or(write_text(piece).err());
        }
    };
    let request = Request { prompt: &prompt, samples: texts.len(), stream: 0 };
    let mut generator = Generator::new(config)?.with_stop_strings(&tokenizer, args.stop.clone())?;
    let generations = generator.generate_with(model.base(), &[request], &mut |_, sample, id| {
        let piece = texts[sample].push(id)?;
        // The first sample is shown as it comes, the others when it is there.
        if sample == 0 {
            show(&piece);
        }
        Ok(())
    })?;
    let mut samples = vec![];
    for (index, (mut text, generation)) in texts.into_iter().zip(generations.into_iter().flatten()).enumerate() {
        let rest = text.finish()?;
        let text = text.shown.into_text();
        if index == 0 {
            show(&rest);
        } else {
            show(&format!("\n{SEPARATOR}\n{text}"));
        }
        let (tokens, finish_reason) = (generation.text_ids().to_vec(), generation.finish_reason);
        samples.push(Sample { text, tokens, finish_reason });
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if output.streams() {
        return write_text("\n");
    }
    let first = samples.first().cloned().context("no sample was asked for")?;
    let samples = if samples.len() > 1 { samples } else { vec![] };
    output.report(&Report { prompt: args.prompt.clone(), prompt_tokens: prompt.len(), first, samples })
}

/// The text of a sample as its ids come.
struct Text<'a> {
    /// Until the sample ends.
    stream: Option<DecodeStream<'a>>,
    shown: Shown<'a>,
}

impl<'a> Text<'a> {
    fn new(tokenizer: &'a Tokenizer, stops: &'a [String]) -> Self {
        Self { stream: Some(tokenizer.decode_stream()), shown: Shown::new(stops) }
    }

    fn push(&mut self, id: u32) -> candle_peft::train::Result<String> {
        let Some(stream) = &mut self.stream else { return Ok(String::new()) };
        Ok(self.shown.push(&stream.push(id)?))
    }

    fn finish(&mut self) -> Result<String> {
        let Some(stream) = self.stream.take() else { return Ok(String::new()) };
        let piece = self.shown.push(&stream.finish()?);
        Ok(piece + &self.shown.finish())
    }
}

fn prompt_ids(args: &GenerateArgs, base: &Base, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    if !args.chat {
        return Ok(tokenizer.encode_open(&args.prompt)?);
    }
    let template = base.chat_template(Some(tokenizer))?;
    let template = template.ok_or_else(|| anyhow!("{}: no chat template for --chat", base.dir().display()))?;
    Ok(tokenizer.encode_bare(&template.render(&[Message::new("user", &args.prompt)], true)?)?)
}
