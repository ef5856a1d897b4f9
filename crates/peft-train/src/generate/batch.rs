//! The samples in flight: which tokens they go on with, and what becomes of the tokens they get.

use super::engine::OnToken;
use super::random::Draws;
use super::stop::{StopStrings, Watch};
use super::{FinishReason, Generation, GenerationConfig, Request};
use crate::error::Result;
use candle_core::Tensor;
use peft_models::{Extension, KvCache, SequenceId};
use peft_nn::{Draw, Sampled, Sampling, sample};
use std::collections::VecDeque;

/// The work of one call.
pub(super) struct Batch<'a> {
    config: &'a GenerationConfig,
    sampling: &'a Sampling,
    stop_strings: Option<&'a StopStrings>,
    max_positions: usize,
    requests: &'a [Request<'a>],
    pub(super) cache: &'a mut KvCache,
    /// The first request whose prompt was not begun with.
    next_request: usize,
    /// Prompts that are computed, and not all of whose samples have begun.
    prompts: VecDeque<Prompt>,
    rows: Vec<Row<'a>>,
    results: Vec<Vec<Option<Generation>>>,
}

/// A prompt that its samples begin with.
struct Prompt {
    request: usize,
    sequence: SequenceId,
    /// The next of its samples.
    sample: usize,
    /// Of the first token of all its samples, `(1, vocabulary)`.
    logits: Option<Tensor>,
}

/// A sample in flight.
struct Row<'a> {
    request: usize,
    sample: usize,
    sequence: SequenceId,
    draws: Draws,
    /// Prompt and tokens, where there is a penalty for them.
    seen: Vec<u32>,
    watch: Option<Watch<'a>>,
    generation: Generation,
}

