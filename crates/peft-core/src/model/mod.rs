//! A model with its adapters.

mod files;
mod merging;
mod saving;
mod swapping;
mod training;

pub use training::ParamCounts;

use crate::inject::inject;
use crate::torch_rng::TorchRng;
use crate::{
    Adaptable, Adapter, AdapterConfig, Decomposer, DecompositionProgress, Error, FactorCache, Host, Mode, PEFT_VERSION,
    Result, TensorSource, Walk, WalkMut,
};
use candle_core::Tensor;

/// A model together with the adapters attached to it. Call `forward` on [`PeftModel::base`].
///
/// ```
/// use candle_core::{Device, Module, Tensor};
/// use peft_core::{PeftModel, nn::Linear};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let weight = Tensor::randn(0f32, 1., (4, 8), &Device::Cpu)?;
/// let model = PeftModel::new(Linear::new(weight, None));
/// assert_eq!(model.param_counts()?.total, 32);
/// let y = model.base().forward(&Tensor::zeros((1, 8), candle_core::DType::F32, &Device::Cpu)?)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct PeftModel<M> {
    base: M,
    adapters: Vec<Adapter>,
    active: Vec<String>,
    enabled: bool,
    base_name: Option<String>,
    base_revision: Option<String>,
    init_seed: u64,
    decomposer: Decomposer,
}

impl<M: Adaptable> PeftModel<M> {
    /// A model without adapters.
    pub fn new(base: M) -> Self {
        Self {
            base,
            adapters: vec![],
            active: vec![],
            enabled: true,
            base_name: None,
            base_revision: None,
            init_seed: 0,
            decomposer: Decomposer::default(),
        }
    }

    /// Sets the name or folder of the base model, which saved configs mention.
    pub fn with_base_name(mut self, name: impl Into<String>) -> Self {
        self.base_name = Some(name.into());
        self
    }

    /// Sets the commit or other revision of the base model, which saved configs mention beside its name.
    pub fn with_base_revision(mut self, revision: impl Into<String>) -> Self {
        self.base_revision = Some(revision.into());
        self
    }

    /// Sets the seed of random initial values, as `torch.manual_seed` before `get_peft_model` does. It is 0 otherwise.
    pub fn with_init_seed(mut self, seed: u64) -> Self {
        self.init_seed = seed;
        self
    }

    /// Keeps the singular triplets of weights in this cache, and takes them from it. Otherwise they are computed each time, and nothing
    /// is written.
    pub fn with_factor_cache(self, cache: FactorCache) -> Self {
        Self { decomposer: self.decomposer.with_cache(cache), ..self }
    }

    /// Calls a function whenever the weight of a module has been decomposed for an adapter, from whichever thread did it.
    pub fn with_decomposition_progress(
        self,
        observer: impl Fn(DecompositionProgress<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self { decomposer: self.decomposer.with_observer(observer), ..self }
    }

    /// The model itself: call `forward` on this.
    pub fn base(&self) -> &M {
        &self.base
    }

    /// The name or folder of the base model, if it was given.
    pub fn base_name(&self) -> Option<&str> {
        self.base_name.as_deref()
    }

    /// The attached adapters, in the order they were added.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// One adapter.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`], listing the names that exist.
    pub fn adapter(&self, name: &str) -> Result<&Adapter> {
        self.adapters.iter().find(|a| &*a.name == name).ok_or_else(|| Error::UnknownAdapter {
            name: name.to_owned(),
            available: match self.adapters.len() {
                0 => "none".to_owned(),
                _ => self.adapters.iter().map(|a| &*a.name).collect::<Vec<_>>().join(", "),
            },
        })
    }

    /// The names of the active adapters; empty while adapters are disabled.
    pub fn active(&self) -> impl Iterator<Item = &str> {
        self.active.iter().filter(|_| self.enabled).map(String::as_str)
    }

    /// Makes a fresh adapter. It becomes the only active one, in training mode.
    ///
    /// # Errors
    /// When the name is taken or unusable, the config is invalid, a target matches nothing, or adapters are merged. The model is
    /// untouched then.
    pub fn add_adapter(&mut self, name: &str, config: impl Into<AdapterConfig>) -> Result<&Adapter> {
        let mut config = config.into();
        config.meta.base_model_name_or_path = self.base_name.clone().or(config.meta.base_model_name_or_path);
        config.meta.revision = self.base_revision.clone().or(config.meta.revision);
        config.meta.peft_version.get_or_insert_with(|| PEFT_VERSION.to_owned());
        self.add(name, config, None, Mode::Train)
    }

    /// Attaches an adapter whose parameters are read from `source`. It becomes the only active one, in inference mode.
    ///
    /// # Errors
    /// As [`PeftModel::add_adapter`], and when tensors are missing, misshapen or left over.
    pub fn add_from_source(
        &mut self,
        name: &str,
        config: impl Into<AdapterConfig>,
        source: &dyn TensorSource,
    ) -> Result<&Adapter> {
        let mut config = config.into();
        // A branch may have moved since the adapter was made; the commit that it runs on now is known.
        if self.base_revision.is_some() && config.meta.base_model_name_or_path == self.base_name {
            config.meta.revision.clone_from(&self.base_revision);
        }
        self.add(name, config, Some(source), Mode::Infer)
    }

    fn add(
        &mut self,
        name: &str,
        config: AdapterConfig,
        source: Option<&dyn TensorSource>,
        mode: Mode,
    ) -> Result<&Adapter> {
        if name.is_empty() || name.contains(['/', '\\', '.']) {
            return Err(Error::AdapterName(name.to_owned()));
        }
        if self.adapters.iter().any(|a| &*a.name == name) {
            return Err(Error::DuplicateAdapter(name.to_owned()));
        }
        self.refuse_merged("add an adapter")?;
        let adapter = inject(&mut self.base, name, config, source, TorchRng::new(self.init_seed), &self.decomposer)?;
        self.adapters.push(adapter);
        self.activate(&[name])?;
        self.set_mode(mode)?;
        self.adapter(name)
    }

    /// Makes exactly these adapters active; their effects add up in the order they were attached.
    ///
    /// # Errors
    /// When a name is unknown, two of them replace the same parameter, or adapters are merged.
    pub fn activate(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            self.adapter(name)?;
        }
        self.refuse_merged("change the active adapters")?;
        self.look(|path, host| host.slots().check_active_set(path, names))?;
        self.active.clear();
        for name in names {
            if !self.active.iter().any(|a| a == name) {
                self.active.push((*name).to_owned());
            }
        }
        self.enabled = true;
        self.each(|_, host| {
            host.slots_mut().activate(names);
            Ok(())
        })
    }

