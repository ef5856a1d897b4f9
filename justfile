# Every check a change must pass.
check:
    .ci/run

# The tests alone.
test:
    cargo test --workspace

# The embedded tiny Llama, trained again from nothing.
tiny-llama:
    cargo run --example train_tiny_llama -- assets/tiny-llama
