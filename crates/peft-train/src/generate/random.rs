//! Random numbers that follow from where they are used.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The random numbers of one sample.
#[derive(Debug, Clone)]
pub(super) struct Draws {
    rng: ChaCha8Rng,
    sample: u64,
}

impl Draws {
    pub(super) fn new(seed: u64, stream: u64, sample: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { rng, sample: sample as u64 }
    }

    /// A number in [0, 1) for the token with this index, a multiple of 2^-53.
    pub(super) fn uniform(&mut self, token: usize) -> f64 {
        // A number is two words; no text has 2^31 tokens.
        self.rng.set_word_pos(u128::from(self.sample) << 32 | (token as u128) << 1);
        (self.rng.next_u64() >> 11) as f64 * 2f64.powi(-53)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_first_sample_takes_the_numbers_of_the_generator_in_their_order() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut draws = Draws::new(7, 0, 0);
        for token in 0..40 {
            assert_eq!(draws.uniform(token), (rng.next_u64() >> 11) as f64 * 2f64.powi(-53));
        }
    }

    #[test]
    fn every_place_has_a_number_of_its_own() {
        let mut seen = HashSet::new();
        for seed in [0, 1] {
            for stream in [0, 1, u64::MAX] {
                for sample in [0, 1, 2, 1000] {
                    let mut draws = Draws::new(seed, stream, sample);
                    for token in [0, 1, 2, 50, 100_000] {
                        let draw = draws.uniform(token);
                        assert!((0.0..1.0).contains(&draw));
                        assert!(seen.insert(draw.to_bits()), "seed {seed}, stream {stream}, {sample}, {token}");
                    }
                }
            }
        }
    }
}
