//! What peft-hub promises, against a Hub on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod concurrent;
mod fetching;
mod hostile;
mod interrupted;
mod offline;
mod pushing;
mod refusals;
mod secrets;
mod settings;
mod sources;