/// The tokens of a pass.
pub(super) struct NewTokens {
    pub(super) ids: Vec<u32>,
    /// Those of rows, then those of prompts.
    pub(super) extensions: Vec<Extension>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        config: &'a GenerationConfig,
        sampling: &'a Sampling,
        stop_strings: Option<&'a StopStrings>,
        max_positions: usize,
        requests: &'a [Request<'a>],
        cache: &'a mut KvCache,
    ) -> Self {
        Self {
            config,
            sampling,
            stop_strings,
            max_positions,
            requests,
            cache,
            next_request: 0,
            prompts: VecDeque::new(),
            rows: vec![],
            results: requests.iter().map(|request| vec![None; request.samples]).collect(),
        }
    }

    /// Begins samples of the prompts that are computed, as far as there is room.
    pub(super) fn begin_samples(&mut self, on_token: &mut OnToken<'_>) -> Result<()> {
        while self.rows.len() < self.config.max_rows
            && let Some(prompt) = self.prompts.front_mut()
        {
            let Some(logits) = prompt.logits.clone() else { break };
            let request = self.requests[prompt.request];
            let room = self.config.max_rows - self.rows.len();
            let samples = prompt.sample..request.samples.min(prompt.sample + room);
            prompt.sample = samples.end;
            let (index, prompt_sequence) = (prompt.request, prompt.sequence);
            let mut rows = vec![];
            for sample in samples.clone() {
                let sequence = self.cache.fork(prompt_sequence)?;
                rows.push(self.row(index, sample, sequence));
            }
            if samples.end == request.samples {
                self.cache.remove(prompt_sequence);
                self.prompts.pop_front();
            }
            let sampled = sample(&logits, self.sampling, &draws(&mut rows, |_| 0))?;
            self.add(rows, sampled, on_token)?;
        }
        Ok(())
    }

    fn row(&self, request: usize, sample: usize, sequence: SequenceId) -> Row<'a> {
        let Request { prompt, stream, .. } = self.requests[request];
        let penalised = self.config.repetition_penalty != 1.0;
        Row {
            request,
            sample,
            sequence,
            draws: Draws::new(self.config.seed, stream, sample),
            seen: if penalised { prompt.to_vec() } else { vec![] },
            watch: self.stop_strings.map(StopStrings::watch),
            generation: Generation::with_capacity(self.config.max_new_tokens.min(self.max_positions)),
        }
    }

    /// What the next pass computes: the last token of each sample, and as many prompts as there is room for samples, of no more than
    /// `most` tokens unless it is one. `None` when all is done.
    pub(super) fn new_tokens(&mut self, most: usize) -> Option<NewTokens> {
        let last = |row: &Row<'_>| row.generation.ids.last().copied();
        let mut ids: Vec<u32> = self.rows.iter().filter_map(last).collect();
        let mut extensions: Vec<Extension> =
            self.rows.iter().map(|row| Extension { sequence: row.sequence, tokens: 1 }).collect();
        let waiting: usize =
            self.prompts.iter().map(|prompt| self.requests[prompt.request].samples - prompt.sample).sum();
        let mut room = self.config.max_rows.saturating_sub(self.rows.len() + waiting);
        let mut tokens = 0;
        while let Some(request) = self.requests.get(self.next_request) {
            let wanted = request.samples > 0 && self.config.max_new_tokens > 0;
            if wanted {
                if room == 0 || tokens > 0 && tokens + request.prompt.len() > most {
                    break;
                }
                room = room.saturating_sub(request.samples);
                tokens += request.prompt.len();
                let sequence = self.cache.add();
                ids.extend(request.prompt);
                extensions.push(Extension { sequence, tokens: request.prompt.len() });
                self.prompts.push_back(Prompt { request: self.next_request, sequence, sample: 0, logits: None });
            }
            self.next_request += 1;
        }
        (!extensions.is_empty()).then_some(NewTokens { ids, extensions })
    }

    /// Takes the logits of a pass, `(extensions, vocabulary)`.
    pub(super) fn take(&mut self, logits: &Tensor, on_token: &mut OnToken<'_>) -> Result<()> {
        let mut rows = std::mem::take(&mut self.rows);
        let new = self.prompts.iter_mut().filter(|prompt| prompt.logits.is_none());
        for (at, prompt) in (rows.len()..).zip(new) {
            prompt.logits = Some(logits.narrow(0, at, 1)?);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let sampled = sample(logits, self.sampling, &draws(&mut rows, |row| row))?;
        self.add(rows, sampled, on_token)
    }

    /// Gives rows their tokens; those that are not at their end go on.
    fn add(&mut self, rows: Vec<Row<'a>>, sampled: Vec<Sampled>, on_token: &mut OnToken<'_>) -> Result<()> {
        for (mut row, sampled) in rows.into_iter().zip(sampled) {
            row.generation.push(sampled);
            match self.end_of(&mut row, sampled.id, on_token)? {
                None => self.rows.push(row),
                Some(reason) => {
                    self.cache.remove(row.sequence);
                    row.generation.finish_reason = reason;
                    self.results[row.request][row.sample] = Some(row.generation);
                }
            }
        }
        Ok(())
    }

    /// Why a row ends with this token, if it does.
    fn end_of(&self, row: &mut Row<'a>, id: u32, on_token: &mut OnToken<'_>) -> Result<Option<FinishReason>> {
        if self.config.stop_ids.contains(&id) {
            row.generation.ends_with_stop_id = true;
            return Ok(Some(FinishReason::Stop));
        }
        on_token(row.request, row.sample, id)?;
        if let Some(watch) = &mut row.watch
            && watch.ends_with(id)?
        {
            return Ok(Some(FinishReason::Stop));
        }
        let (prompt, new) = (self.requests[row.request].prompt.len(), row.generation.ids.len());
        if self.config.repetition_penalty != 1.0 {
            row.seen.push(id);
        }
        Ok(match () {
            () if new >= self.config.max_new_tokens => Some(FinishReason::Length),
            // The token would stand behind the last position.
            () if prompt + new > self.max_positions => Some(FinishReason::Context),
            () => None,
        })
    }

    pub(super) fn into_results(self) -> Vec<Vec<Generation>> {
        // Where nothing was to be generated there is no result yet.
        let filled = |result: Option<Generation>| result.unwrap_or_else(|| Generation::with_capacity(0));
        self.results.into_iter().map(|samples| samples.into_iter().map(filled).collect()).collect()
    }
}

/// The next draws of rows, from the row of the logits that `of` says.
fn draws<'b>(rows: &'b mut [Row<'_>], of: impl Fn(usize) -> usize) -> Vec<Draw<'b>> {
    let draw = |(index, row): (usize, &'b mut Row<'_>)| {
        let uniform = row.draws.uniform(row.generation.ids.len());
        Draw { row: of(index), uniform, seen: &row.seen }
    };
    rows.iter_mut().enumerate().map(draw).collect()
}
