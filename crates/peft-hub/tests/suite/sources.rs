//! Names, and texts that are none.

use crate::support::assert_says;
use peft_hub::{RepoRef, Source};
use proptest::prelude::*;

#[test]
fn names_are_taken_apart() {
    for (text, id, revision, subfolder) in [
        ("user/name", "user/name", "main", None),
        ("gpt2", "gpt2", "main", None),
        ("user/name@v1.0", "user/name", "v1.0", None),
        ("user/name@refs/pr/12", "user/name", "refs/pr/12", None),
        ("user/name@refs/pr/12/a/b", "user/name", "refs/pr/12", Some("a/b")),
        ("user/name@feature%2Fx/a", "user/name", "feature/x", Some("a")),
        ("user/name/a/b", "user/name", "main", Some("a/b")),
        ("hf://user/name@dev/a", "user/name", "dev", Some("a")),
        ("https://huggingface.co/user/name", "user/name", "main", None),
        ("https://huggingface.co/user/name/tree/dev/a/b?x=1", "user/name", "dev", Some("a/b")),
    ] {
        let repo: RepoRef = text.parse().unwrap();
        assert_eq!((&*repo.id, &*repo.revision, repo.subfolder.as_deref()), (id, revision, subfolder), "{text}");
    }
    let pinned: RepoRef = "u/n@0123456789abcdef0123456789abcdef01234567".parse().unwrap();
    assert!(pinned.is_pinned() && !RepoRef::new("u/n").unwrap().is_pinned());
}

#[test]
fn other_texts_are_refused_with_what_was_tried() {
    for text in ["/no/such/folder", "./adapter", "../adapter", "adapter/", "~/adapter", "C:\\adapter"] {
        assert_says(&Source::parse(text).unwrap_err(), &[text, "no such folder"]);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_says(&Source::parse(file.path().to_str().unwrap()).unwrap_err(), &["this is a file", "folder"]);
    for text in [
        "",
        "user//name",
        "us er/name",
        "user/name@",
        "user/na--me",
        "-user/name",
        "user/name.git",
        "a/b@x y",
        "user/name/../x",
        "user/name@../x",
        "user/é",
        &format!("u/{}", "n".repeat(97)),
        "u/n@refs/../x",
        "u/n@a?b",
    ] {
        let error = Source::parse(text).unwrap_err();
        assert_says(&error, &["no such folder", "Hub"]);
    }
}

proptest! {
    /// Any text is a source or an error, and a source names nothing outside its place.
    #[test]
    fn any_text_is_understood_or_refused(text in "[a-zA-Z0-9./@\\-_%\\\\:~ é\u{0}]{0,30}") {
        if let Ok(repo) = text.parse::<RepoRef>() {
            let all = format!("{}/{}/{}", repo.id, repo.revision, repo.subfolder.unwrap_or_default());
            prop_assert!(!all.split('/').any(|part| part == ".."), "{}", all);
            prop_assert!(!all.contains('\\') && !all.contains('\u{0}'), "{}", all);
            prop_assert!(repo.id.split('/').all(|part| !part.is_empty()));
        }
    }
}
