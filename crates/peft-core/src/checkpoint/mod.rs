//! PEFT's adapter folders: `adapter_config.json` beside `adapter_model.safetensors`, or `adapter_model.bin` in older ones. And compact
//! ones of this crate's own.

mod bounded;
mod compact;
mod detached;
mod keys;
mod order;
mod pickle;
mod read;
mod safetensors;
mod write;

pub use self::safetensors::SafetensorsFile;
pub(crate) use compact::{BASE_TENSORS, BaseRecord};
pub use compact::{COMPACT_FILE, Compact, Layout};
pub(crate) use detached::WHOLE_MODULE_NAMES;
pub use detached::{DetachedAdapter, DetachedSite};
pub(crate) use keys::Keys;
pub use pickle::PickleFile;
pub use read::{AdapterFile, read_adapter, read_config_text};
pub use write::{write_adapter, write_folder, write_tensors};

/// The file with the method's config.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The file with the adapter's tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The file with the adapter's tensors in folders that PEFT wrote before it wrote safetensors; read, and never written.
pub const PICKLE_FILE: &str = "adapter_model.bin";

/// The name whose files lie in the adapter folder itself; others get a folder of their own below it.
pub const DEFAULT_ADAPTER: &str = "default";
