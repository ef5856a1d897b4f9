#![allow(clippy::unwrap_used, clippy::expect_used)]

mod candle_llama;
mod goldens;
mod support;
