//! Options of PEFT's LoRA that are not supported: they are written, and an error when they are set.

use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Declares fields that PEFT writes and that must have the values they are written with by default.
macro_rules! unsupported {
    ($($field:ident = $default:tt),* $(,)?) => {
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(default)]
        pub(crate) struct Unsupported { $($field: Value),* }

        impl Default for Unsupported {
            fn default() -> Self {
                Self { $($field: serde_json::json!($default)),* }
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
    corda_config = null,
    ensure_weight_tying = false,
    eva_config = null,
    kasa_config = null,
    layer_replication = null,
    loftq_config = {},
    lora_ga_config = null,
    megatron_config = null,
    megatron_core = "megatron.core",
    monteclora_config = null,
    qalora_group_size = 16,
    target_parameters = null,
    trainable_token_indices = null,
    use_bdlora = null,
    use_qalora = false,
    velora_config = null,
}
