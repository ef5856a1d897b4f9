//! stub
#![allow(missing_docs)]
use crate::chat::Message;
use crate::reward::*;
use peft_core::torch_rng::TorchRng;
use std::borrow::Cow;
#[derive(Debug, Clone)]
pub struct Problem {
    pub prompt: Prompt,
    pub answer: String,
    pub fields: serde_json::Map<String, serde_json::Value>,
}
#[derive(Debug, Clone)]
pub enum Prompt {
    Text(String),
    Chat(Vec<Message>),
}
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    pub strict: bool,
    pub flexible: bool,
}
#[derive(Debug)]
pub struct Task {
    eval: Vec<Problem>,
    stop: Vec<String>,
}
fn draw(rng: &mut TorchRng, n: usize, held_out: bool) -> Vec<Problem> {
    let mut sums = Vec::new();
    while sums.len() < n {
        let (a, b) = (rng.next_u32() % 50, rng.next_u32() % 50);
        if (a * 7 + b * 13).is_multiple_of(10) == held_out {
            sums.push(Problem {
                prompt: Prompt::Text(format!("{a}+{b}=")),
                answer: (a + b).to_string(),
                fields: Default::default(),
            });
        }
    }
    sums
}
impl Task {
    pub fn sums() -> Self {
        Self { eval: draw(&mut TorchRng::new(1), 200, true), stop: vec!["\n".into()] }
    }
    pub fn name(&self) -> &str {
        "sums"
    }
    pub fn problem(&self, index: u64) -> Cow<'_, Problem> {
        Cow::Owned(draw(&mut TorchRng::new(1000 + index), 1, false).remove(0))
    }
    pub fn eval_problems(&self) -> &[Problem] {
        &self.eval
    }
    pub fn stop_strings(&self) -> &[String] {
        &self.stop
    }
    pub fn max_new_tokens(&self) -> usize {
        4
    }
    pub fn rewards(&self) -> Rewards {
        Rewards
    }
    pub fn fingerprint(&self) -> u64 {
        0
    }
    pub fn read(&self, p: &Problem, c: &str) -> Reading {
        Reading { strict: c == p.answer, flexible: c == p.answer }
    }
}
