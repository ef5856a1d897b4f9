//! Keys of `rank_pattern` and `alpha_pattern` for single modules.

/// The key that takes the module at `path` and no other of `paths`.
///
/// PEFT reads a key as a regular expression that the end of a path must match, from its start or from after a dot. A full path is
/// such an expression for itself, and is written as PEFT writes it. Where it would take another module too (`lm_head` takes
/// `model.lm_head`; a dot takes any character), the key is escaped and bound to the start.
pub(super) fn key<'a>(path: &str, paths: impl IntoIterator<Item = &'a str>) -> String {
    let literal = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if literal && !paths.into_iter().any(|other| other != path && takes(path, other)) {
        path.to_owned()
    } else {
        format!("^{}", fancy_regex::escape(path))
    }
}

/// Whether a path, read as a pattern, takes another path.
fn takes(pattern: &str, path: &str) -> bool {
    let (pattern, path) = (pattern.as_bytes(), path.as_bytes());
    let Some(start) = path.len().checked_sub(pattern.len()) else { return false };
    let (before, end) = path.split_at(start);
    let alike = |(p, c): (&u8, &u8)| *p == b'.' || p == c;
    before.last().is_none_or(|byte| *byte == b'.') && pattern.iter().zip(end).all(alike)
}
