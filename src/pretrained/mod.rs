//! Models with adapters by name.

mod base;
mod error;
mod publishing;

pub use base::BaseFolder;
pub use error::PretrainedError;

use crate::{Adapter, AdapterConfig, Error, PeftModel, Registry, TinyLlama};
use candle_core::{DType, Device};
use peft_core::checkpoint::{CONFIG_FILE, DEFAULT_ADAPTER, read_config_text};
use peft_hub::{Hub, Part, Progress, Snapshot, Source};
use peft_models::CausalLm;
use std::path::Path;
use std::sync::Arc;

/// Loads models and adapters by name: a local folder, or a repository on the Hugging Face Hub.
///
/// ```no_run
/// use candle_core::DType;
/// use candle_peft::Pretrained;
///
/// let model = Pretrained::new()?.with_base("user/base@v2").with_dtype(DType::BF16).load("user/adapter")?;
/// # Ok::<(), candle_peft::PretrainedError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pretrained {
    hub: Option<Hub>,
    progress: Option<Arc<dyn Progress>>,
    registry: Registry,
    base: Option<String>,
    dtype: Option<DType>,
    device: Device,
}

/// A model with its adapter in one line.
///
/// ```no_run
/// use candle_peft::{FromPretrained, PeftModel};
///
/// let model = PeftModel::from_pretrained("user/adapter")?; // its config names the base model
/// # Ok::<(), candle_peft::PretrainedError>(())
/// ```
pub trait FromPretrained: Sized {
    /// Loads an adapter and the base model that it was made for, in that model's dtype, on the CPU. The adapter is active, in
    /// inference mode. [`Pretrained`] does the same with options.
    ///
    /// # Errors
    /// As [`Pretrained::load`].
    fn from_pretrained(adapter: &str) -> Result<Self, PretrainedError>;

    /// Attaches another adapter by name. It becomes the only active one, in inference mode.
    ///
    /// # Errors
    /// As [`Pretrained::load_adapter`].
    fn load_pretrained(&mut self, name: &str, adapter: &str) -> Result<&Adapter, PretrainedError>;
}

impl FromPretrained for PeftModel<CausalLm> {
    fn from_pretrained(adapter: &str) -> Result<Self, PretrainedError> {
        Pretrained::new()?.load(adapter)
    }

    fn load_pretrained(&mut self, name: &str, adapter: &str) -> Result<&Adapter, PretrainedError> {
        Pretrained::new()?.load_adapter(self, name, adapter)
    }
}

impl Pretrained {
    /// The environment's Hub, this workspace's methods, and whatever base model an adapter names.
    ///
    /// # Errors
    /// Never, unless methods of this workspace were registered twice.
    pub fn new() -> Result<Self, PretrainedError> {
        let registry = crate::registry()?;
        Ok(Self { hub: None, progress: None, registry, base: None, dtype: None, device: Device::Cpu })
    }

    /// Another Hub than the environment's. Of the environment nothing is read then; otherwise it is when something is to be fetched.
    #[must_use]
    pub fn with_hub(self, hub: Hub) -> Self {
        Self { hub: Some(hub), ..self }
    }

    /// Reports what the environment's Hub transfers.
    #[must_use]
    pub fn with_progress(self, progress: impl Progress + 'static) -> Self {
        Self { progress: Some(Arc::new(progress)), ..self }
    }

    /// Other methods.
    #[must_use]
    pub fn with_registry(self, registry: Registry) -> Self {
        Self { registry, ..self }
    }

    /// A base model instead of the one that the adapter names.
    #[must_use]
    pub fn with_base(self, base: impl Into<String>) -> Self {
        Self { base: Some(base.into()), ..self }
    }

    /// The dtype to load the base model in, instead of its own.
    #[must_use]
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// Where to compute.
    #[must_use]
    pub fn with_device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// The methods.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The Hub.
    ///
    /// # Errors
    /// When the environment makes no sense.
    pub fn hub(&self) -> Result<Hub, PretrainedError> {
        let hub = self.hub.clone().map_or_else(Hub::from_env, Ok)?;
        Ok(self.progress.iter().fold(hub, |hub, progress| hub.with_progress(progress.clone())))
    }

