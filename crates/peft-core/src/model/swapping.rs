//! Another checkpoint in the place of an attached adapter.

use super::PeftModel;
use crate::checkpoint::read_adapter;
use crate::inject::{Built, build};
use crate::torch_rng::TorchRng;
use crate::{Adaptable, Adapter, AdapterConfig, Error, Registry, Result, TensorSource};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

impl<M: Adaptable> PeftModel<M> {
    /// Replaces an attached adapter by the one saved in `dir`, under the same name and in the same place.
    ///
    /// Which adapters are active, their order and the mode stay as they are, and the base model is not touched: a server changes
    /// adapters this way between two requests. The checkpoint must be of the same method and adapt the same modules; everything
    /// else its config says (rank, scaling, dropout, modules saved as a whole, trained biases) counts from now on, and
    /// [`PeftModel::save_adapter`] writes it.
    ///
    /// Afterwards [`PeftModel::vars`] are other variables: an optimiser made before holds the old ones, and has to be made again.
    ///
    /// PEFT's `hotswap_adapter` does this for LoRA alone, wants equal `use_rslora`, `lora_dropout` and `alpha_pattern`, silences
    /// modules that the checkpoint lacks, and keeps the old adapter's config.
    ///
    /// # Errors
    /// When the name is unknown, adapters are merged, or what [`PeftModel::load_adapter`] refuses is in `dir`;
    /// [`Error::OtherMethod`] and [`Error::OtherTargets`] when the checkpoint is of another kind;
    /// [`Error::ConflictingReplacement`] when it trains a parameter that another active adapter trains. The old adapter is
    /// untouched then.
    pub fn hotswap_adapter(&mut self, name: &str, dir: impl AsRef<Path>, registry: &Registry) -> Result<&Adapter> {
        let dir = dir.as_ref();
        let (config, file) = read_adapter(dir, registry)?;
        self.hotswap_from_source(name, config, &file).map_err(|e| e.at(dir.display().to_string()))
    }

    /// As [`PeftModel::hotswap_adapter`], from a config and tensors at hand.
    ///
    /// # Errors
    /// As [`PeftModel::hotswap_adapter`].
    pub fn hotswap_from_source(
        &mut self,
        name: &str,
        config: impl Into<AdapterConfig>,
        source: &dyn TensorSource,
    ) -> Result<&Adapter> {
        let config = config.into();
        let old = self.adapter(name)?;
        self.refuse_merged("swap an adapter")?;
        let (attached, found) = (old.config.method.peft_type(), config.method.peft_type());
        if attached != found {
            return Err(Error::OtherMethod { adapter: name.to_owned(), attached, found });
        }
        let rng = TorchRng::new(self.init_seed);
        let new = build(&self.base, old.name.clone(), config, Some(source), rng, &self.decomposer)?;
        same_targets(old, &new.adapter)?;
        self.check_swapped(&new)?;
        self.put(new)?;
        self.adapter(name)
    }

    /// Whether the active set could stay as it is with the new adapter in it.
    fn check_swapped(&self, new: &Built) -> Result<()> {
        let name = &*new.adapter.name;
        let active: Vec<&str> = self.active.iter().map(String::as_str).collect();
        if !active.contains(&name) {
            return Ok(());
        }
        self.look(|path, host| match new.parts.get(path) {
            Some(part) => host.slots().check_replaced(path, &active, name, part),
            None => Ok(()),
        })
    }

    /// Puts the new adapter where the one of its name was.
    fn put(&mut self, new: Built) -> Result<()> {
        let Built { adapter, mut parts } = new;
        let earlier: Vec<Arc<str>> =
            self.adapters.iter().map(|a| a.name.clone()).take_while(|name| *name != adapter.name).collect();
        let active: Vec<String> = self.active().map(str::to_owned).collect();
        let active: Vec<&str> = active.iter().map(String::as_str).collect();
        self.each(|path, host| {
            let slots = host.slots_mut();
            slots.replace(&adapter.name, parts.remove(path).unwrap_or_default(), &earlier);
            slots.activate(&active);
            Ok(())
        })?;
        if let Some(place) = self.adapters.iter_mut().find(|a| a.name == adapter.name) {
            *place = adapter;
        }
        Ok(())
    }
}

/// The new adapter must sit at the modules of the old one.
fn same_targets(old: &Adapter, new: &Adapter) -> Result<()> {
    let paths = |adapter: &Adapter| adapter.sites.iter().map(|(path, _)| path.clone()).collect::<BTreeSet<_>>();
    let (had, has) = (paths(old), paths(new));
    if had == has {
        return Ok(());
    }
    Err(Error::OtherTargets {
        adapter: old.name.to_string(),
        lacking: had.difference(&has).cloned().collect(),
        extra: has.difference(&had).cloned().collect(),
    })
}
