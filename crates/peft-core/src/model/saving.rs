//! Saving adapters in either layout.

use super::PeftModel;
use crate::checkpoint::{BaseRecord, Compact, Layout, write_adapter};
use crate::inject::build;
use crate::torch_rng::TorchRng;
use crate::{Adaptable, Adapter, AdapterConfig, BaseWeight, Error, ParamKey, Result, Site};
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How far a tensor that is made again may be from the one that was read, as a part of its largest number.
const SAME: f64 = 1e-5;

impl<M: Adaptable> PeftModel<M> {
    /// Writes one adapter into `dir`, replacing what is there file by file, each in one step.
    ///
    /// # Errors
    /// When the name is unknown or a file cannot be written; older files are whole then.
    pub fn save_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<()> {
        self.save_adapter_as(name, dir, Layout::Peft)
    }

    /// As [`PeftModel::save_adapter`], in a layout of choice. Files of the other one are removed from the folder.
    ///
    /// [`Layout::Compact`] leaves out what follows from the config and the base model's weights: the factors and projections of
    /// TinyLoRA, the factors of LoRA-XS, the projections of VeRA. The file names those weights by their hashes, and loading refuses
    /// others.
    ///
    /// # Errors
    /// When the name is unknown or a file cannot be written; older files are whole then. In the compact layout also when nothing
    /// would be left out ([`Error::NothingDerived`]), when a tensor that the adapter was loaded with is not what this crate makes of
    /// the base ([`Error::NotDerived`]), and while adapters are merged.
    pub fn save_adapter_as(&self, name: &str, dir: impl AsRef<Path>, layout: Layout) -> Result<()> {
        let adapter = self.adapter(name)?;
        let mut config = adapter.config.clone();
        config.meta.inference_mode = true;
        if layout == Layout::Peft {
            let tensors = adapter.params.persisted().map(|(key, tensor)| (key.to_string(), tensor));
            return write_adapter(dir.as_ref(), &config, tensors);
        }
        let (config, tensors) = self.compact(adapter, config)?;
        write_adapter(dir.as_ref(), &config, tensors.iter().map(|(name, tensor)| (name.clone(), tensor)))
    }

    /// Finds out whether [`PeftModel::save_adapter_as`] has something to write, before there is anything to lose.
    ///
    /// # Errors
    /// Those of [`PeftModel::save_adapter_as`] that are no matter of the disk.
    pub fn check_layout(&self, name: &str, layout: Layout) -> Result<()> {
        let adapter = self.adapter(name)?;
        match layout {
            Layout::Peft => Ok(()),
            Layout::Compact => self.compact(adapter, adapter.config.clone()).map(drop),
        }
    }

    /// Config and tensors of an adapter's compact checkpoint.
    fn compact(
        &self,
        adapter: &Adapter,
        mut config: AdapterConfig,
    ) -> Result<(AdapterConfig, BTreeMap<String, Tensor>)> {
        self.refuse_merged("save a compact checkpoint")?;
        if adapter.params.derived().next().is_none() {
            return Err(Error::NothingDerived { method: config.method.peft_type() });
        }
        let sites = self.sites_of(adapter)?;
        let kept = adapter.params.kept().map(|(key, tensor)| (key.to_string(), tensor.clone()));
        let tensors: BTreeMap<String, Tensor> = kept.chain(BaseRecord::of(&sites)?.tensors()?).collect();
        // Tensors made in this process are made again alike. Those that were read may come from elsewhere.
        let read = adapter.params.derived().any(|(_, _, read)| read);
        let mut failed = None;
        for values in values(adapter, &sites, read)? {
            config.meta.compact = Some(Compact::new(values));
            let differs = if read { self.first_underived(adapter, &config, &tensors)? } else { None };
            match differs {
                None => return Ok((config, tensors)),
                Some(key) => failed = failed.or(Some(key)),
            }
        }
        let key = failed.map(|key| key.to_string()).unwrap_or_default();
        Err(Error::NotDerived { key })
    }

    /// The first tensor that loading this compact checkpoint would make another of.
    fn first_underived(
        &self,
        adapter: &Adapter,
        config: &AdapterConfig,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<Option<ParamKey>> {
        let rng = TorchRng::new(self.init_seed);
        let again = build(&self.base, adapter.name.clone(), config.clone(), Some(tensors), rng, &self.decomposer)?;
        for (key, tensor, _) in adapter.params.derived() {
            let same = again.adapter.params.tensor(key).map(|made| same(tensor, made)).transpose()?;
            if same != Some(true) {
                return Ok(Some(key.clone()));
            }
        }
        Ok(None)
    }

    /// The sites of an adapter, in visit order.
    fn sites_of(&self, adapter: &Adapter) -> Result<Vec<Site>> {
        let paths: BTreeSet<&str> = adapter.sites.iter().map(|(path, _)| path.as_str()).collect();
        let mut sites = vec![];
        self.look(|path, host| {
            if paths.contains(path) {
                let base: BaseWeight = host.base().clone();
                sites.push(Site::new(path, host.spec(), base));
            }
            Ok(())
        })?;
        Ok(sites)
    }
}

/// The dtypes that the left-out tensors may have the values of, the likeliest first.
fn values(adapter: &Adapter, sites: &[Site], read: bool) -> Result<Vec<DType>> {
    if let Some(values) = adapter.values {
        return Ok(vec![values]);
    }
    let own: Vec<DType> = sites.iter().map(|site| site.values).collect();
    let Some(first) = own.first().copied().filter(|first| own.iter().all(|dtype| dtype == first)) else {
        return Err(Error::config("a compact checkpoint is of a base model of one dtype, and this one has several"));
    };
    let others = [DType::F32, DType::BF16, DType::F16].into_iter();
    let others = others.filter(|dtype| read && first != DType::F64 && *dtype != first);
    Ok([first].into_iter().chain(others).collect())
}

/// Whether two tensors are one, up to the rounding of different machines.
fn same(read: &Tensor, made: &Tensor) -> Result<bool> {
    let number = |tensor: Tensor| tensor.flatten_all()?.max(0)?.to_scalar::<f64>();
    let read = read.to_dtype(DType::F64)?;
    let largest = number(read.abs()?)?;
    Ok(number((made.to_dtype(DType::F64)? - read)?.abs()?)? <= SAME * largest)
}
