//! What an adapter folder holds.

use crate::args::InspectArgs;
use anyhow::Result;
use candle_core::Device;
use candle_peft::core::TensorSource;
use candle_peft::core::checkpoint::{DEFAULT_ADAPTER, DetachedAdapter, DetachedSite, read_adapter};
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::{BaseFolder, Registry};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

#[derive(Debug, Serialize)]
pub(in crate::commands) struct AdapterReport {
    dir: PathBuf,
    peft_type: &'static str,
    base_model: Option<String>,
    /// Whether the files hold only what was trained, and need their base model.
    compact: bool,
    config: Value,
    /// Fields of the config that the method does not have.
    unknown_fields: Vec<String>,
    /// Vectors shared by groups of modules; none for a method without sharing.
    groups: Option<usize>,
    /// None where the tensors do not tell them and no base model was given.
    modules: Option<Vec<Module>>,
    /// Numbers that training changes; tensors of whole modules included.
    trainable_parameters: Option<usize>,
    tensors: Vec<StoredTensor>,
    /// Bytes of tensor data.
    bytes: usize,
    /// The base model that the adapter was found to fit.
    fits: Option<String>,
}

#[derive(Debug, Serialize)]
struct Module {
    path: String,
    kind: String,
    /// The sides of the weight, where the adapter's tensors tell them.
    rows: Option<usize>,
    cols: Option<usize>,
    group: Option<usize>,
}

#[derive(Debug, Serialize)]
struct StoredTensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: usize,
}

impl AdapterReport {
    pub(super) fn new(dir: &Path, base: Option<&BaseFolder>, args: &InspectArgs, registry: &Registry) -> Result<Self> {
        let (config, file) = read_adapter(dir, registry)?;
        let mut adapter = None;
        if !config.method.needs_base() && config.meta.compact.is_none() {
            let detached = DetachedAdapter::from_source(config.clone(), &file);
            adapter = Some(detached.map_err(|error| error.at(file.path().display().to_string()))?);
        }
        if let Some(base) = base {
            let mut model = args.factors.on(base.load(None, &Device::Cpu)?);
            model
                .add_from_source(DEFAULT_ADAPTER, config.clone(), &file)
                .map_err(|error| error.at(dir.display().to_string()))?;
            adapter = Some(adapter.map_or_else(|| model.detached(DEFAULT_ADAPTER), Ok)?);
        }
        let mut tensors = Vec::new();
        for name in file.names() {
            let Some(tensor) = file.load(&name, &Device::Cpu)? else { continue };
            let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
            let (dtype, shape) = (tensor.dtype().as_str(), tensor.dims().to_vec());
            tensors.push(StoredTensor { name, dtype, shape, bytes });
        }
        let sites = adapter.as_ref().map(|adapter| &adapter.sites);
        let tinylora = config.method.downcast_ref::<TinyLoraConfig>();
        let groups = sites.and_then(|sites| Some(tinylora?.groups(sites.len())));
        let module = |(index, site): (usize, &DetachedSite)| Module {
            path: site.path.clone(),
            kind: site.spec.kind.to_string(),
            rows: side(site.spec.rows),
            cols: side(site.spec.cols),
            group: groups.as_ref().map(|groups| groups.of(index)),
        };
        Ok(Self {
            dir: dir.to_owned(),
            peft_type: config.method.peft_type(),
            compact: config.meta.compact.is_some(),
            base_model: config.meta.base_model_name_or_path.clone(),
            config: serde_json::from_str(&config.to_json()?)?,
            unknown_fields: config.meta.unknown.keys().cloned().collect(),
            groups: groups.as_ref().map(|groups| groups.count()),
            modules: sites.map(|sites| sites.iter().enumerate().map(module).collect()),
            trainable_parameters: adapter.as_ref().map(DetachedAdapter::trainable_count),
            bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
            tensors,
            fits: base.map(|base| base.name().to_owned()),
        })
    }
}

/// One side of a weight; 0 stands for one that is not known.
fn side(length: usize) -> Option<usize> {
    (length > 0).then_some(length)
}

impl fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "adapter     {}", self.dir.display())?;
        writeln!(f, "method      {}", self.peft_type)?;
        writeln!(f, "base        {}", self.base_model.as_deref().unwrap_or("not named"))?;
        if let Some(fits) = &self.fits {
            writeln!(f, "fits        {fits}")?;
        }
        if self.compact {
            writeln!(f, "layout      compact: factors are left out, and made again of the base model")?;
        }
        if let Some(targets) = self.config.get("target_modules").filter(|targets| !targets.is_null()) {
            writeln!(f, "targets     {targets}")?;
        }
        if !self.unknown_fields.is_empty() {
            writeln!(f, "unknown     {}", self.unknown_fields.join(", "))?;
        }
        if let Some(groups) = self.groups {
            writeln!(f, "groups      {groups}")?;
        }
        if let Some(parameters) = self.trainable_parameters {
            writeln!(f, "parameters  {parameters}")?;
        }
        match &self.modules {
            Some(modules) => writeln!(f, "modules     {}", modules.len())?,
            None => writeln!(f, "modules     the tensors do not tell; pass the base model with --base to see them")?,
        }
        for (shape, count) in self.shapes() {
            writeln!(f, "  {count:4} x {shape}")?;
        }
        write!(f, "tensors     {}, {} bytes; --json lists every module and tensor", self.tensors.len(), self.bytes)
    }
}

impl AdapterReport {
    /// Last names, kinds and sizes of the modules with how many there are of each, in the order they first occur.
    fn shapes(&self) -> Vec<(String, usize)> {
        let mut shapes: Vec<(String, usize)> = vec![];
        for Module { path, kind, rows, cols, .. } in self.modules.iter().flatten() {
            let name = path.rsplit('.').next().unwrap_or(path);
            let side = |length: &Option<usize>| length.map_or("?".to_owned(), |length| length.to_string());
            let shape = format!("{name}  {kind} {}x{}", side(rows), side(cols));
            match shapes.iter_mut().find(|(known, _)| *known == shape) {
                Some((_, count)) => *count += 1,
                None => shapes.push((shape, 1)),
            }
        }
        shapes
    }
}
