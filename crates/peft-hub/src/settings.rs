//! Where the Hub is, who asks, and where files are kept: the environment variables of Python's `huggingface_hub`.

use crate::{Error, Result, Token};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ENDPOINT: &str = "https://huggingface.co";

/// How to talk to the Hub.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// Where the Hub is, without a slash at the end. `HF_ENDPOINT`.
    pub endpoint: String,
    /// The cache folder, laid out and shared with Python. `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// Who asks. `HF_TOKEN`, or the file that `hf auth login` writes.
    pub token: Option<Token>,
    /// Whether to read from the cache alone. `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// How long the head of an answer may take. `HF_HUB_ETAG_TIMEOUT`, in seconds.
    pub answer_timeout: Duration,
    /// How long a transfer may stand still. `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds.
    pub stall_timeout: Duration,
    /// How often a request is made that fails for reasons that may pass; at least once.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each, up to eight times as long.
    pub pause: Duration,
}

impl Settings {
    /// The Hub at its usual place, nobody's token, and this cache folder.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: ENDPOINT.to_owned(),
            cache: cache.into(),
            token: None,
            offline: false,
            answer_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            attempts: 5,
            pause: Duration::from_secs(1),
        }
    }

    /// What the environment says: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE`, `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT`, as
    /// `huggingface_hub` reads them.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value that makes no sense, [`Error::Io`] for a token file that cannot be read.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(&|name| env::var(name).ok())
    }

    /// As [`Settings::from_env`], from any table of variables.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| get(name).map(|value| expand(&value, lookup));
        let user = || lookup("HOME").or_else(|| lookup("USERPROFILE")).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(user()?.join(".cache").join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub"))).ok_or(Error::Setting {
            variable: "HOME",
            value: String::new(),
            wanted: "set, or HF_HOME, so that there is a place for the cache",
        })?;
        let mut settings = Self::new(cache);
        if let Some(endpoint) = get("HF_ENDPOINT") {
            let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
            if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
                let wanted = "an address that begins with https:// or http://";
                return Err(Error::Setting { variable: "HF_ENDPOINT", value: endpoint, wanted });
            }
            settings.endpoint = endpoint;
        }
        settings.offline = get("HF_HUB_OFFLINE").or_else(|| get("TRANSFORMERS_OFFLINE")).is_some_and(|v| is_true(&v));
        for (variable, timeout) in [
            ("HF_HUB_ETAG_TIMEOUT", &mut settings.answer_timeout),
            ("HF_HUB_DOWNLOAD_TIMEOUT", &mut settings.stall_timeout),
        ] {
            let Some(value) = get(variable) else { continue };
            let seconds = value.trim().parse().ok().filter(|seconds| *seconds > 0.0);
            let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            let wanted = "a number of seconds above 0";
            *timeout = duration.ok_or(Error::Setting { variable, value, wanted })?;
        }
        if !get("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| is_true(&v)) {
            let given = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN"));
            let file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
            settings.token = match (given, file) {
                (Some(token), _) => Token::new(&token),
                (None, Some(file)) => read_token(&file)?,
                (None, None) => None,
            };
        }
        Ok(settings)
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_lowercase().as_str())
}

fn read_token(file: &Path) -> Result<Option<Token>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Token::new(&text)),
        Err(_) if !file.exists() => Ok(None),
        Err(error) => Err(Error::io("read the token file", file, &error)),
    }
}

/// A path whose `~` is the user's folder.
fn expand(path: &str, lookup: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let rest = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match (rest, lookup("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}
