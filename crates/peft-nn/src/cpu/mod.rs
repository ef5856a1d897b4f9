//! What the CPU kernels share: element types, access to a tensor's elements, and loops over rows.

mod element;
mod loops;
mod read;
pub(crate) mod simd;

pub(crate) use element::{Element, dispatch_float, sigmoid, sum};
pub(crate) use loops::{for_each_item, for_each_row, map, sum_rows};
pub(crate) use read::{read, value};
