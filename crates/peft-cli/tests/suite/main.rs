//! The tests of peft-cli, in one binary.
