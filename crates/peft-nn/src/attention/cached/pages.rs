//! Pages as the kernel reads them: keys and values of one head laid out for the products that they are factors of.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::KeyValueCache;
use super::memory::{Memory, Shape};
use crate::attention::cpu::{Arithmetic, Tiles};
use crate::cpu::Element;

/// The elements of a page: for each layer and head first the keys, `(head_dim, PAGE)` in panels, then the values, `(PAGE, value_dim)` in
/// panels.
#[derive(Debug, Clone, Copy)]
struct Layout {
    kv_heads: usize,
    keys: usize,
    values: usize,
    layers: usize,
}

impl Layout {
    /// Elements of one head in one layer.
    fn head(&self) -> usize {
        self.keys + self.values
    }

    fn page(&self) -> usize {
        self.layers * self.kv_heads * self.head()
    }
}

/// Pages of one type of elements.
pub(in crate::attention) struct Pages<T> {
    layout: Layout,
    pages: Vec<Vec<T>>,
}

/// The memory of a type of elements.
pub(in crate::attention) trait InPages: Element {
    fn pages(memory: &mut Memory) -> Option<&mut Pages<Self>>;
}

macro_rules! in_pages {
    ($type:ty, $variant:ident) => {
        impl InPages for $type {
            fn pages(memory: &mut Memory) -> Option<&mut Pages<Self>> {
                match memory {
                    Memory::$variant(pages) => Some(pages),
                    _ => None,
                }
            }
        }
    };
}

in_pages!(f32, F32);
in_pages!(f64, F64);
in_pages!(bf16, Bf16);
in_pages!(f16, F16);

impl<T: InPages> Pages<T>
where
    T::Acc: Arithmetic,
{
    pub(super) fn new(shape: &Shape) -> Self {
        let tiles = Tiles::of::<T::Acc>();
        let (keys, values) =
            (KeyValueCache::PAGE * shape.head_dim, KeyValueCache::PAGE * tiles.padded(shape.value_dim));
        Self { layout: Layout { kv_heads: shape.kv_heads, keys, values, layers: shape.layers }, pages: vec![] }
    }

    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn push(&mut self) {
        self.pages.push(vec![T::zero(); self.layout.page()]);
    }

    pub(super) fn copy(&mut self, from: usize, to: usize) {
        if let Ok([from, to]) = self.pages.get_disjoint_mut([from, to]) {
            to.copy_from_slice(from);
        }
    }

    /// One layer of all pages.
    pub(in crate::attention) fn layer(&mut self, layer: usize) -> PagePointers<'_, T> {
        let start = layer * self.layout.kv_heads * self.layout.head();
        let starts = self.pages.iter_mut().map(|page| page[start..].as_mut_ptr()).collect();
        PagePointers { layout: self.layout, starts, pages: PhantomData }
    }
}

/// One layer of all pages, for tasks on several threads.
pub(in crate::attention) struct PagePointers<'a, T> {
    layout: Layout,
    starts: Vec<*mut T>,
    pages: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out parts of one exclusive borrow, whose elements may be sent; its methods ask their callers not to write where others
// read.
unsafe impl<T: Send + Sync> Sync for PagePointers<'_, T> {}

impl<T> PagePointers<'_, T> {
    /// Keys and values of a head.
    ///
    /// # Safety
    /// Nobody writes to this head of this page meanwhile.
    #[inline(always)]
    pub(in crate::attention) unsafe fn read(&self, page: usize, head: usize) -> (&[T], &[T]) {
        assert!(head < self.layout.kv_heads);
        let Layout { keys, values, .. } = self.layout;
        // SAFETY: a layer has as many heads; the caller's promise.
        unsafe {
            let start = self.starts[page].add(head * self.layout.head());
            (std::slice::from_raw_parts(start, keys), std::slice::from_raw_parts(start.add(keys), values))
        }
    }

    /// The same, to be written to.
    ///
    /// # Safety
    /// Nobody else reads or writes this head of this page meanwhile.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(in crate::attention) unsafe fn write(&self, page: usize, head: usize) -> (&mut [T], &mut [T]) {
        assert!(head < self.layout.kv_heads);
        let Layout { keys, values, .. } = self.layout;
        // SAFETY: a layer has as many heads; the caller's promise.
        unsafe {
            let start = self.starts[page].add(head * self.layout.head());
            (std::slice::from_raw_parts_mut(start, keys), std::slice::from_raw_parts_mut(start.add(keys), values))
        }
    }
}
