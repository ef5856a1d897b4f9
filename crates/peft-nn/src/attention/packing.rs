use std::ops::Range;
use std::sync::Arc;

/// Sequences that stand one after another in one row and do not see each other, some of them with a beginning in common.
///
/// Each group is a beginning followed by branches: a token of the beginning sees those before it, a token of a branch sees the whole
/// beginning and those before it in its branch. So a prompt is computed once for all of its completions.
///
/// ```
/// use peft_nn::Packing;
///
/// // A prompt of three tokens with completions of two and of one, then a sequence of its own.
/// let packing = Packing::new([(3, vec![2, 1]), (4, vec![])]);
/// assert_eq!(packing.len(), 10);
/// assert_eq!(packing.positions().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 3, 0, 1, 2, 3]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing(Arc<[Token]>);

/// What a token sees: from the first one of its group up to itself, but for a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    group: Range<usize>,
    hole: Range<usize>,
}

impl Packing {
    /// Groups of a number of tokens in common and the numbers of tokens of the branches after them, in the order of the row.
    pub fn new(groups: impl IntoIterator<Item = (usize, Vec<usize>)>) -> Self {
        let mut tokens = Vec::new();
        for (common, branches) in groups {
            let start = tokens.len();
            let group = start..start + common + branches.iter().sum::<usize>();
            let mut begin = start + common;
            tokens.resize(begin, Token { group: group.clone(), hole: 0..0 });
            for branch in branches {
                let hole = start + common..begin;
                begin += branch;
                tokens.resize(begin, Token { group: group.clone(), hole });
            }
        }
        Self(tokens.into())
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The place of each token in its sequence.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().map(|(at, token)| at - token.group.start - token.hole.len())
    }

    /// The tokens that a token sees lie in this range.
    pub(super) fn keys_of(&self, token: usize) -> Range<usize> {
        self.0[token].group.start..token + 1
    }

    /// Those in that range that it does not see.
    pub(super) fn hole_of(&self, token: usize) -> Range<usize> {
        self.0[token].hole.clone()
    }

    /// The tokens in whose range one of these is.
    pub(super) fn queries_of(&self, keys: Range<usize>) -> Range<usize> {
        keys.start..self.0[keys.end - 1].group.end
    }
}
