//! HTTP/1.1, as much of it as one request on one connection needs.

use super::{Fault, Port};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A request as it came in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// Where it came in.
    pub port: Port,
    /// GET, HEAD, POST or PUT.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Method and path.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Path without query.
    pub(super) fn resource(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    /// The token it was sent with.
    pub fn token(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Whether a part may be had.
    pub(super) ranges: bool,
}

impl Response {
    pub(super) fn text(status: u16, text: &str) -> Self {
        Self { status, headers: vec![], body: text.as_bytes().to_vec(), ranges: false }
    }

    pub(super) fn json(value: &Value) -> Self {
        let mut response = Self::text(200, &value.to_string());
        response.set("content-type", "application/json");
        response
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.headers.retain(|(key, _)| key != name);
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(key, _)| key == name)
    }
}

/// One connection.
pub(super) struct Wire {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { writer: stream.try_clone()?, reader: BufReader::new(stream) })
    }

    /// The next request; none when the connection was closed.
    pub(super) fn request(&mut self, port: Port) -> io::Result<Option<Request>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
        let (method, path) = (method.to_owned(), path.to_owned());
        let mut headers = vec![];
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Request { port, method, path, headers, body: vec![] };
        if request.header("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")) {
            self.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if request.header("transfer-encoding").is_some_and(|e| e.eq_ignore_ascii_case("chunked")) {
            request.body = self.chunks()?;
        } else if let Some(length) = request.header("content-length").and_then(|l| l.parse().ok()) {
            request.body = vec![0; length];
            self.reader.read_exact(&mut request.body)?;
        }
        Ok(Some(request))
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = vec![];
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            self.reader.read_exact(&mut chunk)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    /// Sends an answer, with what a fault does while it is under way.
    pub(super) fn respond(
        &mut self,
        request: &Request,
        response: &Response,
        fault: Option<&Fault>,
        stopped: &AtomicBool,
    ) -> io::Result<()> {
        let mut response = response.clone();
        if request.method == "GET" && response.status == 200 && response.ranges {
            response = part(request, response);
        }
        if let Some(Fault::Header(name, Some(value))) = fault {
            response.set(name, value);
        }
        let promised = match fault {
            Some(Fault::Header(name, None)) if name == "content-length" => None,
            _ => Some(response.body.len()),
        };
        if let Some(length) = promised.filter(|_| !response.has("content-length")) {
            response.set("content-length", &length.to_string());
        }
        let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", response.status);
        for (name, value) in &response.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(Fault::EndlessHead(length)) = fault {
            let line = format!("x-filler: {}\r\n", "x".repeat(1000));
            head += &line.repeat(length / line.len());
        }
        if let Some(Fault::Hang(0, duration)) = fault {
            return pause(*duration, stopped);
        }
        self.writer.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method == "HEAD" {
            return Ok(());
        }
        match fault {
            Some(Fault::Truncate(length)) => {
                self.writer.write_all(&response.body[..(*length).min(response.body.len())])
            }
            Some(Fault::Hang(length, duration)) => {
                self.writer.write_all(&response.body[..(*length).min(response.body.len())])?;
                pause(*duration, stopped)
            }
            Some(Fault::Slow(size, duration)) => {
                for piece in response.body.chunks((*size).max(1)) {
                    self.writer.write_all(piece)?;
                    pause(*duration, stopped)?;
                }
                Ok(())
            }
            _ => self.writer.write_all(&response.body),
        }
    }
}

fn pause(duration: Duration, stopped: &AtomicBool) -> io::Result<()> {
    let end = Instant::now() + duration;
    while Instant::now() < end && !stopped.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The part of a file that was asked for.
fn part(request: &Request, mut response: Response) -> Response {
    let asked = request.header("range").and_then(|range| range.strip_prefix("bytes="));
    let Some((start, end)) = asked.and_then(|range| range.split_once('-')) else {
        return response.with("accept-ranges", "bytes");
    };
    let total = response.body.len();
    let start: usize = start.parse().unwrap_or(0);
    let end: usize = end.parse().map_or(total, |end: usize| (end + 1).min(total));
    if start >= total {
        return Response::text(416, "").with("content-range", &format!("bytes */{total}"));
    }
    response.status = 206;
    response.set("content-range", &format!("bytes {start}-{}/{total}", end - 1));
    response.body = response.body[start..end].to_vec();
    response
}
