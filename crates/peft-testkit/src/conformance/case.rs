//! A config on a tiny model.

use super::{Law, LawBroken};
use crate::assert::values;
use crate::tiny::{TinyModel, TinySpec, noise};
use candle_core::{DType, Result as CandleResult, Tensor, Var};
use peft_core::{AdapterConfig, AdapterMethod, ModuleNames, PeftModel, Registry, Result};
use std::fmt;

/// The name of the adapter that laws are checked on.
pub(super) const NAME: &str = "default";

/// A config, the model it is tried on, and what the config's author claims of it.
#[derive(Clone, Debug)]
pub struct Case {
    pub(super) registry: Registry,
    pub(super) config: AdapterConfig,
    /// The same config with targets that no model has.
    pub(super) misdirected: AdapterConfig,
    pub(super) spec: TinySpec,
    pub(super) starts_as_identity: bool,
    pub(super) exact_gradient: bool,
    seed: u64,
}

impl Case {
    /// A method on the default tiny model. It is taken to start as the identity.
    ///
    /// # Errors
    /// When the method cannot be registered.
    pub fn new<M: AdapterMethod>(method: M) -> Result<Self> {
        let mut registry = Registry::new();
        registry.register::<M>()?;
        let mut misdirected = method.clone();
        misdirected.targets_mut().target_modules = Some(ModuleNames::list(["no_such_module"]));
        Ok(Self {
            registry,
            config: method.into(),
            misdirected: misdirected.into(),
            spec: TinySpec::default(),
            starts_as_identity: true,
            exact_gradient: true,
            seed: 7,
        })
    }

    /// The same case on another model.
    pub fn on(mut self, spec: TinySpec) -> Self {
        self.spec = spec;
        self
    }

    /// The same case for a config whose fresh adapters change something: law 3 does not apply.
    pub fn not_identity(mut self) -> Self {
        self.starts_as_identity = false;
        self
    }

    /// The same case for a method whose backward holds a part of the output constant by definition, as DoRA does with its norms: law 7
    /// asks that gradients arrive, and their values are the method's own tests' concern.
    pub fn approximate_gradient(mut self) -> Self {
        self.exact_gradient = false;
        self
    }

    /// The same case with another seed for initial values and for the changes that stand for training.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks all laws, and stops at the first that is broken.
    ///
    /// # Errors
    /// [`LawBroken`] naming the law, where, and how.
    pub fn check(&self) -> Result<(), LawBroken> {
        Law::ALL.into_iter().try_for_each(|law| law.check(self))
    }

    /// The base model without adapters. Its head has a weight of its own, so that any of its layers can be merged.
    pub(super) fn base(&self) -> Result<PeftModel<TinyModel>> {
        let mut model = PeftModel::new(self.spec.build()?).with_init_seed(self.seed);
        model.untie()?;
        Ok(model)
    }

    /// The base model in a process of its own: an adapter that is loaded must not depend on random numbers.
    pub(super) fn elsewhere(&self) -> Result<PeftModel<TinyModel>> {
        Ok(self.base()?.with_init_seed(!self.seed))
    }

    /// The model with a fresh adapter.
    pub(super) fn fresh(&self) -> Result<PeftModel<TinyModel>> {
        let mut model = self.base()?;
        model.add_adapter(NAME, self.config.clone())?;
        Ok(model)
    }

    /// The model with an adapter that was changed as if by training, in inference mode.
    pub(super) fn trained(&self) -> Result<PeftModel<TinyModel>> {
        let mut model = self.fresh()?;
        self.stir(&model)?;
        model.eval()?;
        Ok(model)
    }

    /// Moves every trainable number of the active adapters.
    pub(super) fn stir(&self, model: &PeftModel<TinyModel>) -> CandleResult<()> {
        for (i, (_, var)) in model.trainable().into_iter().enumerate() {
            shift(&var, self.seed.wrapping_add(31 * (i as u64 + 1)))?;
        }
        Ok(())
    }

    pub(super) fn logits(&self, model: &PeftModel<TinyModel>) -> CandleResult<Tensor> {
        model.base().forward(&self.spec.ids()?)
    }
}

fn shift(var: &Var, seed: u64) -> CandleResult<()> {
    let change = noise(var.shape(), DType::F64, seed)?;
    var.set(&(var.to_dtype(DType::F64)? + change)?.to_dtype(var.dtype())?)
}

/// Whether two tensors hold equal numbers; `0.0` equals `-0.0`.
pub(super) fn equal(a: &Tensor, b: &Tensor) -> CandleResult<bool> {
    Ok(a.dims() == b.dims() && values(a)? == values(b)?)
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = &self.config.method;
        let fields = method.to_json().map_or_else(|e| e.to_string(), |fields| fields.to_string());
        write!(f, "{} {fields} on {:?}, seed {}", method.peft_type(), self.spec, self.seed)
    }
}
