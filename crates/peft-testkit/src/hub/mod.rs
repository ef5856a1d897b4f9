//! A Hub on loopback: the part of the Hugging Face Hub's HTTP interface that downloads and pushes use, with faults on demand.
//!
//! ```
//! use peft_testkit::hub::LoopbackHub;
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//!
//! let hub = LoopbackHub::start()?;
//! let commit = hub.commit("user/adapter", "main", [("adapter_config.json", b"{}".to_vec())]);
//! let mut stream = TcpStream::connect(hub.address())?;
//! stream.write_all(b"HEAD /user/adapter/resolve/main/adapter_config.json HTTP/1.1\r\nhost: hub\r\n\r\n")?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer)?;
//! assert!(answer.contains(&format!("x-repo-commit: {commit}")), "{answer}");
//! # Ok::<(), std::io::Error>(())
//! ```

mod fault;
mod http;
mod repo;
mod routes;
mod uploads;

pub use fault::Fault;
pub use http::Request;
pub use repo::{Stored, git_hash, sha256};

use fault::Planted;
use http::Wire;
use repo::Repo;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Files longer than this are stored as the Hub stores large files, unless their names end in `.json`, `.md` or `.jinja`.
const LARGE: usize = 1024;

/// A server on two ports of 127.0.0.1: the Hub, and the other host that large files lie on. It stops when it is dropped.
pub struct LoopbackHub {
    shared: Arc<Shared>,
}

/// What the two ports share.
struct Shared {
    address: SocketAddr,
    storage: SocketAddr,
    state: Mutex<State>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    repos: BTreeMap<String, Repo>,
    /// What large files hold, by SHA-256.
    large: BTreeMap<String, Vec<u8>>,
    /// The parts of large files that are on their way, by SHA-256 and number.
    parts: BTreeMap<(String, usize), Vec<u8>>,
    /// Old names of repositories.
    renamed: BTreeMap<String, String>,
    /// The token that is valid, if any is asked for.
    token: Option<String>,
    /// Large files above this size are uploaded in parts of this size.
    part_size: Option<usize>,
    faults: Vec<Planted>,
    requests: Vec<Request>,
}

/// Which of the two ports a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The Hub itself.
    Hub,
    /// The storage of large files, another host as far as tokens are concerned.
    Storage,
}

