//! Plan, build, then attach: the model is untouched unless every part of the adapter was made.

use crate::checkpoint::{BaseRecord, Keys};
use crate::error::preview;
use crate::slots::{Attachment, Replacement};
use crate::target::{nearest, resolve, saves};
use crate::torch_rng::TorchRng;
use crate::{
    Adaptable, AdapterConfig, BiasMode, BoxedMethod, Decomposer, Error, HostKind, HostRole, HostSpec, Matcher,
    ModuleNames, ParamBuilder, ParamKey, ParamStore, Persist, Result, Site, TensorSource, Walk, WalkMut,
};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One named instance of a method on a model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Adapter {
    /// The name it was added under.
    pub name: Arc<str>,
    /// Its config, with the targets as they were resolved on this model.
    pub config: AdapterConfig,
    /// Its parameters.
    pub params: ParamStore,
    /// The adapted modules in visit order, with what they are.
    pub sites: Vec<(String, HostSpec)>,
    /// The dtype that frozen tensors were rounded to, where a compact checkpoint says so.
    pub(crate) values: Option<DType>,
}

/// A host that an adapter needs something from: its weight, its bias, or both.
struct Module {
    path: String,
    spec: HostSpec,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

/// What an adapter will touch.
struct Plan {
    method: BoxedMethod,
    sites: Vec<Site>,
    /// `modules_to_save`: trained as a whole.
    saved: Vec<Module>,
    /// Trained biases.
    biases: Vec<Module>,
    /// The paths of all hosts that are not adapted.
    others: Vec<String>,
    /// Whether checkpoints hold the base weights of adapted embeddings (PEFT's `save_embedding_layers="auto"`).
    saves_embeddings: bool,
}

/// The hosts that a method would adapt, in visit order. Only looks.
///
/// # Errors
/// When the config is invalid, a target matches nothing, or a matched host is of a kind the method cannot adapt.
pub fn plan(model: &dyn Adaptable, method: &BoxedMethod) -> Result<Vec<Site>> {
    Ok(Plan::new(model, method.clone(), true)?.sites)
}

/// An adapter with every part made or read, and attached to nothing yet.
pub(crate) struct Built {
    pub(crate) adapter: Adapter,
    /// What it brings to each host, by path.
    pub(crate) parts: BTreeMap<String, Attachment>,
}

/// Makes an adapter for a model, and only looks at the model.
///
/// With a `source` every parameter is read from it; without, parameters are made fresh and `rng` feeds random initial values.
pub(crate) fn build(
    model: &dyn Adaptable,
    name: Arc<str>,
    mut config: AdapterConfig,
    source: Option<&dyn TensorSource>,
    rng: TorchRng,
    decomposer: &Decomposer,
) -> Result<Built> {
    let compact = config.meta.compact.take().filter(|_| source.is_some());
    if source.is_some() {
        config.method.check_origin(&config.meta)?;
    }
    // A compact checkpoint is of this crate and of no older one: its names are what they are.
    let keys = match source.filter(|_| compact.is_none()) {
        Some(source) => Some(Keys::new(source, &config.method)?.on(&hosts(model)?, &config.method)?),
        None => None,
    };
    let mut plan = Plan::new(model, config.method, source.is_none())?;
    let names = keys.as_ref().map(|keys| keys as &dyn TensorSource).or(source);
    let mut params = ParamBuilder::new(names).with_rng(rng).with_decomposer(decomposer);
    if let (Some(compact), Some(source)) = (compact, source) {
        // Before anything is computed from the weights.
        BaseRecord::read(source)?.check(&plan.sites, config.meta.base_model_name_or_path.as_deref())?;
        params = params.compact();
        plan.sites.iter_mut().for_each(|site| site.values = compact.values);
    }
    let built = plan.build(&mut params).and_then(|parts| Ok((parts, params.finish()?)));
    let (parts, params) = built.map_err(|error| match &keys {
        Some(keys) => plan.explain(keys.in_words_of_the_file(error), keys),
        None => error,
    })?;
    let config = AdapterConfig { method: plan.method, meta: config.meta };
    let sites = plan.sites.into_iter().map(|s| (s.path, s.spec)).collect();
    let values = compact.map(|compact| compact.values);
    Ok(Built { adapter: Adapter { name, config, params, sites, values }, parts })
}

/// Builds an adapter and attaches it, inactive. The model is untouched when this fails.
pub(crate) fn inject(
    model: &mut dyn Adaptable,
    name: &str,
    config: AdapterConfig,
    source: Option<&dyn TensorSource>,
    rng: TorchRng,
    decomposer: &Decomposer,
) -> Result<Adapter> {
    let Built { adapter, mut parts } = build(model, name.into(), config, source, rng, decomposer)?;
    model.visit_mut(&mut WalkMut::new(&mut |path, host| {
        if let Some(part) = parts.remove(path) {
            host.slots_mut().attach(adapter.name.clone(), part);
        }
        Ok(())
    }))?;
    Ok(adapter)
}

/// Every host with what it is, in visit order.
fn hosts(model: &dyn Adaptable) -> Result<Vec<(String, HostSpec)>> {
    let mut hosts = vec![];
    model.visit(&mut Walk::new(&mut |path, host| {
        hosts.push((path.to_owned(), host.spec()));
        Ok(())
    }))?;
    Ok(hosts)
}

impl Plan {
    fn new(model: &dyn Adaptable, mut method: BoxedMethod, fresh: bool) -> Result<Self> {
        method.validate()?;
        let hosts = hosts(model)?;
        if fresh && method.targets().filters_layers() && is_regex(method.targets().target_modules.as_ref()) {
            return Err(Error::config(
                "`layers_to_transform` has no effect on a regular expression in `target_modules`: put the layers into the expression",
            ));
        }
        *method.targets_mut() = resolve(&method, model.model_type(), &hosts)?;
        let matcher = Matcher::new(method.targets())?;
        let bias_mode = method.bias();
        let (mut sites, mut saved, mut biases) = (vec![], vec![], vec![]);
        model.visit(&mut Walk::new(&mut |path, host| {
            let spec = host.spec();
            let targeted = matcher.is_target(path, &spec)?;
            let (path, bias) = (path.to_owned(), host.bias().cloned());
            if targeted {
                // A norm hands its output to no adapter, whatever a method says it supports.
                if spec.kind == HostKind::Norm || !method.supports(&spec) {
                    return Err(method.unsupported(spec.kind, path));
                }
                sites.push(Site::new(path.clone(), spec.clone(), host.base().clone()));
            }
            if matcher.is_saved(&path) {
                saved.push(Module { path, weight: Some(host.base().stored()?.clone()), bias, spec });
            } else if bias.is_some() && (bias_mode == BiasMode::All || (bias_mode == BiasMode::Targets && targeted)) {
                biases.push(Module { path, weight: None, bias, spec });
            }
            Ok(())
        }))?;
        if fresh {
            every_name_matches(&method, &hosts)?;
        }
        if sites.is_empty() {
            let pattern = method.targets().target_modules.as_ref().map(ToString::to_string).unwrap_or_default();
            return Err(no_match(&pattern, &pattern, &method, &hosts));
        }
        method.fill_defaults(model.model_type(), &sites)?;
        method.settle(&sites);
        let saves_embeddings = saves_embeddings(&method, &hosts)?;
        let others = hosts.into_iter().map(|(path, _)| path).filter(|path| sites.iter().all(|s| s.path != *path));
        let others = others.collect();
        Ok(Self { method, sites, saved, biases, others, saves_embeddings })
    }

