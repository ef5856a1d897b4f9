//! What the author of an adapter method implements, and its type-erased form.

use crate::target::lora_targets;
use crate::{
    AdapterLayer, AdapterMeta, BaseWeight, Error, HostKind, HostSpec, ModuleNames, ParamBuilder, Result, TargetSpec,
    WeightHash, WeightLayout, value_dtype,
};
use candle_core::{DType, Shape};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::sync::{Arc, OnceLock};
use std::{any::Any, collections::BTreeMap, fmt::Debug};

/// A host that a method adapts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Site {
    /// The host's path in the base model, such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// What the host is.
    pub spec: HostSpec,
    /// Its weight; absent when an adapter is opened without its base model.
    pub base: BaseWeight,
    /// The dtype whose values frozen tensors have that are made for it: [`value_dtype`] of the weight's, or what a compact checkpoint
    /// says.
    pub values: DType,
    hash: OnceLock<WeightHash>,
}

impl Site {
    /// A site.
    pub fn new(path: impl Into<String>, spec: HostSpec, base: BaseWeight) -> Self {
        let values = value_dtype(spec.dtype);
        Self { path: path.into(), spec, base, values, hash: OnceLock::new() }
    }

    /// The hash of its weight, which is computed once.
    ///
    /// # Errors
    /// As [`WeightHash::of`].
    pub fn weight_hash(&self) -> Result<WeightHash> {
        match self.hash.get() {
            Some(hash) => Ok(*hash),
            None => {
                let hash = WeightHash::of(&self.base)?;
                Ok(*self.hash.get_or_init(|| hash))
            }
        }
    }

    /// PEFT's `fan_in_fan_out` for these sites: whether the last linear layer stores its weight `(in, out)`. `None` without one.
    pub fn fan_in_fan_out(sites: &[Self]) -> Option<bool> {
        let last = sites.iter().rev().find(|site| site.spec.kind == HostKind::Linear)?;
        Some(last.spec.layout == WeightLayout::InOut)
    }
}

/// Which biases are trained and saved beside the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BiasMode {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// The biases of adapted layers.
    Targets,
}

/// The shapes of the tensors a checkpoint holds for one module, by their names below the module's path.
pub type SiteShapes = BTreeMap<String, Shape>;

/// An adapter method: a validated config that knows how to build its layers.
///
/// The config *is* the method. Its serde form is PEFT's `adapter_config.json` without the fields that every config shares
/// ([`AdapterMeta`]); flatten a [`TargetSpec`] into it for the fields that choose modules. All fields must
/// be serialized, also at their defaults: what is not is taken for unknown.
pub trait AdapterMethod: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The `peft_type` of the config, such as `LORA`.
    const PEFT_TYPE: &'static str;

    /// Which modules the method adapts.
    fn targets(&self) -> &TargetSpec;

    /// Which modules the method adapts, to be made definite for one model.
    fn targets_mut(&mut self) -> &mut TargetSpec;

    /// The modules to adapt when a config names none, on a model of this `model_type`.
    ///
    /// PEFT has a table of them for each method. A method that says nothing has LoRA's.
    fn default_targets(&self, model_type: &str) -> Option<ModuleNames> {
        lora_targets(model_type)
    }

    /// Fills in the other fields that a config leaves open and the kind of model decides, such as IA3's `feedforward_modules`;
    /// called when the sites are known, before [`AdapterMethod::settle`].
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) when a field must be set because such a model has no usual value.
    fn fill_defaults(&mut self, _model_type: Option<&str>, _sites: &[Site]) -> Result<()> {
        Ok(())
    }

    /// Checks the config's own fields; called before anything is built.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) naming the field and the values it may have.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Checks where a checkpoint comes from, such as the version of PEFT that wrote it; called when one is read.
    ///
    /// # Errors
    /// When files of this origin cannot be read as they were meant.
    fn check_origin(&self, _meta: &AdapterMeta) -> Result<()> {
        Ok(())
    }

    /// Which biases are trained beside the adapter.
    fn bias(&self) -> BiasMode {
        BiasMode::None
    }

    /// Whether the method can adapt such a host.
    fn supports(&self, host: &HostSpec) -> bool;

    /// Records in the config what depends on the model's layers, such as `fan_in_fan_out`.
    fn settle(&mut self, _sites: &[Site]) {}

    /// Whether an adapter means something else when its sites come in another order (tying, seeds by position).
    fn order_matters(&self) -> bool {
        true
    }

    /// Builds one layer per site, in order. Seeing all sites at once is what makes weight tying possible.
    ///
    /// # Errors
    /// When a parameter cannot be made or read. Nothing is attached to the model then.
    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>>;

    /// `(rows, cols)` of the weight that these tensors of one module adapt, or `None` when they are not this method's.
    ///
    /// A method that implements this can be opened without its base model, for inspection and conversion. A side that the tensors
    /// do not tell is 0.
    fn host_shape(&self, _tensors: &SiteShapes) -> Option<(usize, usize)> {
        None
    }

    /// What the tensors of a layer are called below its module's path, such as `lora_A.weight`, and tensors of the whole adapter.
    ///
    /// Files that were not written by PEFT's `save_pretrained` have the adapter's name behind the first part of such a name
    /// (`lora_A.default.weight`). It is left out of the names in this list, and of no others. A name that is in the list with
    /// `.weight` and without it is read with it and written without.
    fn tensor_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether no tensor tells the shape of the weight that it adapts, so that a checkpoint cannot be opened without its base model.
    fn needs_base(&self) -> bool {
        false
    }
}

