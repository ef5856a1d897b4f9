//! What attention takes of memory, counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use candle_core::{DType, Tensor, Var};
use peft_nn::{AttentionOptions, Heads, multi_head_attention};

use crate::support::random;

/// Counts what each thread takes.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Bytes that this thread took and did not give back, and the most that was so far.
    static TAKEN: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that ends has no count any more.
    let _ = TAKEN.try_with(|taken| {
        let (now, most) = taken.get();
        taken.set((now + bytes, most.max(now + bytes)));
    });
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) };
    }
}

/// The most bytes that `f` has at one time, on the one thread that it gets.
fn peak(f: impl FnOnce() + Send) -> usize {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let before = TAKEN.get().0;
        TAKEN.set((before, before));
        f();
        (TAKEN.get().1 - before) as usize
    })
}

fn of_attention(length: usize, options: &AttentionOptions) -> usize {
    let operand =
        |width: usize, seed| Var::from_tensor(&random((1, length, width), seed).to_dtype(DType::F32).unwrap());
    let [q, k, v] = [(16, 1), (8, 2), (8, 3)].map(|(width, seed)| operand(width, seed).unwrap());
    peak(|| {
        let heads = Heads { query: 2, key_value: 1 };
        let output = multi_head_attention(&q, &k, &v, heads, None, options).unwrap();
        peft_nn::backward(&output.sum_all().unwrap()).unwrap();
    })
}

#[test]
fn memory_is_linear_in_the_length() {
    // That it counts at all.
    let scores = 2048 * 2048 * size_of::<f32>();
    let vector = random(2048, 1).to_dtype(DType::F32).unwrap();
    let outer = |x: &Tensor| x.unsqueeze(1).unwrap().broadcast_mul(&x.unsqueeze(0).unwrap()).unwrap();
    assert!(peak(|| drop(outer(&vector))) >= scores);

    for options in [AttentionOptions::causal(), AttentionOptions::full(), AttentionOptions::causal().with_window(100)] {
        let (short, long) = (of_attention(2048, &options), of_attention(4096, &options));
        assert!(long < scores, "{long} bytes");
        assert!(long <= 2 * short, "{short} bytes, and {long} for twice the length");
    }
}