    /// An error about tensors of a checkpoint that lack or are left over, with how the config and the file differ as a whole.
    fn explain(&self, error: Error, keys: &Keys<'_>) -> Error {
        let plain = {
            let mut plain = &error;
            while let Error::At { error, .. } = plain {
                plain = error;
            }
            plain
        };
        let reason = match plain {
            Error::MissingTensor(name)
                if name.ends_with("base_layer.bias") && self.method.bias() == BiasMode::Targets =>
            {
                Some(
                    "PEFT 0.7 to 0.20 did not save such biases; with `bias` \"none\" in the config the rest is loaded"
                        .to_owned(),
                )
            }
            Error::MissingTensor(_) => {
                let empty = self.sites.iter().map(|site| &site.path).filter(|path| !keys.has_module(path));
                let empty: Vec<String> = empty.cloned().collect();
                let adapted = self.sites.len();
                (!empty.is_empty()).then(|| {
                    format!(
                        "it has none for {} of the {adapted} modules that the config selects: {}",
                        empty.len(),
                        preview(&empty)
                    )
                })
            }
            Error::UnexpectedTensors(_) => {
                let chosen = |path: &str| {
                    self.sites.iter().map(|s| &s.path).chain(self.saved.iter().map(|m| &m.path)).any(|p| p == path)
                };
                let others = self.others.iter().filter(|path| !chosen(path) && keys.has_module(path));
                let others: Vec<String> = others.cloned().collect();
                (!others.is_empty()).then(|| format!("the config does not select the modules {}", preview(&others)))
            }
            _ => None,
        };
        match reason {
            Some(reason) => error.because(reason),
            None => error,
        }
    }