/// Any adapter method, type erased. Made with `From`, taken apart with [`BoxedMethod::downcast_ref`].
#[derive(Debug)]
pub struct BoxedMethod(Box<dyn Erased>);

trait Erased: Debug + Send + Sync {
    fn peft_type(&self) -> &'static str;
    fn targets(&self) -> &TargetSpec;
    fn targets_mut(&mut self) -> &mut TargetSpec;
    fn default_targets(&self, model_type: &str) -> Option<ModuleNames>;
    fn fill_defaults(&mut self, model_type: Option<&str>, sites: &[Site]) -> Result<()>;
    fn validate(&self) -> Result<()>;
    fn check_origin(&self, meta: &AdapterMeta) -> Result<()>;
    fn bias(&self) -> BiasMode;
    fn supports(&self, host: &HostSpec) -> bool;
    fn settle(&mut self, sites: &[Site]);
    fn order_matters(&self) -> bool;
    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>>;
    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)>;
    fn tensor_names(&self) -> &'static [&'static str];
    fn needs_base(&self) -> bool;
    fn to_json(&self) -> Result<Value>;
    fn clone_box(&self) -> Box<dyn Erased>;
    fn as_any(&self) -> &dyn Any;
}

impl<M: AdapterMethod> Erased for M {
    fn peft_type(&self) -> &'static str {
        M::PEFT_TYPE
    }
    fn targets(&self) -> &TargetSpec {
        AdapterMethod::targets(self)
    }
    fn targets_mut(&mut self) -> &mut TargetSpec {
        AdapterMethod::targets_mut(self)
    }
    fn default_targets(&self, model_type: &str) -> Option<ModuleNames> {
        AdapterMethod::default_targets(self, model_type)
    }
    fn fill_defaults(&mut self, model_type: Option<&str>, sites: &[Site]) -> Result<()> {
        AdapterMethod::fill_defaults(self, model_type, sites)
    }
    fn validate(&self) -> Result<()> {
        AdapterMethod::targets(self).validate()?;
        AdapterMethod::validate(self)
    }
    fn check_origin(&self, meta: &AdapterMeta) -> Result<()> {
        AdapterMethod::check_origin(self, meta)
    }
    fn bias(&self) -> BiasMode {
        AdapterMethod::bias(self)
    }
    fn supports(&self, host: &HostSpec) -> bool {
        AdapterMethod::supports(self, host)
    }
    fn settle(&mut self, sites: &[Site]) {
        AdapterMethod::settle(self, sites);
    }
    fn order_matters(&self) -> bool {
        AdapterMethod::order_matters(self)
    }
    fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        AdapterMethod::build(self, sites, params)
    }
    fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        AdapterMethod::host_shape(self, tensors)
    }
    fn tensor_names(&self) -> &'static [&'static str] {
        AdapterMethod::tensor_names(self)
    }
    fn needs_base(&self) -> bool {
        AdapterMethod::needs_base(self)
    }
    fn to_json(&self) -> Result<Value> {
        Ok(serde_json::to_value(self)?)
    }
    fn clone_box(&self) -> Box<dyn Erased> {
        Box::new(self.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl<M: AdapterMethod> From<M> for BoxedMethod {
    fn from(method: M) -> Self {
        Self(Box::new(method))
    }
}

impl Clone for BoxedMethod {
    fn clone(&self) -> Self {
        Self(self.0.clone_box())
    }
}

impl BoxedMethod {
    /// The `peft_type` of the config.
    pub fn peft_type(&self) -> &'static str {
        self.0.peft_type()
    }

    /// Which modules the method adapts.
    pub fn targets(&self) -> &TargetSpec {
        self.0.targets()
    }

    /// The config's own fields as JSON, without the shared ones.
    pub fn to_json(&self) -> Result<Value> {
        self.0.to_json()
    }

    /// Checks the config; see [`AdapterMethod::validate`].
    pub fn validate(&self) -> Result<()> {
        self.0.validate()
    }

    /// Which biases are trained beside the adapter.
    pub fn bias(&self) -> BiasMode {
        self.0.bias()
    }

    /// Whether an adapter cannot be opened without its base model; see [`AdapterMethod::needs_base`].
    pub fn needs_base(&self) -> bool {
        self.0.needs_base()
    }

    /// The method itself, if it is an `M`.
    pub fn downcast_ref<M: AdapterMethod>(&self) -> Option<&M> {
        self.0.as_any().downcast_ref()
    }

    pub(crate) fn check_origin(&self, meta: &AdapterMeta) -> Result<()> {
        self.0.check_origin(meta)
    }

    pub(crate) fn targets_mut(&mut self) -> &mut TargetSpec {
        self.0.targets_mut()
    }

    pub(crate) fn default_targets(&self, model_type: &str) -> Option<ModuleNames> {
        self.0.default_targets(model_type)
    }

    pub(crate) fn fill_defaults(&mut self, model_type: Option<&str>, sites: &[Site]) -> Result<()> {
        self.0.fill_defaults(model_type, sites)
    }

    pub(crate) fn supports(&self, host: &HostSpec) -> bool {
        self.0.supports(host)
    }

    /// That the method cannot adapt this host, and what it adapts.
    pub(crate) fn unsupported(&self, kind: HostKind, path: String) -> Error {
        let adapts = [(HostKind::Linear, "Linear and Conv1D"), (HostKind::Embedding, "Embedding")];
        let adapts = adapts.iter().filter(|(kind, _)| self.supports(&HostSpec::new(*kind, 1, 1)));
        let adapts = adapts.map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
        Error::UnsupportedHost { method: self.peft_type(), kind, path, adapts }
    }

    pub(crate) fn settle(&mut self, sites: &[Site]) {
        self.0.settle(sites);
    }

    pub(crate) fn order_matters(&self) -> bool {
        self.0.order_matters()
    }

    /// Builds the layers, and holds the method to one per site.
    pub(crate) fn build_all(
        &self,
        sites: &[Site],
        params: &mut ParamBuilder<'_>,
    ) -> Result<Vec<Arc<dyn AdapterLayer>>> {
        let layers = self.0.build(sites, params)?;
        if layers.len() != sites.len() {
            let (expected, found) = (sites.len(), layers.len());
            return Err(Error::LayerCount { method: self.peft_type(), expected, found });
        }
        Ok(layers)
    }

    pub(crate) fn host_shape(&self, tensors: &SiteShapes) -> Option<(usize, usize)> {
        self.0.host_shape(tensors)
    }

    pub(crate) fn tensor_names(&self) -> &'static [&'static str] {
        self.0.tensor_names()
    }
}