    /// A model with an adapter, which is active, in inference mode.
    ///
    /// # Errors
    /// When one of them cannot be fetched or loaded, or they do not fit each other.
    pub fn load(&self, adapter: &str) -> Result<PeftModel<CausalLm>, PretrainedError> {
        let folder = self.folder(adapter, Part::Adapter)?;
        let base = self.base_for(self.base.as_deref(), &folder, Part::Model)?;
        let mut model = base.load(self.dtype, &self.device)?;
        self.attach(&mut model, DEFAULT_ADAPTER, &folder)?;
        Ok(model)
    }

    /// Fetches another adapter and attaches it to a model.
    ///
    /// # Errors
    /// When it cannot be fetched, and as [`Pretrained::attach`].
    pub fn load_adapter<'m>(
        &self,
        model: &'m mut PeftModel<CausalLm>,
        name: &str,
        adapter: &str,
    ) -> Result<&'m Adapter, PretrainedError> {
        self.attach(model, name, &self.folder(adapter, Part::Adapter)?)
    }

    /// Attaches another adapter to a model, as [`PeftModel::load_adapter`] does.
    ///
    /// # Errors
    /// As [`PeftModel::load_adapter`]; [`PretrainedError::OtherBase`] when it was made for another base model than this.
    pub fn attach<'m>(
        &self,
        model: &'m mut PeftModel<CausalLm>,
        name: &str,
        adapter: &Snapshot,
    ) -> Result<&'m Adapter, PretrainedError> {
        let reason = match model.load_adapter(name, adapter, &self.registry) {
            Ok(_) => return Ok(model.adapter(name)?),
            Err(error) => error,
        };
        // What is wrong with the adapter itself is no matter of its base model.
        let expected = self.config(adapter).ok().and_then(|config| config.meta.base_model_name_or_path);
        match (expected, model.base_name()) {
            (Some(expected), Some(given)) if expected != given => {
                Err(PretrainedError::OtherBase { expected, given: given.to_owned(), reason: Box::new(reason) })
            }
            _ => Err(reason.into()),
        }
    }

    /// The folder that a text names, fetched if need be.
    ///
    /// # Errors
    /// As [`Hub::get`].
    pub fn folder(&self, source: &str, part: Part) -> Result<Snapshot, PretrainedError> {
        self.find(Source::parse(source)?, part)
    }

    /// The folder of a base model: the one that is given, or the one that an adapter names, at the revision that it names.
    ///
    /// # Errors
    /// [`PretrainedError::NoBase`] and [`PretrainedError::LostBase`], and when a model that is given cannot be had.
    pub fn base_for(&self, given: Option<&str>, adapter: &Snapshot, part: Part) -> Result<BaseFolder, PretrainedError> {
        if let Some(given) = given {
            return self.base(given, part);
        }
        let meta = self.config(adapter)?.meta;
        let name = meta.base_model_name_or_path.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| PretrainedError::NoBase { adapter: adapter.name() })?;
        let lost = |error: peft_hub::Error| PretrainedError::LostBase {
            adapter: adapter.name(),
            base: name.clone(),
            reason: error.to_string(),
        };
        if name == TinyLlama::NAME {
            return self.base(&name, part);
        }
        let source = match (Source::parse(&name).map_err(lost)?, meta.revision) {
            (Source::Repo(repo), Some(revision)) => Source::Repo(repo.at(&revision).map_err(lost)?),
            (source, _) => source,
        };
        let found = self.find(source, part).map_err(|error| match error {
            PretrainedError::Hub(error) => lost(error),
            other => other,
        });
        Ok(BaseFolder::of(found?))
    }

    /// The folder of a base model. The embedded Llama's name is [`TinyLlama::NAME`].
    ///
    /// # Errors
    /// As [`Pretrained::folder`].
    pub fn base(&self, source: &str, part: Part) -> Result<BaseFolder, PretrainedError> {
        if source == TinyLlama::NAME && !Path::new(source).exists() {
            BaseFolder::embedded()
        } else {
            Ok(BaseFolder::of(self.folder(source, part)?))
        }
    }

    fn find(&self, source: Source, part: Part) -> Result<Snapshot, PretrainedError> {
        match source {
            // Nothing of the environment is needed then, so nothing of it can be wrong.
            Source::Folder(folder) => Ok(Snapshot::of_folder(folder)),
            Source::Repo(repo) => Ok(self.hub()?.fetch(&repo, part)?),
        }
    }

    fn config(&self, adapter: &Snapshot) -> Result<AdapterConfig, Error> {
        let path = adapter.path().join(CONFIG_FILE);
        let text = read_config_text(&path)?;
        self.registry.parse(&text).map_err(|e| e.at(path.display().to_string()))
    }
}
