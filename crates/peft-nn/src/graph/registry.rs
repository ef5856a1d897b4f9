//! Which tensors are outputs of our nodes.
//!
//! A tensor of candle does not show what made it, so the outputs are listed by their ids. The list owns nothing: an entry
//! lives as long as the output it is of.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use candle_core::TensorId;

use super::candle::Output;

static OUTPUTS: LazyLock<Mutex<HashMap<TensorId, Weak<Output>>>> = LazyLock::new(Mutex::default);

fn outputs() -> MutexGuard<'static, HashMap<TensorId, Weak<Output>>> {
    OUTPUTS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn insert(id: TensorId, output: &Arc<Output>) {
    outputs().insert(id, Arc::downgrade(output));
}

pub(super) fn remove(id: TensorId) {
    outputs().remove(&id);
}

pub(super) fn get(id: TensorId) -> Option<Arc<Output>> {
    // The lock is given back before an output may be dropped, which takes it.
    let output = outputs().get(&id).cloned();
    output?.upgrade()
}

#[cfg(test)]
pub(super) fn contains(id: TensorId) -> bool {
    outputs().contains_key(&id)
}