impl LoopbackHub {
    /// Starts one without repositories.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start() -> io::Result<Self> {
        Self::start_at(0)
    }

    /// As [`LoopbackHub::start`], with the Hub itself on a port of one's choice; 0 is any.
    ///
    /// # Errors
    /// When the port is not free.
    pub fn start_at(port: u16) -> io::Result<Self> {
        let hub = TcpListener::bind(("127.0.0.1", port))?;
        let storage = TcpListener::bind(("127.0.0.1", 0))?;
        let shared = Arc::new(Shared {
            address: hub.local_addr()?,
            storage: storage.local_addr()?,
            state: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        for (listener, port) in [(hub, Port::Hub), (storage, Port::Storage)] {
            let shared = shared.clone();
            thread::spawn(move || accept(&listener, port, &shared));
        }
        Ok(Self { shared })
    }

    /// Where the Hub listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What `HF_ENDPOINT` must be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// Puts files into a repository, which is made if need be, as a new commit of a branch, and returns the commit's hash.
    /// Files that an earlier commit of the branch had stay.
    pub fn commit<'a>(&self, repo: &str, branch: &str, files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> String {
        let mut state = self.state();
        let files: Vec<(String, Stored)> =
            files.into_iter().map(|(path, bytes)| (path.to_owned(), state.store(path, bytes))).collect();
        state.repos.entry(repo.to_owned()).or_default().commit(branch, files)
    }

    /// Lets everything of a repository be seen with this token only.
    pub fn make_private(&self, repo: &str, token: &str) {
        let mut state = self.state();
        state.token = Some(token.to_owned());
        state.repos.entry(repo.to_owned()).or_default().private = true;
    }

    /// Lets the files of a repository be read by those who were granted access only, which nobody was.
    pub fn make_gated(&self, repo: &str) {
        self.state().repos.entry(repo.to_owned()).or_default().gated = true;
    }

    /// Asks for this token wherever something is written.
    pub fn require_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// Gives a repository another name; requests for the old one are redirected.
    pub fn rename(&self, old: &str, new: &str) {
        let mut state = self.state();
        if let Some(repo) = state.repos.remove(old) {
            state.repos.insert(new.to_owned(), repo);
        }
        state.renamed.insert(old.to_owned(), new.to_owned());
    }

    /// Has large files above this size uploaded in parts of it.
    pub fn upload_in_parts(&self, size: usize) {
        self.state().part_size = Some(size);
    }

    /// Plants a fault into the next requests whose method and path, as in `GET /user/adapter/resolve/`, begin like this.
    pub fn plant(&self, request: &str, times: usize, fault: Fault) {
        self.state().faults.push(Planted { request: request.to_owned(), times, fault });
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// The requests whose method and path begin like this.
    pub fn count(&self, request: &str) -> usize {
        self.state().requests.iter().filter(|r| r.line().starts_with(request)).count()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.state().requests.clear();
    }

    /// What a file of a branch holds, and whether it is stored as a large file.
    pub fn file(&self, repo: &str, branch: &str, path: &str) -> Option<(Vec<u8>, bool)> {
        let state = self.state();
        match state.repos.get(repo)?.file(branch, path)? {
            Stored::Regular(bytes) => Some((bytes.clone(), false)),
            Stored::Large { sha256, .. } => Some((state.large.get(sha256)?.clone(), true)),
        }
    }

    /// The names of the files of a branch.
    pub fn files(&self, repo: &str, branch: &str) -> Vec<String> {
        self.state().repos.get(repo).map(|repo| repo.names(branch)).unwrap_or_default()
    }

    /// Whether there is such a repository and it is private.
    pub fn is_private(&self, repo: &str) -> Option<bool> {
        self.state().repos.get(repo).map(|repo| repo.private)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for LoopbackHub {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the two threads that wait for connections.
        for address in [self.shared.address, self.shared.storage] {
            let _ = TcpStream::connect(address);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn store(&mut self, path: &str, bytes: Vec<u8>) -> Stored {
        let small = [".json", ".md", ".jinja"].iter().any(|end| path.ends_with(end));
        if small || bytes.len() <= LARGE {
            return Stored::Regular(bytes);
        }
        let (sha256, size) = (sha256(&bytes), bytes.len());
        self.large.insert(sha256.clone(), bytes);
        Stored::Large { sha256, size }
    }

    /// The fault that was planted for a request, if one is left.
    fn fault(&mut self, line: &str) -> Option<Fault> {
        let planted = self.faults.iter_mut().find(|p| p.times > 0 && line.starts_with(&p.request))?;
        planted.times -= 1;
        Some(planted.fault.clone())
    }
}

fn accept(listener: &TcpListener, port: Port, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let shared = shared.clone();
        // A client that goes away is no business of the server's.
        thread::spawn(move || serve(stream, port, &shared).is_ok());
    }
}

/// Answers one request and closes the connection.
fn serve(stream: TcpStream, port: Port, shared: &Shared) -> io::Result<()> {
    let mut wire = Wire::new(stream)?;
    let Some(request) = wire.request(port)? else { return Ok(()) };
    let (response, fault) = {
        let mut state = shared.state();
        state.requests.push(request.clone());
        let fault = state.fault(&request.line());
        (routes::answer(&request, &mut state, shared), fault)
    };
    let response = fault.as_ref().map_or_else(|| response.clone(), |fault| fault.instead_of(&response));
    wire.respond(&request, &response, fault.as_ref(), &shared.stopped)
}
