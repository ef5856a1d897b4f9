//! A weight as rows of f32, and its products with vectors.

use super::kernel::{ROWS, add_gram, add_multiples, dot, square};
use super::threads::Threads;
use crate::{Error, Result};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use rayon::prelude::*;

/// The fewest rows that are one piece of work.
const PIECE: usize = 128;
/// The most pieces: each has a sum of its own.
const PIECES: usize = 32;
/// Rows whose products are added up in f32 before they join a sum in f64.
const CHAIN: usize = 128;

/// Magnitudes whose squares products in f32 can hold.
const COMFORTABLE: std::ops::RangeInclusive<f32> = 1e-9..=1e9;

/// A weight's elements in f32, row by row, where a decomposition can read them.
///
/// Calls a function with them and with a power of two that they were divided by. They are the matrix's own, undivided, if it holds them
/// like that on the CPU and of usual size; otherwise a copy. If `turned`, they are those of the transposed weight.
///
/// # Errors
/// When an element is NaN or infinite.
pub(super) fn with_panel<T>(
    weight: &Tensor,
    turned: bool,
    threads: Threads,
    run: impl FnOnce(&Panel<'_>, f64) -> Result<T>,
) -> Result<T> {
    if turned && weight.t()?.is_contiguous() {
        // It is stored like that, as the weights of a Conv1D are.
        return with_panel(&weight.t()?, false, threads, run);
    }
    let (rows, cols) = weight.dims2()?;
    let shared = threads.share(rows * cols);
    let here = weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = here.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Error::Decomposition("the weight is not in the memory of the CPU".to_owned()));
    };
    let values = &values[from..to];
    let copy: Vec<f32>;
    let panel = if turned {
        copy = transposed(values, rows, cols, shared);
        Panel { values: &copy, rows: cols, cols: rows, shared }
    } else {
        Panel { values, rows, cols, shared }
    };
    let largest = panel.largest()?;
    if largest == 0.0 || COMFORTABLE.contains(&largest) {
        return run(&panel, 1.0);
    }
    let scale = f64::from(largest).log2().floor().exp2();
    let divided: Vec<f32> = panel.values.iter().map(|v| (f64::from(*v) / scale) as f32).collect();
    run(&Panel { values: &divided, ..panel }, scale)
}

/// The elements of the transposed matrix, row by row.
fn transposed(values: &[f32], rows: usize, cols: usize, shared: bool) -> Vec<f32> {
    // As many columns at a time as a cache line has numbers.
    const COLUMNS: usize = 16;
    let mut out = vec![0.0; values.len()];
    let fill = |(piece, out): (usize, &mut [f32])| {
        let (first, count) = (piece * COLUMNS, out.len() / rows);
        for top in (0..rows).step_by(COLUMNS) {
            let bottom = rows.min(top + COLUMNS);
            for j in 0..count {
                for (i, out) in (top..bottom).zip(&mut out[j * rows + top..j * rows + bottom]) {
                    *out = values[i * cols + first + j];
                }
            }
        }
    };
    if shared {
        out.par_chunks_mut(COLUMNS * rows).enumerate().for_each(fill);
    } else {
        out.chunks_mut(COLUMNS * rows).enumerate().for_each(fill);
    }
    out
}

/// A matrix of finite numbers.
///
/// The work is cut into pieces of rows by the shape alone, and their sums are added in order, so results do not depend on the number of
/// threads. Blocks of vectors are one vector after the other; blocks with a number for each row of the matrix are row by row.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    values: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    shared: bool,
}

