//! What the CPU kernels share: element types, access to a tensor's elements, vector instructions, and loops on several threads.

mod element;
mod loops;
mod read;
pub(crate) mod simd;
mod sixteen;

pub(crate) use element::{Element, dispatch_float};
pub(crate) use loops::{Columns, ELEMENTS_PER_TASK, Rows, for_each_item, for_each_row, map, map_rows, sum_columns};
pub(crate) use read::{elements, read, read_strided, value};
