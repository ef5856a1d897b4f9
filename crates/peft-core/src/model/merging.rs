//! Merging on a whole model: everywhere or nowhere.

use super::PeftModel;
use crate::merge::{merge, unmerge};
use crate::{Adaptable, BaseWeight, Error, Result};
use candle_core::TensorId;
use std::collections::BTreeMap;

impl<M: Adaptable> PeftModel<M> {
    /// Folds the active adapters into the base weights, so that inference costs what the base model costs.
    ///
    /// The original weights are kept in memory for an exact [`PeftModel::unmerge`].
    ///
    /// # Errors
    /// When adapters are merged already, a method has no delta, or a target shares its weight with another layer
    /// ([`PeftModel::untie`] first). Nothing is merged then.
    pub fn merge(&mut self) -> Result<()> {
        self.merge_all(false)
    }

    /// [`PeftModel::merge`] that refuses to put NaN or infinity into a weight.
    ///
    /// # Errors
    /// As [`PeftModel::merge`], and [`Error::NonFinite`] naming adapter and layer.
    pub fn safe_merge(&mut self) -> Result<()> {
        self.merge_all(true)
    }

    fn merge_all(&mut self, finite: bool) -> Result<()> {
        self.refuse_merged("merge again")?;
        self.refuse_tied()?;
        let merged = self.each(|path, host| merge(path, host, finite).map_err(|e| e.at(path)));
        if merged.is_err() {
            self.unmerge()?;
        }
        merged
    }

    /// Takes merged adapters out again; the weights are those from before, bit for bit.
    pub fn unmerge(&mut self) -> Result<()> {
        self.each(|_, host| unmerge(host))
    }

    /// Gives layers that share one weight (a tied `lm_head`) a copy of their own, so that they can be merged into.
    pub fn untie(&mut self) -> Result<()> {
        let mut seen: Vec<TensorId> = vec![];
        self.each(|_, host| {
            let Ok(weight) = host.base().stored().cloned() else { return Ok(()) };
            if seen.contains(&weight.id()) {
                let base = host.base().with_stored(weight.copy()?);
                let bias = host.bias().cloned();
                return host.set_base(base, bias);
            }
            seen.push(weight.id());
            Ok(())
        })
    }

    /// Merges the active adapters for good and hands out the plain model.
    ///
    /// # Errors
    /// As [`PeftModel::safe_merge`].
    pub fn merge_and_unload(mut self) -> Result<M> {
        if !self.is_merged()? {
            self.safe_merge()?;
        }
        self.strip()
    }

    /// Hands out the plain model without any adapter; what was merged is taken out first.
    pub fn unload(mut self) -> Result<M> {
        self.unmerge()?;
        self.strip()
    }

    fn strip(mut self) -> Result<M> {
        self.each(|_, host| {
            host.slots_mut().clear();
            Ok(())
        })?;
        Ok(self.base)
    }

    /// A weight shared by two layers cannot follow an adapter of one of them.
    fn refuse_tied(&self) -> Result<()> {
        let mut owners: BTreeMap<String, Vec<(String, bool)>> = BTreeMap::new();
        self.look(|path, host| {
            if let BaseWeight::Dense { weight, .. } = host.base() {
                let id = format!("{:?}", weight.id());
                owners.entry(id).or_default().push((path.to_owned(), host.slots().is_live()));
            }
            Ok(())
        })?;
        for shared in owners.into_values().filter(|s| s.len() > 1) {
            if let Some((path, _)) = shared.iter().find(|(_, live)| *live)
                && let Some((other, _)) = shared.iter().find(|(other, _)| other != path)
            {
                return Err(Error::TiedWeights { path: path.clone(), other: other.clone() });
            }
        }
        Ok(())
    }
}
