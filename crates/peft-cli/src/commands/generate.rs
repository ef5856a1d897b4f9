//! `generate`: a continuation of a prompt.

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
use candle_peft::train::generate::{FinishReason, GenerationConfig, generate};
use candle_peft::train::tokenizer::Tokenizer;
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
struct Report {
    prompt: String,
    prompt_tokens: usize,
    text: String,
    tokens: Vec<u32>,
    finish_reason: FinishReason,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
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
    let stop_ids = match tokenizer.stop_ids() {
        [] => model.base().eos_token_ids(),
        ids => ids,
    };
    let config = GenerationConfig {
        max_new_tokens: args.max_new_tokens.get(),
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop_ids: stop_ids.to_vec(),
        ..GenerationConfig::default()
    };

    let mut stream = tokenizer.decode_stream();
    let mut text = String::new();
    let mut failed = None;
    let mut show = |piece: String| {
        if output.streams() {
            failed = failed.take().or(write_text(&piece).err());
        }
        text.push_str(&piece);
    };
    let generation = generate(&mut model, &prompt, &config, &mut |id| {
        show(stream.push(id)?);
        Ok(())
    })?;
    show(stream.finish()?);
    if let Some(error) = failed {
        return Err(error);
    }
    if output.streams() {
        return write_text("\n");
    }
    output.report(&Report {
        prompt: args.prompt.clone(),
        prompt_tokens: prompt.len(),
        text,
        tokens: generation.text_ids().to_vec(),
        finish_reason: generation.finish_reason,
    })
}

fn prompt_ids(args: &GenerateArgs, base: &Base, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    if !args.chat {
        return Ok(tokenizer.encode_open(&args.prompt)?);
    }
    let template = base.chat_template(Some(tokenizer))?;
    let template = template.ok_or_else(|| anyhow!("{}: no chat template for --chat", base.dir().display()))?;
    Ok(tokenizer.encode_bare(&template.render(&[Message::new("user", &args.prompt)], true)?)?)
}
