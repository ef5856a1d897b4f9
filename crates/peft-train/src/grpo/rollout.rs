//! Completions of a step's prompts, and what they are worth.

use super::advantages::{advantages, standard_deviation};
use super::{GrpoConfig, RolloutWeights};
use crate::data::Encoder;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, Generation, Generator, Request};
use crate::reward::{Rewards, Sample, Scored};
use crate::task::{Problem, Reading, Task};
use peft_core::PeftModel;
use peft_models::CausalLanguageModel;
use serde_json::{Value, json};

/// A completion and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Completion {
    /// The prompt it continues, by its place in the step.
    pub(super) prompt: usize,
    pub(super) generation: Generation,
    pub(super) text: String,
    pub(super) scored: Scored,
    pub(super) reading: Reading,
    pub(super) advantage: f64,
}

impl Completion {
    /// Whether it was cut off.
    pub(super) fn is_truncated(&self) -> bool {
        self.generation.finish_reason != FinishReason::Stop
    }
}

/// The completions of one step, group by group.
#[derive(Debug)]
pub(super) struct Rollouts {
    pub(super) problems: Vec<Problem>,
    /// The prompts as token ids.
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) completions: Vec<Completion>,
}

/// What rollouts are drawn with.
pub(super) struct Source<'a> {
    pub(super) task: &'a Task,
    pub(super) rewards: &'a Rewards,
    pub(super) encoder: Encoder<'a>,
}

impl Rollouts {
    /// Draws and rates the completions of a step, counted from 1. They follow from the step and the parameters alone.
    pub(super) fn draw<M: CausalLanguageModel>(
        source: &Source<'_>,
        model: &mut PeftModel<M>,
        generator: &mut Generator,
        config: &GrpoConfig,
        step: u64,
    ) -> Result<Self> {
        let first = (step - 1) * config.prompts_per_step as u64;
        let streams = first..first + config.prompts_per_step as u64;
        let problems: Vec<Problem> = streams.clone().map(|index| source.task.problem(index).into_owned()).collect();
        let prompts =
            problems.iter().map(|problem| source.encoder.prompt_ids(&problem.prompt)).collect::<Result<Vec<_>>>()?;
        let requests =
            streams.zip(&prompts).map(|(stream, prompt)| Request { prompt, samples: config.group_size, stream });
        let requests: Vec<Request<'_>> = requests.collect();
        let merged = config.rollout_weights == RolloutWeights::Merged;
        model.eval()?;
        if merged {
            model.merge()?;
        }
        let groups = generator.generate(model.base(), &requests);
        if merged {
            model.unmerge()?;
        }
        model.train()?;

        let mut completions = Vec::with_capacity(config.completions_per_step());
        for (prompt, group) in groups?.into_iter().enumerate() {
            for generation in group {
                let text = source.encoder.completion_text(&generation, source.task.stop_strings())?;
                let reading = source.task.read(&problems[prompt], &text);
                completions.push((prompt, generation, text, reading));
            }
        }
        let prompt_texts =
            problems.iter().map(|problem| source.encoder.prompt_text(&problem.prompt)).collect::<Result<Vec<_>>>()?;
        let samples: Vec<Sample<'_>> = completions
            .iter()
            .map(|(prompt, generation, text, _)| {
                let truncated = generation.finish_reason != FinishReason::Stop;
                Sample::new(&problems[*prompt], &prompt_texts[*prompt], text, generation.ids.len())
                    .with_truncated(truncated)
            })
            .collect();
        let scores = source.rewards.score(&samples)?;
        let totals: Vec<f64> = scores.iter().map(|scored| scored.total).collect();
        if let Some(total) = totals.iter().find(|total| !total.is_finite()) {
            return Err(Error::option("rewards", format!("a completion was given {total}")));
        }
        let advantages = advantages(&totals, config.group_size, config.scale_rewards);
        let rated = completions.into_iter().zip(scores).zip(advantages);
        let completions = rated.map(|(((prompt, generation, text, reading), scored), advantage)| Completion {
            prompt,
            generation,
            text,
            scored,
            reading,
            advantage,
        });
        Ok(Self { completions: completions.collect(), problems, prompts })
    }

    /// The mean over completions of a number.
    pub(super) fn mean(&self, of: impl Fn(&Completion) -> f64) -> f64 {
        self.completions.iter().map(of).sum::<f64>() / self.completions.len().max(1) as f64
    }

    /// The share of completions with a property.
    pub(super) fn share(&self, of: impl Fn(&Completion) -> bool) -> f64 {
        self.mean(|completion| f64::from(u8::from(of(completion))))
    }

    /// All generated tokens.
    pub(super) fn tokens(&self) -> usize {
        self.completions.iter().map(|completion| completion.generation.ids.len()).sum()
    }

    /// The mean entropy of the distributions that tokens were drawn from, in nats.
    pub(super) fn entropy(&self) -> f64 {
        let entropies = self.completions.iter().flat_map(|completion| &completion.generation.entropies);
        entropies.map(|entropy| f64::from(*entropy)).sum::<f64>() / self.tokens().max(1) as f64
    }

    /// The mean over groups of the standard deviation of the rewards, and the share of groups without any.
    pub(super) fn spread(&self, group_size: usize) -> (f64, f64) {
        let groups: Vec<f64> = self
            .completions
            .chunks(group_size)
            .map(|group| standard_deviation(&group.iter().map(|c| c.scored.total).collect::<Vec<_>>()))
            .collect();
        let flat = self.completions.chunks(group_size).filter(|group| group.iter().all(|c| c.advantage == 0.0)).count();
        let count = groups.len().max(1) as f64;
        (groups.iter().sum::<f64>() / count, flat as f64 / count)
    }

    /// The first groups, as they are written down.
    pub(super) fn log(&self, step: u64, groups: usize, encoder: Encoder<'_>) -> Result<Vec<Value>> {
        let line = |(prompt, problem): (usize, &Problem)| {
            let completions =
                self.completions.iter().filter(|completion| completion.prompt == prompt).map(|completion| {
                    json!({
                        "text": completion.text,
                        "reward": completion.scored.total,
                        "advantage": completion.advantage,
                        "strict": completion.reading.strict,
                        "flexible": completion.reading.flexible,
                        "finish_reason": completion.generation.finish_reason,
                        "failures": completion.scored.failures,
                    })
                });
            Ok(json!({
                "step": step,
                "problem": prompt,
                "prompt": encoder.prompt_text(&problem.prompt)?,
                "answer": problem.answer,
                "completions": completions.collect::<Vec<_>>(),
            }))
        };
        self.problems.iter().enumerate().take(groups).map(line).collect()
    }
}