    /// Turns all adapters off, leaving the base model; [`PeftModel::enable`] turns the active set on again.
    ///
    /// # Errors
    /// When adapters are merged.
    pub fn disable(&mut self) -> Result<()> {
        self.refuse_merged("disable adapters")?;
        self.enabled = false;
        self.each(|_, host| {
            host.slots_mut().activate(&[]);
            Ok(())
        })
    }

    /// Turns the active set on again after [`PeftModel::disable`].
    ///
    /// # Errors
    /// When adapters are merged.
    pub fn enable(&mut self) -> Result<()> {
        let names = self.active.clone();
        self.activate(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Removes an adapter and its parameters.
    ///
    /// # Errors
    /// When the name is unknown or adapters are merged.
    pub fn delete_adapter(&mut self, name: &str) -> Result<()> {
        self.adapter(name)?;
        self.refuse_merged("delete an adapter")?;
        self.each(|_, host| {
            host.slots_mut().detach(name);
            Ok(())
        })?;
        self.adapters.retain(|a| &*a.name != name);
        self.active.retain(|a| a != name);
        Ok(())
    }

    /// Training mode: parameters of active adapters are tracked and dropout is on.
    pub fn train(&mut self) -> Result<()> {
        self.set_mode(Mode::Train)
    }

    /// Inference mode: nothing is tracked and dropout is off.
    pub fn eval(&mut self) -> Result<()> {
        self.set_mode(Mode::Infer)
    }

    /// Restarts the random numbers of every adapter layer (dropout masks).
    ///
    /// Called before each forward pass with a seed made from its position in the run, it makes a resumed run equal to an
    /// undisturbed one.
    pub fn reseed(&self, seed: u64) -> Result<()> {
        self.look(|_, host| {
            host.slots().reseed(seed);
            Ok(())
        })
    }

    /// What an adapter adds to the weight of one module, in the layout the model stores that weight in.
    ///
    /// # Errors
    /// When the adapter is unknown or does not adapt this module.
    pub fn delta_weight(&self, adapter: &str, path: &str) -> Result<Tensor> {
        let sites = &self.adapter(adapter)?.sites;
        let mut delta = None;
        self.look(|at, host| {
            if let (true, Some(layer)) = (at == path, host.slots().layer(adapter)) {
                let base = host.slots().merged().map_or(host.base(), |merged| &merged.base);
                let canonical = layer.delta_weight(&base.canonical()?)?;
                delta = Some(match host.spec().layout {
                    crate::WeightLayout::InOut => canonical.t()?.contiguous()?,
                    _ => canonical,
                });
            }
            Ok(())
        })?;
        delta.ok_or_else(|| Error::NoTargetMatched {
            pattern: format!("`{path}`"),
            suggestion: None,
            available: sites.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    fn set_mode(&mut self, mode: Mode) -> Result<()> {
        self.each(|_, host| {
            host.slots_mut().set_mode(mode);
            Ok(())
        })
    }

    fn is_merged(&self) -> Result<bool> {
        let mut merged = false;
        self.look(|_, host| {
            merged |= host.slots().is_merged();
            Ok(())
        })?;
        Ok(merged)
    }

    fn refuse_merged(&self, attempted: &'static str) -> Result<()> {
        if self.is_merged()? { Err(Error::Merged { attempted }) } else { Ok(()) }
    }

    fn look(&self, mut f: impl FnMut(&str, &dyn Host) -> Result<()>) -> Result<()> {
        self.base.visit(&mut Walk::new(&mut f))
    }

    fn each(&mut self, mut f: impl FnMut(&str, &mut dyn Host) -> Result<()>) -> Result<()> {
        self.base.visit_mut(&mut WalkMut::new(&mut f))
    }
}
