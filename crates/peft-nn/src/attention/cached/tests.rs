#![allow(clippy::unwrap_used)]

use candle_core::{DType, Tensor};

use super::memory::{Shape, TensorPage};
use super::*;
use crate::checks::acc_dtype;
use crate::cpu::simd::{with_each_arch, without_vectors};
use crate::testing::{assert_close, sample};

const HEADS: Heads = Heads { query: 6, key_value: 2 };

/// The sizes of heads, and whether there are rotary tables.
type Sizes = (usize, usize, bool);

/// Operands of the tokens `from..from + len` of a sequence: what they are depends on the sequence and their place in it.
fn tokens(sequence: usize, from: usize, len: usize, (head_dim, value_dim, _): Sizes, dtype: DType) -> [Tensor; 3] {
    let whole = |heads: usize, width: usize, seed: usize| sample((1, 300, heads * width), 10 * sequence + seed, dtype);
    let all = [whole(6, head_dim, 1), whole(2, head_dim, 2), whole(2, value_dim, 3)];
    all.map(|x| x.narrow(1, from, len).unwrap())
}

fn angles(from: usize, len: usize, (head_dim, ..): Sizes, dtype: DType) -> [Tensor; 2] {
    let all = sample((300, head_dim / 2), 4, acc_dtype(dtype)).narrow(0, from, len).unwrap();
    [all.cos().unwrap(), all.sin().unwrap()]
}

/// A pass over the next tokens of some sequences, and its output for each of them.
fn pass(
    cache: &mut KeyValueCache,
    named: &[(usize, SequenceId, usize)],
    sizes: Sizes,
    dtype: DType,
    attend: &mut dyn FnMut(&CachedAttention, &CachedPass, &mut KeyValueCache) -> Result<Tensor>,
) -> Vec<Tensor> {
    let part = |&(sequence, id, len): &(usize, SequenceId, usize)| {
        let from = cache.len_of(id).unwrap();
        (tokens(sequence, from, len, sizes, dtype), angles(from, len, sizes, dtype))
    };
    let parts: Vec<_> = named.iter().map(part).collect();
    let operand = |i: usize| Tensor::cat(&parts.iter().map(|(qkv, _)| &qkv[i]).collect::<Vec<_>>(), 1).unwrap();
    let table = |i: usize| Tensor::cat(&parts.iter().map(|(_, angles)| &angles[i]).collect::<Vec<_>>(), 0).unwrap();
    let [q, k, v] = [0, 1, 2].map(operand);
    let geometry = Geometry::merged("test", [&q, &k, &v], 6, 2).unwrap();
    let rotary = sizes.2.then(|| (table(0), table(1)));
    let op = CachedAttention { q, k, v, geometry, rotary, scale: 0.7 };
    let extensions: Vec<_> = named.iter().map(|&(_, sequence, tokens)| Extension { sequence, tokens }).collect();
    let started = cache.begin(&extensions).unwrap();
    let output = attend(&op, &started, cache).unwrap();
    let ranges: Vec<_> = started.parts().iter().map(|part| part.tokens.clone()).collect();
    cache.end(started);
    ranges.into_iter().map(|range| output.narrow(1, range.start, range.len()).unwrap()).collect()
}

fn by_kernel(op: &CachedAttention, pass: &CachedPass, cache: &mut KeyValueCache) -> Result<Tensor> {
    Ok(crate::attention::cpu::cached(op, cache.memory_for(op, 1)?, pass, 1)?.into_tensor())
}

/// The composed form, with pages of its own.
fn composed_with(pages: &mut Vec<TensorPage>, op: &CachedAttention, pass: &CachedPass) -> Result<Tensor> {
    let shape = Shape::of(op, 2);
    let mut memory = Memory::Tensors(std::mem::take(pages));
    memory.grow(20, &shape)?;
    let Memory::Tensors(made) = memory else { unreachable!() };
    *pages = made;
    Ok(composed::forward(op, pages, pass, 1)?.into_tensor())
}

#[track_caller]
fn check(sizes: Sizes, dtype: DType, tolerance: f64, passes: &[[usize; 3]]) {
    let (mut cache, mut other) = (KeyValueCache::new(2), KeyValueCache::new(2));
    let ids: Vec<_> = (0..3).map(|_| (cache.add(), other.add())).collect();
    let mut pages = vec![];
    for lengths in passes {
        let named = |of: fn(&(SequenceId, SequenceId)) -> SequenceId| -> Vec<_> {
            lengths.iter().enumerate().map(|(i, len)| (i, of(&ids[i]), *len)).collect()
        };
        let kernel = pass(&mut cache, &named(|ids| ids.0), sizes, dtype, &mut by_kernel);
        let composed =
            pass(&mut other, &named(|ids| ids.1), sizes, dtype, &mut |op, pass, _| composed_with(&mut pages, op, pass));
        for (kernel, composed) in kernel.iter().zip(&composed) {
            assert_close(kernel, composed, tolerance);
        }
    }
}

