//! A language model of a few hundred numbers with every kind of host.

use candle_core::{DType, Device, Module, Result, Shape, Tensor};
use peft_core::adaptable;
use peft_core::nn::{Embedding, LayerNorm, Linear, RmsNorm};
use peft_core::torch_rng::TorchRng;

/// Numbers in `[-0.5, 0.5)` that a seed determines, whatever the device or the dtype.
pub fn noise(shape: impl Into<Shape>, dtype: DType, seed: u64) -> Result<Tensor> {
    let shape = shape.into();
    let values = TorchRng::new(seed).uniform(-0.5, 0.5, shape.elem_count());
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// The sizes and properties of a [`TinyModel`]; equal specs build equal models.
#[derive(Clone, Debug, PartialEq)]
pub struct TinySpec {
    /// Number of token ids.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward blocks.
    pub inner: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Whether linear layers have biases; the output head never has one.
    pub bias: bool,
    /// Whether the output head shares the weight of the embedding.
    pub tied: bool,
    /// What the embedding multiplies its rows with.
    pub embed_scale: f64,
    /// The dtype of all weights.
    pub dtype: DType,
    /// The seed of all weights.
    pub seed: u64,
}

impl Default for TinySpec {
    fn default() -> Self {
        Self {
            vocab: 11,
            hidden: 6,
            inner: 8,
            layers: 2,
            bias: true,
            tied: false,
            embed_scale: 1.0,
            dtype: DType::F32,
            seed: 1,
        }
    }
}

impl TinySpec {
    /// The default spec with another dtype.
    pub fn of(dtype: DType) -> Self {
        Self { dtype, ..Self::default() }
    }

    /// Builds the model on the CPU.
    pub fn build(&self) -> Result<TinyModel> {
        let mut weights = Weights { spec: self, drawn: 0 };
        let embedding = weights.draw((self.vocab, self.hidden), 0.0)?;
        let layers = (0..self.layers).map(|_| TinyLayer::new(self, &mut weights)).collect::<Result<_>>()?;
        let norm = LayerNorm::new(weights.draw(self.hidden, 1.0)?, Some(weights.draw(self.hidden, 0.0)?), 1e-5);
        let head = if self.tied { embedding.clone() } else { weights.draw((self.vocab, self.hidden), 0.0)? };
        let embed_tokens = Embedding::new(embedding).input_embedding().scaled(self.embed_scale);
        Ok(TinyModel {
            model: TinyTrunk { embed_tokens, layers, norm },
            lm_head: Linear::new(head, None).output_head(),
        })
    }

    /// Token ids `(2, 4)` that use both ends of the vocabulary.
    pub fn ids(&self) -> Result<Tensor> {
        let last = self.vocab as u32 - 1;
        let ids: Vec<u32> = [0, last, 1, 3, 2, 2, 5, last].iter().map(|id| id % self.vocab as u32).collect();
        Tensor::from_vec(ids, (2, 4), &Device::Cpu)
    }
}

/// Draws each weight of a model from a seed of its own.
struct Weights<'a> {
    spec: &'a TinySpec,
    drawn: u64,
}

impl Weights<'_> {
    fn draw(&mut self, shape: impl Into<Shape>, around: f64) -> Result<Tensor> {
        self.drawn += 1;
        let seed = self.spec.seed.wrapping_mul(1009).wrapping_add(self.drawn);
        (noise(shape, DType::F32, seed)? + around)?.to_dtype(self.spec.dtype)
    }

    fn bias(&mut self, n: usize) -> Result<Option<Tensor>> {
        if self.spec.bias { self.draw(n, 0.0).map(Some) } else { Ok(None) }
    }
}

/// An embedding, blocks of a normalised feed-forward, a norm and a head.
///
/// | path | host |
/// |---|---|
/// | `model.embed_tokens` | embedding `(vocab, hidden)`, possibly scaled |
/// | `model.layers.N.input_layernorm` | RMSNorm |
/// | `model.layers.N.mlp.up_proj` | linear, stored `(inner, hidden)` |
/// | `model.layers.N.mlp.down_proj` | linear, stored `(inner, hidden)` as well: a Conv1D |
/// | `model.norm` | LayerNorm with a bias |
/// | `lm_head` | linear `(vocab, hidden)`, the output head |
#[derive(Clone, Debug)]
pub struct TinyModel {
    model: TinyTrunk,
    lm_head: Linear,
}

#[derive(Clone, Debug)]
struct TinyTrunk {
    embed_tokens: Embedding,
    layers: Vec<TinyLayer>,
    norm: LayerNorm,
}

#[derive(Clone, Debug)]
struct TinyLayer {
    input_layernorm: RmsNorm,
    mlp: TinyMlp,
}

#[derive(Clone, Debug)]
struct TinyMlp {
    up_proj: Linear,
    down_proj: Linear,
}

adaptable!(TinyModel: "tiny" { model, lm_head });
adaptable!(TinyTrunk { embed_tokens, layers, norm });
adaptable!(TinyLayer { input_layernorm, mlp });
adaptable!(TinyMlp { up_proj, down_proj });

impl TinyLayer {
    fn new(spec: &TinySpec, weights: &mut Weights<'_>) -> Result<Self> {
        Ok(Self {
            input_layernorm: RmsNorm::new(weights.draw(spec.hidden, 1.0)?, 1e-5),
            mlp: TinyMlp {
                up_proj: Linear::new(weights.draw((spec.inner, spec.hidden), 0.0)?, weights.bias(spec.inner)?),
                down_proj: Linear::from_transposed(
                    weights.draw((spec.inner, spec.hidden), 0.0)?,
                    weights.bias(spec.hidden)?,
                ),
            },
        })
    }
}

impl TinyModel {
    /// Logits `(.., vocab)` of token ids.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut xs = self.model.embed_tokens.forward(ids)?;
        for TinyLayer { input_layernorm, mlp } in &self.model.layers {
            let inner = mlp.up_proj.forward(&input_layernorm.forward(&xs)?)?.tanh()?;
            xs = (xs + mlp.down_proj.forward(&inner)?)?;
        }
        self.lm_head.forward(&self.model.norm.forward(&xs)?)
    }
}