impl Panel<'_> {
    /// The largest magnitude.
    fn largest(&self) -> Result<f32> {
        // The bits of positive floats are in the order of the floats, with NaN beyond infinity.
        let largest = |values: &[f32]| values.iter().fold(0, |largest: u32, v| largest.max(v.abs().to_bits()));
        let piece = self.piece() * self.cols;
        let bits = if self.shared {
            self.values.par_chunks(piece).map(largest).max()
        } else {
            self.values.chunks(piece).map(largest).max()
        };
        let largest = f32::from_bits(bits.unwrap_or(0));
        if largest.is_finite() {
            return Ok(largest);
        }
        let bad = self.values.iter().find(|v| !v.is_finite()).copied().unwrap_or(largest);
        Err(Error::Decomposition(format!("the weight holds {bad} in f32")))
    }

    /// Whether passes over the matrix are shared out among threads.
    pub(super) fn shared(&self) -> bool {
        self.shared
    }

    /// The sum of the squares of all elements.
    pub(super) fn square(&self) -> f64 {
        let square = self.sum_pieces(1, |_, rows, sum| self.widened(rows, |_, rows| sum[0] += square(rows)));
        square[0]
    }

    pub(super) fn at(&self, row: usize, col: usize) -> f32 {
        self.values[row * self.cols + col]
    }

    fn piece(&self) -> usize {
        PIECE.max(self.rows.div_ceil(PIECES).next_multiple_of(CHAIN))
    }

    /// `W^T W` times a block of vectors, with products and short sums in f32.
    ///
    /// The error is about 1e-7 of the squared largest singular value.
    pub(super) fn gram_f32(&self, vectors: &[f64]) -> Vec<f64> {
        let narrow: Vec<f32> = vectors.iter().map(|v| *v as f32).collect();
        self.sum_pieces(vectors.len(), |_, rows, sum| {
            let mut chain = vec![0f32; narrow.len()];
            for rows in rows.chunks(CHAIN * self.cols) {
                chain.fill(0.0);
                add_gram(rows, &narrow, self.cols, &mut chain);
                for (sum, value) in sum.iter_mut().zip(&chain) {
                    *sum += f64::from(*value);
                }
            }
        })
    }

    /// `W^T W` times a block of vectors in f64.
    pub(super) fn gram_f64(&self, vectors: &[f64]) -> Vec<f64> {
        self.sum_pieces(vectors.len(), |_, rows, sum| {
            self.widened(rows, |_, rows| add_gram(rows, vectors, self.cols, sum));
        })
    }

    /// `W` times a block of vectors in f64, row by row.
    pub(super) fn times(&self, vectors: &[f64]) -> Vec<f64> {
        let count = vectors.len() / self.cols;
        let mut out = vec![0.0; self.rows * count];
        let piece = |(rows, out): (&[f32], &mut [f64])| {
            self.widened(rows, |first, rows| {
                let out = &mut out[first * count..][..rows.len() / self.cols * count];
                dot(rows, vectors, self.cols, out);
            });
        };
        let (rows, outs) = (self.piece() * self.cols, self.piece() * count);
        if self.shared {
            self.values.par_chunks(rows).zip(out.par_chunks_mut(outs)).for_each(piece);
        } else {
            self.values.chunks(rows).zip(out.chunks_mut(outs)).for_each(piece);
        }
        out
    }

    /// `W^T` times a block with a number for each row, in f64.
    pub(super) fn transposed_times(&self, block: &[f64]) -> Vec<f64> {
        let count = block.len() / self.rows;
        self.sum_pieces(count * self.cols, |piece, rows, sum| {
            let block = &block[piece * self.piece() * count..];
            self.widened(rows, |first, rows| {
                let factors = &block[first * count..][..rows.len() / self.cols * count];
                add_multiples(rows, factors, self.cols, sum);
            });
        })
    }

    /// Hands out a few rows at a time in f64, with the number of the first one.
    fn widened(&self, rows: &[f32], mut visit: impl FnMut(usize, &[f64])) {
        let mut wide = vec![0.0; ROWS * self.cols];
        for (group, rows) in rows.chunks(ROWS * self.cols).enumerate() {
            let wide = &mut wide[..rows.len()];
            for (wide, value) in wide.iter_mut().zip(rows) {
                *wide = f64::from(*value);
            }
            visit(group * ROWS, wide);
        }
    }

    /// The sum of what each piece of rows adds to zeros.
    fn sum_pieces(&self, len: usize, add: impl Fn(usize, &[f32], &mut [f64]) + Sync) -> Vec<f64> {
        let rows = self.piece() * self.cols;
        let mut sums = vec![0.0; self.values.len().div_ceil(rows) * len];
        let each = |(piece, (rows, sum)): (usize, (&[f32], &mut [f64]))| add(piece, rows, sum);
        if self.shared {
            self.values.par_chunks(rows).zip(sums.par_chunks_mut(len)).enumerate().for_each(each);
        } else {
            self.values.chunks(rows).zip(sums.chunks_mut(len)).enumerate().for_each(each);
        }
        let (total, others) = sums.split_at_mut(len);
        for sum in others.chunks(len) {
            for (total, value) in total.iter_mut().zip(sum) {
                *total += value;
            }
        }
        sums.truncate(len);
        sums
    }
}
