//! Numbers as Python writes them: `lora_alpha` is an integer in most files, and PEFT's type for it.

use indexmap::IndexMap;
use serde::Serializer;
use serde_json::Number;

/// The number as an integer where it is one.
fn number(value: f64) -> Number {
    const EXACT: f64 = (1u64 << 53) as f64;
    let integer = value.fract() == 0.0 && value.abs() < EXACT;
    if integer { Number::from(value as i64) } else { Number::from_f64(value).unwrap_or_else(|| Number::from(0)) }
}

pub(crate) fn one<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&number(*value), serializer)
}

pub(crate) fn map<S: Serializer>(values: &IndexMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().map(|(key, value)| (key, number(*value))))
}
