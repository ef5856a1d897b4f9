//! The tests of peft-core, in one binary.
