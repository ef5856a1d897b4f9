//! Loops over slices: a formula at every position, its values written, added up, or added to what is there.
//!
//! A sum consists of interleaved partial sums, as many however long a register is, and these are added up in a fixed order: processors
//! whose registers differ give the same bits.
//!
//! Arrays are filled by loops and not by `array::map` or `from_fn`, which the compiler does not inline everywhere.
#![expect(clippy::needless_range_loop, reason = "one index runs over several arrays")]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::{ptr, slice};

use pulp::Simd;

use super::{Elementwise, Lanes, Real};
use crate::cpu::Element;

/// Elements that are processed together: 16-bit ones are widened into buffers of this length, which stay in the nearest cache, and the
/// rounding errors of a sum in f32 grow over no more than a chunk.
pub(crate) const CHUNK: usize = 1024;
/// Registers of partial sums. Without vector instructions there are no more of them, and fewer sums.
const REGISTERS: usize = 8;
/// Numbers in these registers, at most.
const LONGEST: usize = 32;

/// Writes `f` of the inputs to every element of `outs`. All slices have one length. Inputs may be of the type of the arithmetic already.
#[inline(always)]
pub(crate) fn write<S: Simd, U: Element<Acc = T::Acc>, T: Element, const IN: usize, const OUT: usize>(
    simd: S,
    f: impl Elementwise<IN, OUT>,
    inputs: [&[U]; IN],
    outs: [&mut [MaybeUninit<T>]; OUT],
) {
    let mut buffers = [U::BUFFER; IN];
    let mut out_buffers = [T::BUFFER; OUT];
    for range in chunks(outs[0].len()) {
        let inputs = widen(&inputs, &range, &mut buffers);
        let mut targets = [ptr::null_mut(); OUT];
        for o in 0..OUT {
            targets[o] = T::target(&mut outs[o][range.clone()], &mut out_buffers[o]).as_mut_ptr().cast();
        }
        // SAFETY: all of these have the length of the range.
        unsafe { write_chunk::<S, T, IN, OUT>(simd, f, inputs, targets, range.len()) };
        for o in 0..OUT {
            // SAFETY: `write_chunk` wrote every element of the target.
            unsafe { T::finish(&mut outs[o][range.clone()], &out_buffers[o]) };
        }
    }
}

/// Replaces every element by `f` of it.
#[inline(always)]
pub(crate) fn update<S: Simd, T: Element>(simd: S, f: impl Elementwise<1, 1>, values: &mut [T]) {
    let mut buffer = T::BUFFER;
    for range in chunks(values.len()) {
        let len = range.len();
        let values = &mut values[range];
        let wide = T::widened_mut(values, &mut buffer).as_mut_ptr();
        // SAFETY: both are the widened values, of which each is read before it is written.
        unsafe { write_chunk::<S, T, 1, 1>(simd, f, [wide.cast_const()], [wide], len) };
        // SAFETY: they were widened into this buffer above.
        unsafe { T::restore(values, &buffer) };
    }
}

/// Replaces every element by `f` of it and of the element of `other` at the same position. Both slices have one length.
#[inline(always)]
pub(crate) fn update_with<S: Simd, T: Element>(simd: S, f: impl Elementwise<2, 1>, values: &mut [T], other: &[T]) {
    let mut buffer = T::BUFFER;
    let mut other_buffer = [T::BUFFER];
    for range in chunks(values.len()) {
        let [other] = widen(&[other], &range, &mut other_buffer);
        let len = range.len();
        let values = &mut values[range];
        let wide = T::widened_mut(values, &mut buffer).as_mut_ptr();
        // SAFETY: all have the length of the range, and each value is read before it is written.
        unsafe { write_chunk::<S, T, 2, 1>(simd, f, [wide.cast_const(), other], [wide], len) };
        // SAFETY: they were widened into this buffer above.
        unsafe { T::restore(values, &buffer) };
    }
}

/// The sums of the values of `f` over all positions, each chunk's in the type of the arithmetic and those of the chunks in f64.
#[inline(always)]
pub(crate) fn sum<S: Simd, T: Element, const IN: usize, const OUT: usize>(
    simd: S,
    f: impl Elementwise<IN, OUT>,
    inputs: [&[T]; IN],
) -> [f64; OUT] {
    let mut buffers = [T::BUFFER; IN];
    let mut totals = [0.0; OUT];
    for range in chunks(inputs[0].len()) {
        let inputs = widen(&inputs, &range, &mut buffers);
        // SAFETY: all inputs have the length of the range.
        let sums = unsafe { fold::<S, T, Added, IN, OUT>(simd, f, inputs, range.len()) };
        for o in 0..OUT {
            totals[o] += sums[o];
        }
    }
    totals
}