#[test]
fn the_kernel_computes_the_same() {
    for sizes in [(16, 16, true), (4, 6, true), (80, 64, true), (7, 33, false)] {
        for (dtype, tolerance) in
            [(DType::F64, 1e-13), (DType::F32, 2e-5), (DType::BF16, 1.0 / 64.0), (DType::F16, 1.0 / 512.0)]
        {
            // Long and short pieces, over the borders of pages, and single tokens.
            check(sizes, dtype, tolerance, &[[5, 130, 1], [1, 1, 1], [60, 2, 70], [1, 1, 1]]);
        }
    }
}

#[test]
fn all_vector_instructions() {
    // So small that this thread computes them alone: the choice of instructions is its own.
    let passes = || check((20, 6, true), DType::F32, 2e-5, &[[5, 12, 1], [1, 1, 1]]);
    with_each_arch(passes);
    without_vectors(passes);
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let elements = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    elements.into_iter().map(f64::to_bits).collect()
}

/// A sequence alone, in one pass or token by token, beside others, and as a copy of another one.
#[test]
fn a_sequence_gets_the_same_bits_however_it_is_computed() {
    let sizes = (16, 16, true);
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        let alone = |pieces: &[usize]| -> Vec<u64> {
            let mut cache = KeyValueCache::new(2);
            let id = cache.add();
            let outputs =
                pieces.iter().flat_map(|len| pass(&mut cache, &[(0, id, *len)], sizes, dtype, &mut by_kernel));
            bits(&Tensor::cat(&outputs.collect::<Vec<_>>(), 1).unwrap())
        };
        let whole = alone(&[150]);
        assert_eq!(alone(&[1; 150]), whole);
        assert_eq!(alone(&[70, 1, 1, 28, 50]), whole);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| alone(&[100, 50])), whole);
        }

        let mut cache = KeyValueCache::new(2);
        let (first, other) = (cache.add(), cache.add());
        let mut parts = vec![];
        let run = |named: &[(usize, SequenceId, usize)], cache: &mut KeyValueCache| {
            let mut outputs = pass(cache, named, sizes, dtype, &mut by_kernel);
            outputs.swap_remove(named.len() - 1)
        };
        parts.push(run(&[(1, other, 40), (0, first, 90)], &mut cache));
        // The copies go on with tokens of their own, in the page that they shared.
        let (copy, third) = (cache.fork(first).unwrap(), cache.fork(first).unwrap());
        parts.push(run(&[(1, other, 1), (5, third, 1), (7, first, 1), (0, copy, 1)], &mut cache));
        cache.remove(first);
        let fresh = cache.add();
        parts.push(run(&[(6, fresh, 100), (5, third, 3), (0, copy, 59)], &mut cache));
        assert_eq!(bits(&Tensor::cat(&parts, 1).unwrap()), whole);
        assert_eq!(cache.len_of(copy).unwrap(), 150);
        assert_eq!(cache.len_of(third).unwrap(), 94);
    }
}

#[test]
fn memory_is_used_again() {
    let sizes = (4, 4, false);
    let mut cache = KeyValueCache::new(2);
    let mut most = 0;
    for round in 0..5 {
        let id = cache.add();
        pass(&mut cache, &[(round, id, 70)], sizes, DType::F32, &mut by_kernel);
        let copies: Vec<_> = (0..3).map(|_| cache.fork(id).unwrap()).collect();
        let named: Vec<_> = copies.iter().map(|id| (round, *id, 1)).collect();
        pass(&mut cache, &named, sizes, DType::F32, &mut by_kernel);
        copies.into_iter().chain([id]).for_each(|id| cache.remove(id));
        most = if round == 0 { cache.references.len() } else { most };
        assert_eq!((cache.references.len(), cache.free.len()), (most, most));
    }
    // Of the first page there is one, of the second one for the original and each copy.
    assert_eq!(most, 5);
}

#[test]
fn what_does_not_fit_is_refused() {
    let sizes = (4, 4, false);
    let mut cache = KeyValueCache::new(2);
    let id = cache.add();
    let error = |result: Result<CachedPass>| result.unwrap_err().to_string();
    let one = |tokens| Extension { sequence: id, tokens };
    assert!(error(cache.begin(&[one(0)])).contains("no new tokens"));
    assert!(error(cache.begin(&[one(1), one(1)])).contains("twice"));
    let gone = cache.add();
    cache.remove(gone);
    assert!(error(cache.begin(&[Extension { sequence: gone, tokens: 1 }])).contains("not in the key-value cache"));
    assert!(cache.fork(gone).is_err());
    pass(&mut cache, &[(0, id, 3)], sizes, DType::F32, &mut by_kernel);
    let [q, k, v] = tokens(0, 0, 2, sizes, DType::BF16);
    let started = cache.begin(&[one(2)]).unwrap();
    let mut attend = |layer| cached_attention(&q, &k, &v, HEADS, None, None, &mut cache, &started, layer);
    assert!(attend(0).unwrap_err().to_string().contains("holds 2 heads of keys of 4 and values of 4 in f32"));
    assert!(attend(2).unwrap_err().to_string().contains("2 layers"));
    let [q, k, v] = tokens(0, 0, 3, sizes, DType::F32);
    let error = cached_attention(&q, &k, &v, HEADS, None, None, &mut cache, &started, 0).unwrap_err().to_string();
    assert!(error.contains("the pass has 2 tokens"), "{error}");
}
