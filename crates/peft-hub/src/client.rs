//! HTTP as the Hub needs it: retries, redirects that do not carry the token away, and refusals in words.

use crate::{Error, Progress, Result, Settings};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use ureq::http::header::{AUTHORIZATION, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use ureq::{Agent, Body, SendBody};

const USER_AGENT: &str = concat!("candle-peft/", env!("CARGO_PKG_VERSION"));
const MOST_REDIRECTS: usize = 10;
/// The longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Answers in JSON are of some kilobytes, or megabytes for repositories of very many files.
const LONGEST_PAGE: u64 = 32 << 20;
/// Writing takes the Hub longer than reading.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: String,
    /// What it is for, as messages call it.
    pub(crate) what: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) payload: Payload,
    /// Where redirects to other hosts lead is followed.
    pub(crate) leave_host: bool,
    /// How often it is tried.
    pub(crate) attempts: u32,
    /// Whether it may be sent again when it is not known what became of it.
    pub(crate) repeatable: bool,
}

/// What a request carries.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    Nothing,
    Bytes(Vec<u8>),
    /// A part of a file.
    File {
        path: PathBuf,
        start: u64,
        length: u64,
    },
}

/// The Hub at one endpoint, asked by one user.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    agent: Agent,
    pub(crate) settings: Settings,
    pub(crate) progress: Arc<dyn Progress>,
}

/// Why one attempt failed.
enum Failure {
    /// The next may succeed.
    Passing(String),
    Lasting(Error),
}

impl Client {
    pub(crate) fn new(settings: Settings, progress: Arc<dyn Progress>) -> Self {
        let (answer, stall) = (Some(settings.answer_timeout), Some(settings.stall_timeout));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(USER_AGENT)
            .timeout_resolve(answer)
            .timeout_connect(answer)
            .timeout_recv_response(answer)
            .timeout_per_read(stall)
            .timeout_per_write(stall)
            .build();
        Self { agent: config.into(), settings, progress }
    }

    /// A request to the Hub itself.
    pub(crate) fn call(&self, method: Method, path: &str, what: impl Into<String>) -> Call {
        Call {
            repeatable: true,
            attempts: self.settings.attempts.max(1),
            leave_host: false,
            method,
            url: format!("{}/{path}", self.settings.endpoint),
            what: what.into(),
            headers: vec![],
            payload: Payload::Nothing,
        }
    }

    /// Sends a request until it is answered, with whatever status is neither a redirect to follow nor likely to pass.
    pub(crate) fn send(&self, call: &Call) -> Result<Response<Body>> {
        let mut attempt = 1;
        loop {
            let (reason, asked) = match self.once(call) {
                Ok(response) if !passes(response.status(), call.repeatable) => return Ok(response),
                Ok(response) => (status_text(response.status()), retry_after(response.headers())),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(reason)) if !call.repeatable => {
                    return Err(self.unreachable(call, reason, attempt));
                }
                Err(Failure::Passing(reason)) => (reason, None),
            };
            if attempt >= call.attempts {
                return Err(self.unreachable(call, reason, attempt));
            }
            self.rest(&reason, attempt, asked);
            attempt += 1;
        }
    }

    /// As [`Client::send`], with success as the only status that is no error.
    pub(crate) fn succeed(&self, call: &Call) -> Result<Response<Body>> {
        let response = self.send(call)?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(call, response)) }
    }

    /// The body of an answer as JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let response = self.succeed(call)?;
        let distrusted = |reason: String| Error::Distrusted { what: call.what.clone(), reason };
        let body = response.into_body().into_with_config().limit(LONGEST_PAGE).read_to_vec();
        let body = body.map_err(|e| distrusted(format!("the answer broke off or is too long: {}", in_words(&e))))?;
        serde_json::from_slice(&body).map_err(|e| distrusted(format!("the answer is not what the Hub answers: {e}")))
    }

    /// Waits before another attempt, for longer the more have failed.
    pub(crate) fn rest(&self, reason: &str, attempt: u32, asked: Option<Duration>) {
        let doubled = self.settings.pause.saturating_mul(1 << (attempt - 1).min(3));
        let pause = asked.unwrap_or(doubled).min(LONGEST_PAUSE);
        tracing::debug!(reason, ?pause, "trying again");
        self.progress.retry(reason, pause);
        thread::sleep(pause);
    }

    pub(crate) fn unreachable(&self, call: &Call, reason: String, attempts: u32) -> Error {
        Error::Unreachable { what: call.what.clone(), host: host(&call.url), reason, attempts }
    }

    /// One attempt, with the redirects that it takes.
    fn once(&self, call: &Call) -> Result<Response<Body>, Failure> {
        let mut url = call.url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.exchange(call, &url)?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let distrusted = |reason: &str| {
                Failure::Lasting(Error::Distrusted { what: call.what.clone(), reason: reason.to_owned() })
            };
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| join(&url, location));
            let next = next.ok_or_else(|| distrusted("a redirect that leads nowhere"))?;
            if url.starts_with("https://") && !next.starts_with("https://") {
                return Err(distrusted("a redirect from https to an address that is not"));
            }
            if !call.leave_host && origin(&next) != origin(&url) {
                return Ok(response);
            }
            url = next;
        }
        Err(Failure::Lasting(Error::Distrusted {
            what: call.what.clone(),
            reason: format!("more than {MOST_REDIRECTS} redirects"),
        }))
    }

    fn exchange(&self, call: &Call, url: &str) -> Result<Response<Body>, Failure> {
        let lasting = |reason: String| Failure::Lasting(Error::Distrusted { what: call.what.clone(), reason });
        let mut request = Request::builder().method(call.method.clone()).uri(url);
        // The token is for the Hub alone: the addresses of other hosts are signed, and their logs are not the Hub's.
        let own = origin(url) == origin(&self.settings.endpoint);
        if let Some(token) = self.settings.token.as_ref().filter(|_| own) {
            request = request.header(AUTHORIZATION, token.header());
        }
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let (body, length) = match &call.payload {
            Payload::Nothing => (SendBody::none(), None),
            Payload::Bytes(bytes) => {
                (SendBody::from_owned_reader(std::io::Cursor::new(bytes.clone())), Some(bytes.len() as u64))
            }
            Payload::File { path, start, length } => {
                let open = || {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(*start))?;
                    Ok(file.take(*length))
                };
                let part = open().map_err(|e| Failure::Lasting(Error::io("read", path, &e)))?;
                (SendBody::from_owned_reader(part), Some(*length))
            }
        };
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(body).map_err(|e| lasting(format!("an address that cannot be asked: {e}")))?;
        let mut config = self.agent.configure_request(request);
        if call.method != Method::GET && call.method != Method::HEAD {
            config = config.timeout_recv_response(Some(WRITE_TIMEOUT));
        }
        self.agent.run(config.build()).map_err(|error| match &error {
            ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed => Failure::Passing(in_words(&error)),
            // Where a connection breaks off in the middle of a head.
            ureq::Error::Protocol(_) => Failure::Passing(in_words(&error)),
            _ => lasting(in_words(&error)),
        })
    }

    /// What a status other than success means.
    pub(crate) fn refusal(&self, call: &Call, response: Response<Body>) -> Error {
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (code, message) = (header("x-error-code").unwrap_or_default(), header("x-error-message"));
        let has_token = self.settings.token.is_some();
        let reason = match (status.as_u16(), code.as_str()) {
            (401, _) if has_token && code != "RepoNotFound" => "the Hub does not accept the token".to_owned(),
            (401 | 404, "RepoNotFound") | (401, _) if !has_token => {
                "no such repository on the Hub, or a private one: check the name, or set HF_TOKEN if you may see it"
                    .to_owned()
            }
            (401 | 404, "RepoNotFound") => {
                "no such repository on the Hub, or one that the token may not see".to_owned()
            }
            (404, "RevisionNotFound") => "the repository has no such revision".to_owned(),
            (404, "EntryNotFound") => "the repository has no such file".to_owned(),
            (403, "GatedRepo") if has_token => "access to it must be granted first: ask for it on its page".to_owned(),
            (403, "GatedRepo") => {
                "access to it must be granted first: ask for it on its page, and set HF_TOKEN".to_owned()
            }
            _ => {
                let said = message.or_else(|| said_in_body(response)).map(|m| format!(": {m}")).unwrap_or_default();
                // A server that repeats what it was sent must not get the token printed.
                let said = self.settings.token.iter().fold(said, |said, token| token.scrub(&said));
                format!("the answer was {}{said}", status_text(status))
            }
        };
        Error::Refused { what: call.what.clone(), status: status.as_u16(), reason }
    }
}

