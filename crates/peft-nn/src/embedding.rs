//! Embedding lookup.

use candle_core::{DType, Device, Result, Tensor, bail};

const NAME: &str = "embedding";

/// The rows of `weight` that `ids` names.
///
/// `ids` has any shape and an integer dtype, `weight` is `(vocabulary, width)`, the result `(ids.., width)`. An id
/// outside the vocabulary is an error. A frozen weight gives an untracked result; a tracked one gets its gradient.
pub fn embedding(ids: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let &[vocabulary, width] = weight.dims() else {
        bail!("{NAME}: the weight is (vocabulary, width), got {:?}", weight.dims())
    };
    if !ids.dtype().is_int() {
        bail!("{NAME}: the ids are {}, expected an integer dtype", ids.dtype().as_str());
    }
    // Checked here because candle reads the largest u32 or i64 as a row of zeros, and does not check at all on a GPU.
    let flat = ids.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::I64)?;
    for id in flat.to_vec1::<i64>()? {
        if usize::try_from(id).map_or(true, |id| id >= vocabulary) {
            bail!("{NAME}: token id {id} is out of range, the vocabulary has {vocabulary} entries");
        }
    }
    let rows = weight.contiguous()?.index_select(&flat.to_dtype(DType::U32)?.to_device(weight.device())?, 0)?;
    rows.reshape([ids.dims(), &[width]].concat())
}
