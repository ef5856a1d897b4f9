//! The laws every adapter method obeys, with fixtures and tiny models.
//!
//! A method's author writes one test and learns whether the method keeps its promises:
//!
//! ```
//! # use candle_core::{DType, Result as CandleResult, Tensor};
//! # use peft_core::{AdapterLayer, AdapterMethod, HostKind, HostSpec, HostView, Mode, Param, ParamBuilder, ParamKey, Result, Site};
//! # use std::sync::Arc;
//! use peft_core::{ModuleNames, TargetSpec};
//! use peft_testkit::conformance::Case;
//! # #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
//! # struct Shift { #[serde(flatten)] targets: TargetSpec }
//! # #[derive(Debug)]
//! # struct ShiftLayer { column: Param, cols: usize }
//! # impl AdapterLayer for ShiftLayer {
//! #     fn forward(&self, _host: HostView<'_>, input: &Tensor, output: Tensor, mode: Mode) -> CandleResult<Tensor> {
//! #         let sums = input.sum_keepdim(candle_core::D::Minus1)?;
//! #         output + sums.broadcast_mul(&self.column.read(mode).to_dtype(input.dtype())?)?
//! #     }
//! #     fn delta_weight(&self, base: &Tensor) -> Result<Tensor> {
//! #         let column = self.column.read(Mode::Infer).unsqueeze(1)?.to_dtype(base.dtype())?;
//! #         Ok(column.broadcast_as(base.shape())?.contiguous()?)
//! #     }
//! # }
//! # impl AdapterMethod for Shift {
//! #     const PEFT_TYPE: &'static str = "SHIFT";
//! #     fn targets(&self) -> &TargetSpec { &self.targets }
//! #     fn targets_mut(&mut self) -> &mut TargetSpec { &mut self.targets }
//! #     fn supports(&self, host: &HostSpec) -> bool { host.kind == HostKind::Linear }
//! #     fn build(&self, sites: &[Site], params: &mut ParamBuilder<'_>) -> Result<Vec<Arc<dyn AdapterLayer>>> {
//! #         sites.iter().map(|site| {
//! #             let (key, rows) = (ParamKey::site(&site.path, "shift"), site.spec.rows);
//! #             let (dtype, device) = (site.spec.dtype, &site.spec.device);
//! #             let column = params.trainable(key, rows, dtype, device, || Ok(Tensor::zeros(rows, dtype, device)?))?;
//! #             Ok(Arc::new(ShiftLayer { column, cols: site.spec.cols }) as Arc<dyn AdapterLayer>)
//! #         }).collect()
//! #     }
//! # }
//!
//! let method = Shift { targets: TargetSpec::new(ModuleNames::list(["up_proj", "down_proj"])) };
//! Case::new(method)?.check()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`conformance`] holds the laws, [`gradient`] the comparison with finite differences they use, [`tiny`] and [`skeleton`] the
//! models, [`strategy`] what property tests draw from, [`fixture`] the files that PEFT wrote, and [`mod@assert`] comparisons of
//! tensors that say how far apart they are. [`hub`] is a Hub on loopback.

pub mod assert;
pub mod conformance;
pub mod fixture;
pub mod gradient;
pub mod hub;
pub mod skeleton;
pub mod strategy;
pub mod tiny;
