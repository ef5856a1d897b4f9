//! What the CPU kernels share: element types, access to a tensor's elements, vector instructions, and loops on several threads.

mod element;
pub(crate) mod gemm;
mod loops;
mod matmul;
mod operand;
mod read;
mod rows;
pub(crate) mod simd;
mod sixteen;

pub(crate) use element::{Element, dispatch_float};
pub(crate) use loops::{ELEMENTS_PER_TASK, for_each_item, for_each_row, map};
pub(crate) use matmul::{matmul, products};
pub(crate) use operand::Operand;
pub(crate) use read::{elements, read, read_strided, value};
pub(crate) use rows::{Rows, Scratch, column_sums, map_rows};
