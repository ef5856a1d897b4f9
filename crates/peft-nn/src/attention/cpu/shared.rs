use std::marker::PhantomData;

/// A result whose rows tasks on several threads write, each its own.
pub(super) struct Rows<'a, T> {
    start: *mut T,
    len: usize,
    width: usize,
    elements: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out rows of one exclusive borrow, whose elements may be sent; `row` asks its callers for different
// ones.
unsafe impl<T: Send> Sync for Rows<'_, T> {}

impl<'a, T> Rows<'a, T> {
    pub(super) fn of(elements: &'a mut [T], width: usize) -> Self {
        Self { start: elements.as_mut_ptr(), len: elements.len(), width, elements: PhantomData }
    }

    /// # Safety
    /// Nobody holds the same row at the same time.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(super) unsafe fn row(&self, index: usize) -> &mut [T] {
        assert!((index + 1) * self.width <= self.len);
        // SAFETY: within the borrowed elements, and by the caller's promise no other reference reaches these.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.width), self.width) }
    }
}
