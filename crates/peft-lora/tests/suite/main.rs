//! The tests of peft-lora, in one binary.
