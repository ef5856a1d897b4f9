//! `adapter_config.json`: the fields every PEFT config shares around the fields of one method.

use crate::checkpoint::Compact;
use crate::{BoxedMethod, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The version of PEFT whose file format this crate writes.
pub const PEFT_VERSION: &str = "0.21.2";

/// The values `task_type` may have.
const TASK_TYPES: [&str; 6] =
    ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];

/// The fields that every PEFT config has, whatever its method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AdapterMeta {
    /// `CAUSAL_LM`, …, or none.
    pub task_type: Option<String>,
    /// The class of the base model, where PEFT could not tell the task.
    pub auto_mapping: Option<Value>,
    /// The version that wrote the file.
    pub peft_version: Option<String>,
    /// Name or folder of the base model; informational.
    pub base_model_name_or_path: Option<String>,
    /// Revision of the base model.
    pub revision: Option<String>,
    /// Whether the adapter was saved for inference; checkpoints always say so.
    pub inference_mode: bool,
    /// How the tensors are made that a compact checkpoint leaves out; `None` for files as PEFT lays them out, and for an adapter that is
    /// attached to a model.
    #[serde(skip)]
    pub compact: Option<Compact>,
    /// Fields that no known version of the method has; kept as they are.
    #[serde(skip)]
    pub unknown: Map<String, Value>,
}

impl Default for AdapterMeta {
    fn default() -> Self {
        Self {
            task_type: Some("CAUSAL_LM".into()),
            auto_mapping: None,
            peft_version: Some(PEFT_VERSION.into()),
            base_model_name_or_path: None,
            revision: None,
            inference_mode: true,
            compact: None,
            unknown: Map::new(),
        }
    }
}

/// A whole `adapter_config.json`: a method and what surrounds it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdapterConfig {
    /// The method with its own fields.
    pub method: BoxedMethod,
    /// The shared fields.
    pub meta: AdapterMeta,
}

impl<M: Into<BoxedMethod>> From<M> for AdapterConfig {
    fn from(method: M) -> Self {
        Self { method: method.into(), meta: AdapterMeta::default() }
    }
}

impl AdapterConfig {
    /// The JSON that PEFT writes: keys sorted, two spaces of indent, no newline at the end.
    pub fn to_json(&self) -> Result<String> {
        let mut all = self.meta.unknown.clone();
        for part in [self.method.to_json()?, serde_json::to_value(&self.meta)?] {
            if let Value::Object(fields) = part {
                all.extend(fields);
            }
        }
        if let Some(compact) = self.meta.compact {
            compact.put(&mut all);
        }
        all.insert("peft_type".into(), self.method.peft_type().into());
        all.sort_keys();
        Ok(serde_json::to_string_pretty(&all)?)
    }

    /// Puts together a parsed method and the fields of the file around it.
    pub(crate) fn from_parts(method: BoxedMethod, mut fields: Map<String, Value>) -> Result<Self> {
        let compact = Compact::take(&mut fields)?;
        // A file that does not name its task has none; the default is for configs made here.
        let absent =
            AdapterMeta { task_type: None, peft_version: None, inference_mode: false, ..AdapterMeta::default() };
        let mut shared = match serde_json::to_value(&absent)? {
            Value::Object(shared) => shared,
            _ => Map::new(),
        };
        let own = method.to_json()?;
        let mut unknown = Map::new();
        for (key, value) in fields {
            if let Some(field) = shared.get_mut(&key) {
                // To PEFT a flag that is null is not set.
                if !(value.is_null() && field.is_boolean()) {
                    *field = value;
                }
            } else if own.get(&key).is_none() && key != "peft_type" {
                unknown.insert(key, value);
            }
        }
        let mut meta: AdapterMeta = serde_json::from_value(Value::Object(shared))?;
        (meta.unknown, meta.compact) = (unknown, compact);
        if let Some(task) = meta.task_type.as_deref().filter(|t| !TASK_TYPES.contains(t)) {
            return Err(Error::config(format!(
                "`task_type` is `{task}`; it must be null or one of {}",
                TASK_TYPES.join(", ")
            )));
        }
        Ok(Self { method, meta })
    }
}