/// The start of a message that an answer holds.
fn said_in_body(response: Response<Body>) -> Option<String> {
    let body = response.into_body().into_with_config().limit(1 << 16).read_to_vec().ok()?;
    let text = match serde_json::from_slice::<serde_json::Value>(&body).ok() {
        Some(json) => json["error"].as_str()?.to_owned(),
        None => String::from_utf8(body).ok()?,
    };
    let line: String = text.lines().next()?.chars().filter(|c| !c.is_control()).take(300).collect();
    (!line.is_empty() && !line.starts_with('<')).then_some(line)
}

/// An error of the transport in a few words, without addresses, which may be signed.
pub(crate) fn in_words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::HostNotFound => "the host was not found".to_owned(),
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Whether a status is likely to pass. Of those only 429 says that nothing was done.
fn passes(status: StatusCode, repeatable: bool) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || repeatable && matches!(status.as_u16(), 408 | 500 | 502 | 503 | 504)
}

fn status_text(status: StatusCode) -> String {
    let name = status.canonical_reason().map(|name| format!(" {name}")).unwrap_or_default();
    format!("{}{name}", status.as_u16())
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_owned();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_lowercase(), port))
}

fn host(url: &str) -> String {
    url.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default()
}

/// Where a redirect leads.
fn join(url: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.parse::<Uri>().ok().map(|_| location.to_owned());
    }
    // A path alone: what else there is (`//host`, `name`) the Hub does not send.
    let path = location.starts_with('/') && !location.starts_with("//");
    let (scheme, rest) = url.split_once("://")?;
    path.then(|| format!("{scheme}://{}{location}", rest.split('/').next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::{join, origin};

    #[test]
    fn redirects_are_joined_to_where_they_came_from() {
        let from = "https://hub.test/a/resolve/main/x";
        assert_eq!(join(from, "/b/x").as_deref(), Some("https://hub.test/b/x"));
        assert_eq!(join(from, "https://cdn.test/x?sig=1").as_deref(), Some("https://cdn.test/x?sig=1"));
        for nowhere in ["//evil.test/x", "x", "", "ftp://hub.test/x", "https://"] {
            assert_eq!(join(from, nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("https://Hub.test/a"), origin("https://hub.test:443/b"));
        assert_ne!(origin("https://hub.test"), origin("http://hub.test"));
        assert_ne!(origin("http://127.0.0.1:1"), origin("http://127.0.0.1:2"));
        // A user name before the host is no host.
        assert_ne!(origin("https://hub.test@evil.test/"), origin("https://hub.test/"));
    }
}
