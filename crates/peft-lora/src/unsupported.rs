//! Options of PEFT's LoRA that are not supported: they are written, and an error when they are set to what changes an adapter.

use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Declares fields that PEFT writes and that must have the values they are written with by default, and those that may have any.
macro_rules! unsupported {
    ($($field:ident = $default:tt),* $(,)?; any: $($any:ident = $value:tt),* $(,)?) => {
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(default)]
        pub(crate) struct Unsupported { $($field: Value,)* $($any: Value),* }

        impl Default for Unsupported {
            fn default() -> Self {
                Self { $($field: serde_json::json!($default),)* $($any: serde_json::json!($value)),* }
            }
        }

        impl Unsupported {
            pub(crate) fn check(&self) -> Result<()> {
                let default = Self::default();
                $(
                    let unset = self.$field.is_null() || self.$field == default.$field;
                    if !unset {
                        return Err(Error::config(format!(
                            "`{}` is {}, which is not supported; leave it at {}",
                            stringify!($field), self.$field, default.$field,
                        )));
                    }
                )*
                Ok(())
            }
        }
    };
}

unsupported! {
    alora_invocation_tokens = null,
    arrow_config = null,
    ensure_weight_tying = false,
    kasa_config = null,
    layer_replication = null,
    megatron_config = null,
    monteclora_config = null,
    target_parameters = null,
    trainable_token_indices = null,
    use_bdlora = null,
    use_qalora = false,
    velora_config = null;
    // PEFT looks at these with an option that is refused (`use_qalora`, `megatron_config`) or while it makes fresh factors of a kind
    // that is refused where it leaves something behind (`corda`, `lora_ga`, `loftq`).
    any:
    corda_config = null,
    eva_config = null,
    loftq_config = {},
    lora_ga_config = null,
    megatron_core = "megatron.core",
    qalora_group_size = 16,
}

/// Refuses an option that PEFT had before 0.4: layers of which only parts were adapted, with tensors of other shapes.
pub(crate) fn check_removed(unknown: &Map<String, Value>) -> Result<()> {
    match unknown.get("enable_lora").filter(|parts| !parts.is_null() && **parts != Value::Array(vec![])) {
        Some(parts) => Err(Error::config(format!(
            "`enable_lora` is {parts}, which PEFT before 0.4 had for layers that are several in one; it is not supported"
        ))),
        None => Ok(()),
    }
}
