//! Buffers that a thread keeps for its next product.

use std::cell::RefCell;

/// A cache line, so that panels are aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// What a thread keeps at most, in lines: larger buffers are given back.
const KEPT: usize = (64 << 20) / size_of::<Line>();

/// How many buffers a thread keeps: they may come from other threads, which do not take them back.
const BUFFERS: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Memory for `len` numbers of no particular value, aligned to 64 bytes.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Self {
        let lines = len.div_ceil(16);
        let mut buffer = FREE.with(|free| {
            let mut free = free.borrow_mut();
            // The smallest that is large enough; else the largest, to be enlarged.
            let fits = |buffer: &Vec<Line>| (buffer.len() < lines, buffer.len().abs_diff(lines));
            let best = (0..free.len()).min_by_key(|&i| fits(&free[i]));
            best.map(|i| free.swap_remove(i)).unwrap_or_default()
        });
        if buffer.len() < lines {
            buffer = vec![Line([0.0; 16]); lines];
        }
        Self { lines: buffer, len }
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `Line` is 16 numbers without padding, and there are at least `len` of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // A thread that ends has no list any more.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < BUFFERS && free.iter().map(Vec::len).sum::<usize>() + lines.len() <= KEPT {
                free.push(lines);
            }
        });
    }
}
