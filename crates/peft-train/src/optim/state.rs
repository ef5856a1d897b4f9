//! Reading an optimizer's saved tensors.

use super::Trainables;
use crate::error::{Error, Result};
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// The key of one quantity of one parameter.
pub(super) fn key(parameter: &str, quantity: &str) -> String {
    format!("{parameter}.{quantity}")
}

/// A saved state whose tensors are taken one by one.
pub(super) struct SavedState<'a> {
    tensors: &'a BTreeMap<String, Tensor>,
    unread: BTreeSet<&'a str>,
}

impl<'a> SavedState<'a> {
    pub(super) fn new(tensors: &'a BTreeMap<String, Tensor>) -> Self {
        Self { tensors, unread: tensors.keys().map(String::as_str).collect() }
    }

    pub(super) fn take(&mut self, key: &str) -> Result<&'a Tensor> {
        self.unread.remove(key);
        self.tensors.get(key).ok_or_else(|| {
            Error::Resume(format!("the saved optimizer state has no `{key}`; was it another optimizer's?"))
        })
    }

    /// One quantity of every parameter, on the parameter's device.
    pub(super) fn take_all(&mut self, trainables: &Trainables, quantity: &str) -> Result<Vec<Tensor>> {
        let take = |(name, var): (&str, &candle_core::Var)| {
            let key = key(name, quantity);
            let tensor = self.take(&key)?;
            if tensor.shape() != var.shape() || tensor.dtype() != var.dtype() {
                return Err(Error::Resume(format!(
                    "`{key}` is {:?} of shape {:?}, but `{name}` is {:?} of shape {:?}",
                    tensor.dtype(),
                    tensor.shape(),
                    var.dtype(),
                    var.shape()
                )));
            }
            Ok(tensor.detach().to_device(var.device())?)
        };
        trainables.iter().map(take).collect()
    }

    /// Refuses what nobody took.
    pub(super) fn finish(self) -> Result<()> {
        match self.unread.first() {
            Some(key) => {
                Err(Error::Resume(format!("the saved optimizer state has `{key}`, which this run does not train")))
            }
            None => Ok(()),
        }
    }
}
