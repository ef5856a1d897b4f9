//! The adapter files of llama.cpp: one GGUF file with the factors of every module.
//!
//! A module `w` has `w.lora_a` `(r, in)` and `w.lora_b` `(out, r)` as in PEFT, and adds `alpha / r` times their product, with one
//! `adapter.lora.alpha` for all and the rank of each pair. An embedding's `lora_a` is `(entries, r)`. Modules have llama.cpp's
//! names. Models whose rotary embedding llama.cpp computes on interleaved pairs have the rows of queries and keys in another
//! order than in transformers; so does `lora_b`. This is what `convert_lora_to_gguf.py` writes and `llama-adapter.cpp` reads.

use crate::architecture::{Architecture, Place};
use crate::factors::{Factors, Source, not_exportable};
use crate::{BaseModel, factors};
use candle_core::Tensor;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use peft_core::checkpoint::{DetachedAdapter, write_folder};
use peft_core::{Error, Result};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

const FORMAT: &str = "a GGUF adapter";

/// The `general.file_type` of files whose tensors are all f32.
const ALL_F32: u32 = 0;

/// An adapter in llama.cpp's format, in memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GgufAdapter {
    /// The `general.name`, for people.
    pub name: Option<String>,
    /// The `general.architecture`, which must be that of the base model's file.
    pub architecture: &'static str,
    /// The `adapter.lora.alpha`: each product is multiplied with this over its rank.
    pub alpha: f32,
    /// The factors in f32 by their names in the file.
    pub tensors: BTreeMap<String, Tensor>,
    /// Modules whose base weight the adapter's file holds. It is not exported: the server's own must be the same.
    pub assumed_base_weights: Vec<String>,
}

/// The same adapter for llama.cpp.
///
/// `alpha` is the largest rank. What a module's scale differs from `alpha / r` is multiplied into the left factor, with one
/// rounding to f32.
///
/// # Errors
/// [`Error::NotExportable`] naming the first module that the format cannot hold, or that llama.cpp would not apply.
pub fn to_gguf(adapter: &DetachedAdapter, base: &BaseModel) -> Result<GgufAdapter> {
    let Source { factors, assumed } = Source::of(adapter, base, FORMAT)?;
    let alpha = factors::largest_rank(&factors);
    let mut tensors = BTreeMap::new();
    for module in &factors {
        let weight = weight_name(module, base)?;
        let (a, b) = pair(module, base, alpha)?;
        tensors.insert(format!("{weight}.lora_a"), a);
        tensors.insert(format!("{weight}.lora_b"), b);
    }
    Ok(GgufAdapter {
        name: None,
        architecture: base.architecture.gguf_name(),
        alpha: alpha as f32,
        tensors,
        assumed_base_weights: assumed,
    })
}

impl GgufAdapter {
    /// The same adapter with a name.
    #[must_use]
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Writes the file, and the folders above it if need be.
    ///
    /// # Errors
    /// When it cannot be written; an older file is whole then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::model(path, "not the name of a file in UTF-8"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        write_folder(folder, &[(name, &self.bytes()?)])
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let text = |text: &str| Value::String(text.to_owned());
        let mut metadata = vec![
            ("general.architecture", text(self.architecture)),
            ("general.type", text("adapter")),
            ("adapter.type", text("lora")),
            ("adapter.lora.alpha", Value::F32(self.alpha)),
            ("general.file_type", Value::U32(ALL_F32)),
        ];
        metadata.extend(self.name.as_deref().map(|name| ("general.name", text(name))));
        let stored = |tensor| QTensor::quantize(tensor, GgmlDType::F32);
        let tensors: Vec<QTensor> = self.tensors.values().map(stored).collect::<Result<_, _>>()?;
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        let tensors: Vec<(&str, &QTensor)> = self.tensors.keys().map(String::as_str).zip(&tensors).collect();
        let mut file = Cursor::new(vec![]);
        gguf_file::write(&mut file, &metadata, &tensors)?;
        Ok(file.into_inner())
    }
}

/// The name of a module's weight in llama.cpp, if it applies adapters to it.
fn weight_name(module: &Factors, base: &BaseModel) -> Result<String> {
    // llama.cpp ties these whatever their config says.
    let tied = base.tied || matches!(base.architecture, Architecture::Gemma | Architecture::Gemma2);
    let refuse = |reason| Err(not_exportable(FORMAT, &module.path, reason));
    match module.place {
        Place::Block { index, module } => Ok(format!("blk.{index}.{}.weight", module.gguf)),
        Place::Positions => refuse("llama.cpp does not apply it"),
        _ if tied => refuse("embedding and output head share one weight, and llama.cpp cannot adapt one of them alone"),
        Place::Tokens => Ok("token_embd.weight".to_owned()),
        Place::Head => Ok("output.weight".to_owned()),
    }
}

/// `lora_a` and `lora_b` of one module.
fn pair(module: &Factors, base: &BaseModel, alpha: usize) -> Result<(Tensor, Tensor)> {
    let a = module.a()?;
    let b = module.scaled_b(module.scale * module.rank() as f64 / alpha as f64)?;
    Ok(match module.place {
        Place::Tokens | Place::Positions => (b, a.t()?.contiguous()?),
        _ => (a, reordered(module, b, base)?),
    })
}

/// A left factor with its rows in llama.cpp's order.
fn reordered(module: &Factors, b: Tensor, base: &BaseModel) -> Result<Tensor> {
    let interleaved = matches!(base.architecture, Architecture::Llama | Architecture::Mistral);
    let heads = match module.place {
        Place::Block { module, .. } if interleaved => match module.gguf {
            "attn_q" => base.heads,
            "attn_k" => base.kv_heads,
            _ => return Ok(b),
        },
        _ => return Ok(b),
    };
    let (rows, r) = b.dims2()?;
    if !rows.is_multiple_of(2 * heads) {
        return Err(not_exportable(
            FORMAT,
            &module.path,
            format!("its {rows} outputs are not pairs of features in {heads} heads; is this the right base model?"),
        ));
    }
    // transformers rotates feature i of a head with feature i + half; llama.cpp has the two side by side.
    Ok(b.reshape((heads, 2, rows / heads / 2, r))?.transpose(1, 2)?.contiguous()?.reshape((rows, r))?)
}
