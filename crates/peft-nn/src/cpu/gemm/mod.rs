//! Matrix products with f32 arithmetic, for operands of f32, bf16 and f16.
//!
//! The matrices of a frozen model are far larger than the activations they meet, so nothing here rearranges a weight as a whole: in
//! `x W^T` the rows of W are read as they lie, an element at a time against a vector of tokens; in `g W` its rows are copied, piece by
//! piece, into panels that fit a core's cache. 16-bit weights are widened on that way.
//!
//! Every element of a product is the sum of blocks of [`DEPTH`] terms, each block added up in order: the same bits for any number of
//! threads, for two tokens or many, and with registers of any width. [`row_product`](fn@row_product) adds up a block in another order, that of the lanes of
//! a register, and rearranges nothing: it is as fast as memory for a single token, and inference takes it for any number of tokens,
//! so that the bits of a token do not depend on how many there are. It has four fifths of the speed of the tiles for many.

mod dot;
mod matrix;
mod pack;
mod product;
mod row_product;
mod scratch;
#[cfg(test)]
mod tests;
mod tile;

pub(crate) use matrix::{Matrix, Values};
pub(crate) use pack::Panels;
pub(crate) use product::{ByRows, product, product_by_rows};
pub(crate) use row_product::row_product;
pub(crate) use scratch::Scratch;
pub(crate) use tile::{Destination, Strided, panel_product, tile_rows};

/// Terms that are added up in registers before they are added to memory: as many as leave a tile's rows in the first-level cache and
/// a few panels in the second.
pub(crate) const DEPTH: usize = 768;
