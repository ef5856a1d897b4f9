//! What templates take from Python: methods of strings and dicts, and the tags of `transformers`.

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Replaces `{% generation %} … {% endgeneration %}`, which marks the assistant's text, by a block that always renders.
pub(super) fn without_generation_blocks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']).trim();
        match name {
            "generation" => text.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => text.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}

/// Calls a method that Jinja2 would find on the Python object behind the value.
pub(super) fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => string_method(state, value, text, method, args),
        (None, ValueKind::Map) => dict_method(value, method, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn dict_method(dict: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            let found = dict.get_item(key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        "keys" | "values" | "items" => {
            let () = from_args(args)?;
            let entries = dict.try_iter()?.map(|key| {
                let item = dict.get_item(&key)?;
                Ok(match method {
                    "keys" => key,
                    "values" => item,
                    _ => Value::from((key, item)),
                })
            });
            entries.collect::<Result<Vec<_>, Error>>().map(Value::from)
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn string_method(
    state: &mut State<'_, '_>,
    value: &Value,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let stripped = |c: char| chars.map_or(c.is_whitespace(), |chars| chars.contains(c));
            let text = if method == "rstrip" { text } else { text.trim_start_matches(stripped) };
            Ok(Value::from(if method == "lstrip" { text } else { text.trim_end_matches(stripped) }))
        }
        "split" | "rsplit" => {
            let (separator, max, options): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.or(options.get("sep")?).filter(|value| !value.is_none());
            let max = max.or(options.get("maxsplit")?).and_then(|max| usize::try_from(max).ok());
            options.assert_all_used()?;
            let separator = separator.as_ref().map(str_arg).transpose()?;
            split(text, separator, max, method == "rsplit")
        }
        "splitlines" => {
            let () = from_args(args)?;
            Ok(Value::from(text.lines().map(Value::from).collect::<Vec<_>>()))
        }
        "startswith" | "endswith" => {
            let (affixes,): (&Value,) = from_args(args)?;
            let has =
                |affix: &str| if method == "startswith" { text.starts_with(affix) } else { text.ends_with(affix) };
            match affixes.as_str() {
                Some(affix) => Ok(Value::from(has(affix))),
                None => Ok(Value::from(affixes.try_iter()?.any(|affix| affix.as_str().is_some_and(has)))),
            }
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            Ok(Value::from(match count.and_then(|count| usize::try_from(count).ok()) {
                Some(count) => text.replacen(old, new, count),
                None => text.replace(old, new),
            }))
        }
        "find" | "rfind" => {
            let (needle,): (&str,) = from_args(args)?;
            let at = if method == "find" { text.find(needle) } else { text.rfind(needle) };
            Ok(Value::from(at.map_or(-1, |at| text[..at].chars().count() as i64)))
        }
        "count" => {
            let (needle,): (&str,) = from_args(args)?;
            Ok(Value::from(text.matches(needle).count()))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let items =
                items.try_iter()?.map(|item| str_arg(&item).map(str::to_owned)).collect::<Result<Vec<_>, _>>()?;
            Ok(Value::from(items.join(text)))
        }
        "isdigit" | "isalpha" | "isalnum" | "isspace" => {
            let () = from_args(args)?;
            let class = match method {
                "isdigit" => char::is_numeric,
                "isalpha" => char::is_alphabetic,
                "isalnum" => char::is_alphanumeric,
                _ => char::is_whitespace,
            };
            Ok(Value::from(!text.is_empty() && text.chars().all(class)))
        }
        "title" => {
            let () = from_args(args)?;
            Ok(Value::from(title(text)))
        }
        "upper" | "lower" | "capitalize" => {
            let () = from_args(args)?;
            state.apply_filter(method, std::slice::from_ref(value))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn str_arg(value: &Value) -> Result<&str, Error> {
    let refuse = || Error::new(ErrorKind::InvalidOperation, format!("expected a string, got {value}"));
    value.as_str().ok_or_else(refuse)
}

/// `str.title`: unlike Jinja's filter of that name, a word begins after anything that is not a letter.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            titled.extend(c.to_lowercase());
        } else {
            titled.extend(c.to_uppercase());
        }
        in_word = c.is_alphabetic();
    }
    titled
}

/// `str.split` and `str.rsplit`: without a separator at runs of whitespace, with at most `max` cuts.
fn split(text: &str, separator: Option<&str>, max: Option<usize>, from_right: bool) -> Result<Value, Error> {
    let parts: Vec<&str> = match (separator, max) {
        (Some(""), _) => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        (Some(separator), None) => text.split(separator).collect(),
        (Some(separator), Some(max)) if from_right => {
            let mut parts: Vec<_> = text.rsplitn(max + 1, separator).collect();
            parts.reverse();
            parts
        }
        (Some(separator), Some(max)) => text.splitn(max + 1, separator).collect(),
        (None, None) => text.split_whitespace().collect(),
        (None, Some(max)) => split_whitespace(text, max, from_right),
    };
    Ok(Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>()))
}

/// At most `max` cuts; what is left keeps its whitespace at the far end, as in Python.
fn split_whitespace(text: &str, max: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        rest = if from_right { rest.trim_end() } else { rest.trim_start() };
        if rest.is_empty() {
            break;
        }
        let cut = if from_right { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        match cut {
            Some(cut) if parts.len() < max => {
                let (left, right) = rest.split_at(cut);
                let (part, remainder) = if from_right { (right, left) } else { (left, right) };
                parts.push(part.trim());
                rest = remainder;
            }
            _ => {
                parts.push(rest);
                break;
            }
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}
