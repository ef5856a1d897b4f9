//! PEFT's adapter folders: `adapter_config.json` beside `adapter_model.safetensors`. And compact ones of this crate's own.

mod compact;
mod detached;
mod order;
mod read;
mod write;

pub(crate) use compact::{BASE_TENSORS, BaseRecord};
pub use compact::{COMPACT_FILE, Compact, Layout};
pub(crate) use detached::WHOLE_MODULE_NAMES;
pub use detached::{DetachedAdapter, DetachedSite};
pub use read::{SafetensorsFile, read_adapter};
pub use write::{write_adapter, write_folder, write_tensors};

/// The file with the method's config.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The file with the adapter's tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The name whose files lie in the adapter folder itself; others get a folder of their own below it.
pub const DEFAULT_ADAPTER: &str = "default";
