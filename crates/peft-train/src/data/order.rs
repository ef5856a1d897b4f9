//! Which rows form which batch.

use crate::error::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The endless sequence of batches over a number of rows.
///
/// An epoch visits every row once; where the batch size does not divide the rows, its last batch is short. With a seed
/// each epoch has its own permutation, drawn from ChaCha8 with the epoch as its stream. A batch depends on its index
/// alone, so a resumed run needs nothing but its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOrder {
    rows: usize,
    batch_size: usize,
    seed: Option<u64>,
}

impl BatchOrder {
    /// The order for this many rows: shuffled by `seed`, or file order without one.
    ///
    /// # Errors
    /// When there are no rows or the batch size is 0.
    pub fn new(rows: usize, batch_size: usize, seed: Option<u64>) -> Result<Self> {
        if rows == 0 {
            return Err(Error::option("data", "there are no rows to put into batches"));
        }
        if batch_size == 0 {
            return Err(Error::option("batch_size", "it must be at least 1"));
        }
        Ok(Self { rows, batch_size, seed })
    }

    /// The number of batches that visit every row once.
    pub fn batches_per_epoch(&self) -> usize {
        self.rows.div_ceil(self.batch_size)
    }

    /// The batches from number `first` on, counted from 0 over all epochs.
    pub fn batches_from(&self, first: u64) -> Batches {
        Batches { order: *self, next: first, epoch: None }
    }

    /// The rows in the order in which an epoch visits them.
    fn permutation(&self, epoch: u64) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.rows).collect();
        if let Some(seed) = self.seed {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(epoch);
            for last in (1..rows.len()).rev() {
                rows.swap(last, uniform(&mut rng, last as u64 + 1) as usize);
            }
        }
        rows
    }
}

/// A number below `bound`, each equally likely.
fn uniform(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    // The last, incomplete run of `bound` numbers would favour the small ones.
    let limit = u64::MAX - u64::MAX % bound;
    loop {
        let number = rng.next_u64();
        if number < limit {
            return number % bound;
        }
    }
}

/// The batches of a [`BatchOrder`] as row indices; it never ends.
#[derive(Debug, Clone)]
pub struct Batches {
    order: BatchOrder,
    next: u64,
    /// The current epoch and its permutation.
    epoch: Option<(u64, Vec<usize>)>,
}

impl Iterator for Batches {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        let per_epoch = self.order.batches_per_epoch() as u64;
        let (epoch, batch) = (self.next / per_epoch, (self.next % per_epoch) as usize);
        self.next += 1;
        let order = self.order;
        let (_, rows) = match self.epoch.take() {
            Some(current) if current.0 == epoch => self.epoch.insert(current),
            _ => self.epoch.insert((epoch, order.permutation(epoch))),
        };
        let start = batch * order.batch_size;
        let end = (start + order.batch_size).min(rows.len());
        Some(rows[start..end].to_vec())
    }
}