/// The largest value of `f`; if some are NaN, the largest of some others.
#[inline(always)]
pub(crate) fn max<S: Simd, T: Element>(simd: S, f: impl Elementwise<1, 1>, values: &[T]) -> f64 {
    let mut buffers = [T::BUFFER];
    let mut largest = f64::NEG_INFINITY;
    for range in chunks(values.len()) {
        let inputs = widen(&[values], &range, &mut buffers);
        // SAFETY: the input has the length of the range.
        let [value] = unsafe { fold::<S, T, Largest, 1, 1>(simd, f, inputs, range.len()) };
        largest = largest.max(value);
    }
    largest
}

/// Adds the values of `f` at each position to what `sums` hold there. All slices have one length.
#[inline(always)]
pub(crate) fn accumulate<S: Simd, T: Element, const IN: usize, const OUT: usize>(
    simd: S,
    f: impl Elementwise<IN, OUT>,
    inputs: [&[T]; IN],
    sums: [&mut [T::Acc]; OUT],
) {
    let mut buffers = [T::BUFFER; IN];
    let lanes = T::Acc::lanes::<S>();
    for range in chunks(sums[0].len()) {
        let inputs = widen(&inputs, &range, &mut buffers);
        for at in (0..range.len()).step_by(lanes) {
            let count = lanes.min(range.len() - at);
            // SAFETY: so many numbers remain in each input, which has the length of the range.
            let values = f.apply::<S, T>(unsafe { load(simd, &inputs, at, count) });
            for o in 0..OUT {
                let sums = &mut sums[o][range.start + at..][..count];
                // SAFETY: so many numbers are in the slice.
                unsafe {
                    let [sum] = load(simd, &[sums.as_ptr()], 0, count);
                    store(sum + values[o], sums.as_mut_ptr(), count);
                }
            }
        }
    }
}

fn chunks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(CHUNK).map(move |start| start..len.min(start + CHUNK))
}

/// The inputs in a range, in the type of the arithmetic.
#[inline(always)]
fn widen<T: Element, const N: usize>(
    inputs: &[&[T]; N],
    range: &Range<usize>,
    buffers: &mut [T::Buffer; N],
) -> [*const T::Acc; N] {
    let mut wide = [ptr::null(); N];
    for i in 0..N {
        wide[i] = T::widened(&inputs[i][range.clone()], &mut buffers[i]).as_ptr();
    }
    wide
}

/// Writes `f` of the inputs to `outs`, register by register. An out may be an input.
///
/// # Safety
/// `len` numbers can be read from every input and written to every out.
#[inline(always)]
unsafe fn write_chunk<S: Simd, T: Element, const IN: usize, const OUT: usize>(
    simd: S,
    f: impl Elementwise<IN, OUT>,
    inputs: [*const T::Acc; IN],
    outs: [*mut T::Acc; OUT],
    len: usize,
) {
    let lanes = T::Acc::lanes::<S>();
    for at in (0..len).step_by(lanes) {
        let count = lanes.min(len - at);
        // SAFETY: `count` numbers remain at `at` of `len`.
        unsafe {
            let values = f.apply::<S, T>(load(simd, &inputs, at, count));
            for o in 0..OUT {
                store(values[o], outs[o].add(at), count);
            }
        }
    }
}

/// How values are combined into one.
trait Combination {
    /// What changes nothing.
    const NEUTRAL: f64;

    fn lanes<S: Simd, R: Real>(a: Lanes<S, R>, b: Lanes<S, R>) -> Lanes<S, R>;
    fn numbers(a: f64, b: f64) -> f64;
}

struct Added;

impl Combination for Added {
    const NEUTRAL: f64 = 0.0;

    #[inline(always)]
    fn lanes<S: Simd, R: Real>(a: Lanes<S, R>, b: Lanes<S, R>) -> Lanes<S, R> {
        a + b
    }

    #[inline(always)]
    fn numbers(a: f64, b: f64) -> f64 {
        a + b
    }
}

struct Largest;

impl Combination for Largest {
    const NEUTRAL: f64 = f64::NEG_INFINITY;

    #[inline(always)]
    fn lanes<S: Simd, R: Real>(a: Lanes<S, R>, b: Lanes<S, R>) -> Lanes<S, R> {
        a.max(b)
    }

    #[inline(always)]
    fn numbers(a: f64, b: f64) -> f64 {
        if b > a { b } else { a }
    }
}

