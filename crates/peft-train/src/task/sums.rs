//! Small sums.

use super::numbers;
use super::problem::{Problem, Prompt};

/// A sum of two numbers below [`Sum::LIMIT`].
///
/// The embedded model was trained on sums drawn by [`draw`](Self::draw), so which of them are held out is fixed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sum {
    /// The first operand.
    pub a: u32,
    /// The second operand.
    pub b: u32,
}

impl Sum {
    /// Operands are below this.
    pub const LIMIT: u32 = 50;

    /// What the model is asked: `12+34=`.
    pub fn prompt(self) -> String {
        format!("{}+{}=", self.a, self.b)
    }

    /// The right answer.
    pub fn answer(self) -> String {
        (self.a + self.b).to_string()
    }

    /// A tenth of all sums is held out of every training text.
    pub fn is_held_out(self) -> bool {
        (self.a * 7 + self.b * 13).is_multiple_of(10)
    }

    /// A sum, each as likely as any other, of those that are held out or of the others. `bits` gives random numbers.
    pub fn draw(bits: &mut impl FnMut() -> u32, held_out: bool) -> Self {
        loop {
            let sum = Self { a: bits() % Self::LIMIT, b: bits() % Self::LIMIT };
            if sum.is_held_out() == held_out {
                return sum;
            }
        }
    }

    pub(super) fn problem(self) -> Problem {
        Problem::new(Prompt::Text(self.prompt()), self.answer())
    }
}

/// All sums that are held out, shuffled.
pub(super) fn held_out() -> Vec<Sum> {
    let all = (0..Sum::LIMIT * Sum::LIMIT).map(|n| Sum { a: n / Sum::LIMIT, b: n % Sum::LIMIT });
    let mut sums: Vec<Sum> = all.filter(|sum| sum.is_held_out()).collect();
    let mut bits = numbers(0, u64::MAX);
    for last in (1..sums.len()).rev() {
        sums.swap(last, bits() as usize % (last + 1));
    }
    sums
}
