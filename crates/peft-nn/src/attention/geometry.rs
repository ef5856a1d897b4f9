use candle_core::{Result, Tensor, bail};

/// How heads are arranged in the tensors of an operator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Arrangement {
    /// `(batch, heads, positions, width)`.
    Separate,
    /// `(batch, positions, heads * width)`, as projections give them.
    Merged,
}

impl Arrangement {
    /// The shape of a tensor of so many heads.
    pub(super) fn shape(self, batch: usize, heads: usize, positions: usize, width: usize) -> Vec<usize> {
        match self {
            Self::Separate => vec![batch, heads, positions, width],
            Self::Merged => vec![batch, positions, heads * width],
        }
    }

    /// The row of a batch entry, head and position.
    pub(super) fn row(self, (batch, head, position): (usize, usize, usize), heads: usize, positions: usize) -> usize {
        match self {
            Self::Separate => (batch * heads + head) * positions + position,
            Self::Merged => (batch * positions + position) * heads + head,
        }
    }
}

/// The sizes of one attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) arrangement: Arrangement,
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) head_dim: usize,
    pub(super) value_dim: usize,
}

impl Geometry {
    /// Of `q`, `k` and `v` with a dimension for heads.
    pub(super) fn separate(op: &str, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        let (&[batch, heads, queries, head_dim], &[.., kv_heads, keys, _], &[.., value_dim]) =
            (q.dims(), k.dims(), v.dims())
        else {
            bail!("{op}: q, k and v have four dimensions, got {:?}, {:?}, {:?}", q.dims(), k.dims(), v.dims())
        };
        let arrangement = Arrangement::Separate;
        Self { arrangement, batch, heads, kv_heads, queries, keys, head_dim, value_dim }.checked(op, q, k, v)
    }

    /// Of `q`, `k` and `v` whose heads stand side by side.
    pub(super) fn merged(op: &str, [q, k, v]: [&Tensor; 3], heads: usize, kv_heads: usize) -> Result<Self> {
        let (&[batch, queries, q_width], &[_, keys, _], &[.., v_width]) = (q.dims(), k.dims(), v.dims()) else {
            bail!("{op}: q, k and v have three dimensions, got {:?}, {:?}, {:?}", q.dims(), k.dims(), v.dims())
        };
        if heads == 0 || !q_width.is_multiple_of(heads) {
            bail!("{op}: {q_width} columns of q are not a multiple of {heads} heads");
        }
        if kv_heads == 0 || !v_width.is_multiple_of(kv_heads) {
            bail!("{op}: {v_width} columns of v are not a multiple of {kv_heads} key heads");
        }
        let (head_dim, value_dim) = (q_width / heads, v_width / kv_heads);
        let arrangement = Arrangement::Merged;
        Self { arrangement, batch, heads, kv_heads, queries, keys, head_dim, value_dim }.checked(op, q, k, v)
    }

    fn checked(self, op: &str, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        if k.dims() != self.k_shape() || v.dims() != self.v_shape() {
            bail!("{op}: q, k and v do not fit together: {:?}, {:?}, {:?}", q.dims(), k.dims(), v.dims());
        }
        if self.head_dim == 0 {
            bail!("{op}: head_dim is 0");
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            bail!("{op}: {} query heads are not a multiple of {} key heads", self.heads, self.kv_heads);
        }
        Ok(self)
    }

    /// Query heads that share the keys of one head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Multiply-adds of the forward pass, were every key seen.
    pub(super) fn work(&self) -> usize {
        self.batch * self.heads * self.queries * self.keys * (self.head_dim + self.value_dim)
    }

    pub(super) fn q_shape(&self) -> Vec<usize> {
        self.arrangement.shape(self.batch, self.heads, self.queries, self.head_dim)
    }

    pub(super) fn k_shape(&self) -> Vec<usize> {
        self.arrangement.shape(self.batch, self.kv_heads, self.keys, self.head_dim)
    }

    pub(super) fn v_shape(&self) -> Vec<usize> {
        self.arrangement.shape(self.batch, self.kv_heads, self.keys, self.value_dim)
    }

    pub(super) fn output_shape(&self) -> Vec<usize> {
        self.arrangement.shape(self.batch, self.heads, self.queries, self.value_dim)
    }
}