    /// Makes or reads every part of the adapter, by the path of its host.
    fn build(&self, params: &mut ParamBuilder<'_>) -> Result<BTreeMap<String, Attachment>> {
        let mut parts: BTreeMap<String, Attachment> = BTreeMap::new();
        let layers = self.method.build_all(&self.sites, params)?;
        for (site, layer) in self.sites.iter().zip(layers) {
            let part = parts.entry(site.path.clone()).or_default();
            part.layer = Some(layer);
            part.weight = self.embedding_base(site, params)?.map(Replacement::Frozen);
        }
        for module in &self.saved {
            let part = parts.entry(module.path.clone()).or_default();
            part.weight = module.trained("weight", module.weight.as_ref(), params)?;
            part.bias = module.trained("bias", module.bias.as_ref(), params)?;
        }
        for module in &self.biases {
            let part = parts.entry(module.path.clone()).or_default();
            let name = if part.layer.is_some() { "base_layer.bias" } else { "bias" };
            part.bias = module.trained(name, module.bias.as_ref(), params)?;
        }
        Ok(parts)
    }

    /// The base weight of an adapted embedding as the checkpoint has it, where it differs from the model's.
    ///
    /// PEFT writes these weights beside the adapter and overwrites the model's with them on loading; here they stand in for the
    /// model's only while the adapter is active.
    fn embedding_base(&self, site: &Site, params: &mut ParamBuilder<'_>) -> Result<Option<Tensor>> {
        let key = ParamKey::site(&site.path, "base_layer.weight");
        let wanted = self.saves_embeddings && params.makes_derived() && site.spec.role != HostRole::Inner;
        if !wanted && !params.has(&key) {
            return Ok(None);
        }
        let base = site.base.stored()?;
        let (dtype, device) = (base.dtype(), base.device());
        let stored = params.frozen(key.clone(), base.shape(), dtype, device, Persist::Derived, || Ok(base.clone()))?;
        let differs = stored.ne(base)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? != 0.0;
        if differs {
            params.persist(&key, Persist::Always);
        }
        Ok(differs.then_some(stored))
    }
}

impl Module {
    fn trained(
        &self,
        name: &str,
        original: Option<&Tensor>,
        params: &mut ParamBuilder<'_>,
    ) -> Result<Option<Replacement>> {
        let Some(original) = original else { return Ok(None) };
        let key = ParamKey::site(&self.path, name);
        let param =
            params.trainable(key, original.shape(), self.spec.dtype, &self.spec.device, || Ok(original.copy()?))?;
        Ok(Some(Replacement::Trainable(param)))
    }
}

fn is_regex(names: Option<&ModuleNames>) -> bool {
    matches!(names, Some(names @ ModuleNames::Pattern(_)) if !names.is_all_linear())
}

/// PEFT's rule for writing base weights of adapted embeddings: the config names `embed_tokens` or `lm_head` outright.
fn saves_embeddings(method: &BoxedMethod, hosts: &[(String, HostSpec)]) -> Result<bool> {
    const NAMES: [&str; 2] = ["embed_tokens", "lm_head"];
    match &method.targets().target_modules {
        Some(ModuleNames::List(names)) => Ok(names.iter().any(|n| NAMES.contains(&n.as_str()))),
        Some(ModuleNames::Pattern(_)) => {
            let matcher = Matcher::new(method.targets())?;
            let ends =
                hosts.iter().filter(|(path, _)| path.rsplit('.').next().is_some_and(|leaf| NAMES.contains(&leaf)));
            ends.into_iter().try_fold(false, |any, (path, spec)| Ok(any || matcher.is_target(path, spec)?))
        }
        None => Ok(false),
    }
}

/// A name in a list that selects nothing is a mistake, even when others select something.
fn every_name_matches(method: &BoxedMethod, hosts: &[(String, HostSpec)]) -> Result<()> {
    let targets = method.targets();
    if let Some(ModuleNames::List(names)) = &targets.target_modules {
        for name in names {
            let one = crate::TargetSpec { target_modules: Some(ModuleNames::list([name])), ..targets.clone() };
            let one = Matcher::new(&one)?;
            if !hosts.iter().try_fold(false, |any, (path, spec)| Ok::<_, Error>(any || one.is_target(path, spec)?))? {
                return Err(no_match(&format!("`{name}`"), name, method, hosts));
            }
        }
    }
    for name in targets.modules_to_save.iter().flatten() {
        if !hosts.iter().any(|(path, _)| saves(name, path)) {
            return Err(no_match(&format!("`{name}` of modules_to_save"), name, method, hosts));
        }
    }
    Ok(())
}

fn no_match(pattern: &str, wanted: &str, method: &BoxedMethod, hosts: &[(String, HostSpec)]) -> Error {
    let adaptable: Vec<_> = hosts.iter().filter(|(_, spec)| spec.kind != HostKind::Norm).cloned().collect();
    let (suggestion, available) = nearest(wanted.trim_matches('`'), &adaptable);
    let mut pattern = pattern.to_owned();
    if let Some(layers) = method.targets().layers_to_transform.as_ref().filter(|_| method.targets().filters_layers()) {
        pattern.push_str(&format!(" in the layers {:?}", layers.as_slice()));
    }
    Error::NoTargetMatched { pattern, suggestion, available }
}
