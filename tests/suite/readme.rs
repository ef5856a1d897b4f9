//! The README names the commands that are run.

#[test]
fn the_two_commands_are_in_the_readme() {
    let readme = include_str!("../../README.md");
    for command in ["cargo run --example quickstart", "cargo test --workspace"] {
        assert!(readme.lines().any(|line| line == command), "README.md does not name `{command}`");
    }
}
