//! Small sums: what the embedded model was trained on, and what the examples adapt it with.

use candle_core::{Device, Tensor};
use candle_peft::core::torch_rng::TorchRng;
use candle_peft::train::tokenizer::Tokenizer;

/// Operands are below this.
const LIMIT: u32 = 50;

/// A sum of two small numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) a: u32,
    pub(crate) b: u32,
}

impl Sum {
    /// What the model is asked.
    pub(crate) fn prompt(self) -> String {
        format!("{}+{}=", self.a, self.b)
    }

    /// The right answer.
    pub(crate) fn answer(self) -> String {
        (self.a + self.b).to_string()
    }

    /// A tenth of all sums is held out of every training text.
    pub(crate) fn is_held_out(self) -> bool {
        (self.a * 7 + self.b * 13).is_multiple_of(10)
    }
}

/// `n` sums, drawn with replacement from those that are held out or from the others.
pub(crate) fn draw(rng: &mut TorchRng, n: usize, held_out: bool) -> Vec<Sum> {
    let mut sums = Vec::with_capacity(n);
    while sums.len() < n {
        let sum = Sum { a: rng.next_u32() % LIMIT, b: rng.next_u32() % LIMIT };
        if sum.is_held_out() == held_out {
            sums.push(sum);
        }
    }
    sums
}

/// Right sums of numbers of two digits as token ids. All rows have one length and end with the answer's two digits.
#[allow(dead_code, reason = "not every example needs it")]
pub(crate) fn rows(tokenizer: &Tokenizer, held_out: bool) -> anyhow::Result<Tensor> {
    let sums = draw(&mut TorchRng::new(1), 2000, held_out).into_iter().filter(|s| s.a > 9 && s.b > 9);
    let rows = sums.map(|s| tokenizer.encode(&(s.prompt() + &s.answer()))).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::new(rows, &Device::Cpu)?)
}