/// Combines the values of `f` at all positions: first, in `n` places, those whose positions are equal modulo `n`, then these, halves first.
/// `n` is [`Real::PARTIAL`] wherever there are vector instructions.
///
/// # Safety
/// `len` numbers can be read from every input.
#[inline(always)]
unsafe fn fold<S: Simd, T: Element, C: Combination, const IN: usize, const OUT: usize>(
    simd: S,
    f: impl Elementwise<IN, OUT>,
    inputs: [*const T::Acc; IN],
    len: usize,
) -> [f64; OUT] {
    let lanes = T::Acc::lanes::<S>();
    let used = REGISTERS.min(T::Acc::PARTIAL / lanes);
    let group = used * lanes;
    let full = len / group * group;
    let neutral = T::Acc::nearest(C::NEUTRAL);
    let mut registers = [[Lanes::splat(simd, neutral); REGISTERS]; OUT];
    for start in (0..full).step_by(group) {
        for j in 0..used {
            // SAFETY: a whole group remains, of which this is one register.
            let values = f.apply::<S, T>(unsafe { load(simd, &inputs, start + j * lanes, lanes) });
            for o in 0..OUT {
                registers[o][j] = C::lanes(registers[o][j], values[o]);
            }
        }
    }
    if full < len {
        let mut rest = [[neutral; LONGEST]; OUT];
        let (mut rest_inputs, mut rest_outs) = (inputs, [ptr::null_mut(); OUT]);
        for i in 0..IN {
            // SAFETY: this is less than `len`.
            rest_inputs[i] = unsafe { inputs[i].add(full) };
        }
        for o in 0..OUT {
            rest_outs[o] = rest[o].as_mut_ptr();
        }
        // SAFETY: less than a group remains, and an array holds a group.
        unsafe { write_chunk::<S, T, IN, OUT>(simd, f, rest_inputs, rest_outs, len - full) };
        for o in 0..OUT {
            for j in 0..used {
                // SAFETY: this is one register of a group.
                let [value] = unsafe { load(simd, &[rest[o].as_ptr()], j * lanes, lanes) };
                registers[o][j] = C::lanes(registers[o][j], value);
            }
        }
    }
    let mut results = [C::NEUTRAL; OUT];
    for o in 0..OUT {
        results[o] = in_one::<S, T::Acc, C>(registers[o], used);
    }
    results
}

/// Combines the numbers in the first `used` registers, a power of two: half of them with the others, and the rest in f64.
#[inline(always)]
fn in_one<S: Simd, R: Real, C: Combination>(registers: [Lanes<S, R>; REGISTERS], used: usize) -> f64 {
    let lanes = R::lanes::<S>();
    let mut half = used / 2;
    let mut pairs = [R::zero(); LONGEST];
    for j in 0..half {
        let pair = C::lanes(registers[j], registers[j + half]);
        // SAFETY: the array holds all registers.
        unsafe { store(pair, pairs[j * lanes..].as_mut_ptr(), lanes) };
    }
    half *= lanes;
    let mut numbers = [C::NEUTRAL; LONGEST];
    for i in 0..half {
        numbers[i] = pairs[i].to_f64();
    }
    while half > 1 {
        half /= 2;
        for i in 0..half {
            numbers[i] = C::numbers(numbers[i], numbers[i + half]);
        }
    }
    numbers[0]
}

/// `count` numbers of each input, zeros behind them if they do not fill a register.
///
/// # Safety
/// `count` numbers can be read at `at` of every input.
#[inline(always)]
unsafe fn load<S: Simd, R: Real, const N: usize>(
    simd: S,
    inputs: &[*const R; N],
    at: usize,
    count: usize,
) -> [Lanes<S, R>; N] {
    let mut registers = [Lanes::splat(simd, R::zero()); N];
    for i in 0..N {
        // SAFETY: the caller's. A register consists of its numbers.
        registers[i].register = unsafe {
            let input = inputs[i].add(at);
            if count == R::lanes::<S>() {
                input.cast::<R::Register<S>>().read_unaligned()
            } else {
                R::load_rest(simd, slice::from_raw_parts(input, count))
            }
        };
    }
    registers
}

/// Writes the first `count` numbers of a register.
///
/// # Safety
/// `count` numbers, no more than a register has, can be written to `out`.
#[inline(always)]
unsafe fn store<S: Simd, R: Real>(register: Lanes<S, R>, out: *mut R, count: usize) {
    // SAFETY: the caller's. A register consists of its numbers.
    unsafe {
        if count == R::lanes::<S>() {
            out.cast::<R::Register<S>>().write_unaligned(register.register);
        } else {
            let whole = register.register;
            ptr::copy_nonoverlapping((&raw const whole).cast::<R>(), out, count);
        }
    }
}
