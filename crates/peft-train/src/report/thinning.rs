//! A few of many things, evenly spread, without knowing how many there will be.

/// Keeps the first thing, the last one, and some between them.
#[derive(Debug)]
pub(super) struct Thinned<T> {
    most: usize,
    stride: usize,
    count: usize,
    kept: Vec<T>,
    /// The last thing, where its turn has not come.
    last: Option<T>,
}

impl<T> Thinned<T> {
    /// Keeps up to `most` things, of which there must be at least 3.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(3), stride: 1, count: 0, kept: Vec::new(), last: None }
    }

    pub(super) fn push(&mut self, item: T) {
        if self.count.is_multiple_of(self.stride) {
            self.kept.push(item);
            self.last = None;
        } else {
            self.last = Some(item);
        }
        self.count += 1;
        // One place is for the last.
        if self.kept.len() == self.most {
            self.stride *= 2;
            for (index, item) in std::mem::take(&mut self.kept).into_iter().enumerate() {
                if index % 2 == 0 {
                    self.kept.push(item);
                    self.last = None;
                } else {
                    self.last = Some(item);
                }
            }
        }
    }

    /// The thing that was pushed last.
    pub(super) fn last_mut(&mut self) -> Option<&mut T> {
        self.last.as_mut().or(self.kept.last_mut())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.kept.iter().chain(&self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::Thinned;

    #[test]
    fn the_first_the_last_and_a_spread_of_the_others_are_kept() {
        for most in 3..9 {
            for count in 0..200usize {
                let mut thinned = Thinned::new(most);
                for item in 0..count {
                    thinned.push(item);
                    assert_eq!(thinned.last_mut(), Some(&mut { item }));
                }
                let kept: Vec<usize> = thinned.iter().copied().collect();
                assert!(kept.len() <= most && kept.is_sorted(), "{kept:?}");
                assert_eq!((kept.first(), kept.last()), ((count > 0).then_some(&0), count.checked_sub(1).as_ref()));
                let gaps: Vec<usize> = kept.windows(2).map(|pair| pair[1] - pair[0]).collect();
                if let Some((last, inner)) = gaps.split_last() {
                    assert!(inner.iter().all(|gap| gap == &inner[0] && last <= gap), "{kept:?}");
                }
                assert!(kept.len() >= count.min(most / 2), "{kept:?} of {count}");
            }
        }
    }
}
