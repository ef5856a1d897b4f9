//! The heart of candle-peft: what an adapter method is, where it attaches, and how it is stored.
//!
//! A *host* is a layer that can be adapted; a *site* is a host at a path; a *method* is a validated config (LoRA, TinyLoRA, one
//! of your own); an *adapter* is one named instance of a method on a model; an *adapter layer* is its part at one site; a *delta*
//! is the weight change it stands for.
//!
//! - A model is built from hosts ([`nn::Linear`], [`nn::Embedding`], …) and lists them with [`adaptable!`].
//! - A method implements [`AdapterMethod`]; its layers implement [`AdapterLayer`]. A [`Registry`] finds methods by the
//!   `peft_type` of a config.
//! - [`PeftModel`] holds a model with its adapters: add, activate, train, merge, save, load.
//!
//! Files have the names and the layout of Python's PEFT, so adapters go both ways.

mod adapter;
pub mod checkpoint;
mod config;
mod decomposer;
mod dropout;
mod error;
mod factor_cache;
mod factors;
mod frozen_factors;
mod host;
mod inject;
pub mod linalg;
mod merge;
mod method;
mod model;
pub mod nn;
mod params;
mod projection;
mod registry;
mod slots;
mod target;
pub mod torch_rng;
mod visit;
mod weight_hash;

pub use adapter::{AdapterLayer, HostView, LoraFactors, Mode};
pub use config::{AdapterConfig, AdapterMeta, PEFT_VERSION};
pub use decomposer::{Decomposer, Decomposition, DecompositionProgress};
pub use dropout::Dropout;
pub use error::{Error, Result};
pub use factor_cache::{CACHE_VARIABLE, FactorCache};
pub use factors::{SingularValues, SvdFactors, adapter_dtype, value_dtype};
pub use frozen_factors::FrozenFactors;
pub use host::{BaseWeight, Host, HostKind, HostRole, HostSpec, WeightLayout};
pub use inject::{Adapter, plan};
pub use method::{AdapterMethod, BiasMode, BoxedMethod, Site, SiteShapes};
pub use model::{ParamCounts, PeftModel};
pub use params::{Param, ParamBuilder, ParamKey, ParamStore, Persist, TensorSource};
pub use peft_nn::LowRank;
pub use projection::Projection;
pub use registry::Registry;
pub use slots::AdapterSlots;
pub use target::{Matcher, ModuleNames, OneOrMany, TargetSpec, lora_targets};
pub use visit::{Adaptable, Walk, WalkMut};
pub use weight_hash::WeightHash;
