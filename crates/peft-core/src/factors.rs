//! The leading singular directions of weights as frozen factors: what TinyLoRA and LoRA-XS put their trained numbers between.

use crate::{Decomposer, Decomposition, Error, HostKind, HostSpec, ParamBuilder, ParamKey, Persist, Result, Site};
use candle_core::{DType, Tensor};

/// Where the singular values of a weight go when it is written as a product of two factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SingularValues {
    /// Their square roots to both sides: `B = U sqrt(S)`, `A = sqrt(S) V^T`.
    Split,
    /// All of them to the factor that the input meets first: `B = U`, `A = S V^T` of a linear layer, `B = U S`, `A = V^T` of an
    /// embedding.
    Input,
}

/// Two factors whose product is the best approximation of a weight of their rank.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SvdFactors {
    /// The right factor, `(r, cols)`.
    pub a: Tensor,
    /// The left factor, `(rows, r)`.
    pub b: Tensor,
}

impl SvdFactors {
    /// The rank that a weight allows: a config may ask for more than the weight has.
    pub fn rank(r: usize, host: &HostSpec) -> usize {
        r.min(host.rows).min(host.cols)
    }

    /// The factors of every site, decomposed side by side ([`Decomposer::each`]); a thread holds one weight in f32 at a time.
    ///
    /// They are made on the CPU with the values of the base's dtype, operation by operation as PEFT does, because that decides how a
    /// 16-bit base rounds; tensors are of [`adapter_dtype`].
    ///
    /// # Errors
    /// When a site has no weight, or one that cannot be decomposed; the error names the site.
    pub fn of_sites(sites: &[Site], r: usize, values: SingularValues, decomposer: &Decomposer) -> Result<Vec<Self>> {
        decomposer.each(sites, |_, site| Self::of(site, r, values))
    }

    /// The factors of every site as frozen parameters, `names` being those of A and B below a module's path.
    ///
    /// A checkpoint holds them: the signs of singular vectors are free, and what was trained belongs to one choice of them. One that is
    /// compact was made with the choice of this crate, and its factors are made again.
    ///
    /// # Errors
    /// As [`SvdFactors::of_sites`], and as [`ParamBuilder::frozen`].
    pub fn frozen(
        sites: &[Site],
        r: usize,
        values: SingularValues,
        (name_a, name_b): (&str, &str),
        params: &mut ParamBuilder<'_>,
    ) -> Result<Vec<Self>> {
        let fresh = match params.makes_derived() {
            true => Self::of_sites(sites, r, values, params.decomposer())?,
            false => vec![],
        };
        let mut fresh = fresh.into_iter();
        let each = sites.iter().map(|site| {
            let HostSpec { rows, cols, dtype, ref device, .. } = site.spec;
            let (r, dtype) = (Self::rank(r, &site.spec), adapter_dtype(dtype));
            let (fresh_a, fresh_b) = fresh.next().map(|f| (f.a, f.b)).unzip();
            let mut frozen = |name, shape: (usize, usize), fresh: Option<Tensor>| {
                let key = ParamKey::site(&site.path, name);
                let missing = || Error::MissingTensor(key.to_string());
                params.frozen(key.clone(), shape, dtype, device, Persist::Derived, || fresh.ok_or_else(missing))
            };
            Ok(Self { a: frozen(name_a, (r, cols), fresh_a)?, b: frozen(name_b, (rows, r), fresh_b)? })
        });
        each.collect()
    }

    fn of(decomposition: Decomposition<'_>, r: usize, values: SingularValues) -> Result<Self> {
        let svd = decomposition.triplets(r)?;
        let site = decomposition.site();
        let dtype = site.values;
        let (s, u, vt) = (svd.s.to_dtype(dtype)?, svd.u.to_dtype(dtype)?, svd.vt.to_dtype(dtype)?);
        let (a, b) = match values {
            SingularValues::Split => {
                let root = s.sqrt()?;
                (vt.broadcast_mul(&root.unsqueeze(1)?)?, u.broadcast_mul(&root)?)
            }
            SingularValues::Input if site.spec.kind == HostKind::Embedding => (vt, u.broadcast_mul(&s)?),
            SingularValues::Input => (vt.broadcast_mul(&s.unsqueeze(1)?)?, u),
        };
        let storage = adapter_dtype(site.spec.dtype);
        Ok(Self { a: a.to_dtype(storage)?, b: b.to_dtype(storage)? })
    }
}

/// The dtype of an adapter's tensors on a base of this dtype: 16-bit bases have f32 adapters, as PEFT's
/// `autocast_adapter_dtype` makes them.
pub fn adapter_dtype(base: DType) -> DType {
    match base {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// The dtype whose values an adapter's frozen tensors have on a base of this dtype: those of 16-bit bases are rounded like the
/// base before they are widened.
pub fn value_dtype(base: DType) -> DType {
    match base {
        DType::F64 | DType::BF16 | DType::F16 => base,
        _ => DType::F32,
    }
}
