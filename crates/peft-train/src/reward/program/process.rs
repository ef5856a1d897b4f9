//! One process: lines in, lines out, whatever it does.

use super::answer::shown;
use super::group::Groups;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// What a process may take for each of its rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) timeout: Duration,
    /// Bytes of standard output, and of standard error.
    pub(super) output: usize,
}

/// Why there are no answers.
#[derive(Debug)]
pub(super) enum Fault {
    /// This process went wrong.
    Process(String),
    /// No process of this program can be started.
    Start(io::Error),
    /// A process could not be ended.
    Kill(io::Error),
}

/// Chunks read from a pipe at a time, and chunks that may wait: a flood waits in the pipe, not in memory.
const CHUNK: usize = 8192;
const WAITING: usize = 8;

/// How often to look whether a process has ended.
const SHORTEST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Gives the rows to a new process and returns the lines that it answers with, one for each. The process is gone afterwards.
pub(super) fn exchange(
    command: &[OsString],
    rows: &[String],
    limits: Limits,
    groups: &Groups,
) -> Result<Vec<String>, Fault> {
    let mut process = Process { child: start(command, limits.timeout, groups)?, groups, group_is_dead: false };
    let outcome = process.converse(rows, limits);
    process.end().map_err(Fault::Kill)?;
    outcome
}

fn start(command: &[OsString], patience: Duration, groups: &Groups) -> Result<Child, Fault> {
    let begun = Instant::now();
    let mut pause = SHORTEST_PAUSE;
    loop {
        let mut process = Command::new(&command[0]);
        process.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        groups.prepare(&mut process);
        match process.spawn() {
            Ok(child) => return Ok(child),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Err(Fault::Start(error));
            }
            // Another process may have taken all there is, until its time is over.
            Err(_) if begun.elapsed() < 2 * patience => thread::sleep(pause),
            Err(error) => return Err(Fault::Start(error)),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Event {
    Output(Vec<u8>),
    OutputEnded,
    /// The last line of standard error, which has ended.
    LastWords(String),
    /// More on standard error than allowed.
    Flood,
}

struct Process<'a> {
    child: Child,
    groups: &'a Groups,
    group_is_dead: bool,
}

impl Process<'_> {
    fn converse(&mut self, rows: &[String], limits: Limits) -> Result<Vec<String>, Fault> {
        let allowed = limits.output.saturating_mul(rows.len());
        let flood = || Fault::Process(format!("wrote more than {allowed} bytes"));
        let pipes = |error| Fault::Process(format!("has no pipes: {error}"));
        let events = attend(&mut self.child, rows, allowed).map_err(pipes)?;
        let mut deadline = Instant::now() + limits.timeout;
        let (mut output, mut answered, mut output_ended, mut last_words) = (Vec::new(), 0, false, None);
        let (mut status, mut pause) = (None, SHORTEST_PAUSE);
        loop {
            match events.recv_timeout(pause) {
                Ok(Event::Output(bytes)) => {
                    let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
                    answered += lines;
                    output.extend(bytes);
                    if output.len() > allowed {
                        return Err(flood());
                    }
                    if lines > 0 && answered < rows.len() {
                        deadline = Instant::now() + limits.timeout;
                    }
                }
                Ok(Event::OutputEnded) => output_ended = true,
                Ok(Event::LastWords(words)) => last_words = Some(words),
                Ok(Event::Flood) => return Err(flood()),
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(LONGEST_PAUSE),
                Err(RecvTimeoutError::Disconnected) => thread::sleep(pause),
            }
            if status.is_none() {
                status = self.status()?;
            }
            if let (Some(status), true, Some(last_words)) = (status, output_ended, &last_words) {
                return if status.success() { lines(&output, rows.len()) } else { Err(failure(status, last_words)) };
            }
            if Instant::now() >= deadline {
                return Err(Fault::Process(format!("did not finish within {:?}", limits.timeout)));
            }
        }
    }

    /// How the process ended, if it has. What it left running is killed then, since that may hold its output open.
    fn status(&mut self) -> Result<Option<ExitStatus>, Fault> {
        let status = self.child.try_wait().map_err(|error| Fault::Process(format!("cannot be waited for: {error}")))?;
        if status.is_some() {
            self.kill_group().map_err(Fault::Kill)?;
        }
        Ok(status)
    }

    fn kill_group(&mut self) -> io::Result<()> {
        self.group_is_dead = true;
        self.groups.kill(&mut self.child)
    }

    fn end(mut self) -> io::Result<()> {
        if !self.group_is_dead {
            self.kill_group()?;
        }
        self.child.wait().map(drop)
    }
}

fn failure(status: ExitStatus, last_words: &str) -> Fault {
    let words = if last_words.is_empty() { String::new() } else { format!(": {}", shown(last_words)) };
    Fault::Process(format!("ended with {status}{words}"))
}

fn lines(output: &[u8], wanted: usize) -> Result<Vec<String>, Fault> {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    if lines.len() == wanted {
        Ok(lines)
    } else {
        Err(Fault::Process(format!("gave {} answers for {wanted} samples", lines.len())))
    }
}

/// Threads that write the rows and read what comes. They end with the pipes, or at the first word after nobody listens any more.
fn attend(child: &mut Child, rows: &[String], allowed: usize) -> io::Result<Receiver<Event>> {
    let missing = || io::Error::from(ErrorKind::BrokenPipe);
    let mut input = child.stdin.take().ok_or_else(missing)?;
    let output = child.stdout.take().ok_or_else(missing)?;
    let errors = child.stderr.take().ok_or_else(missing)?;
    let (sender, events) = sync_channel(WAITING);
    let lines: String = rows.iter().flat_map(|row| [row, "\n"]).collect();
    // A program that answers without reading to the end is none the worse.
    spawn(move || drop(input.write_all(lines.as_bytes())))?;
    let for_output = sender.clone();
    spawn(move || read_output(output, &for_output))?;
    spawn(move || read_errors(errors, allowed, &sender))?;
    Ok(events)
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().stack_size(64 * 1024).spawn(work).map(drop)
}

fn read_output(mut pipe: impl Read, events: &SyncSender<Event>) {
    let mut chunk = [0; CHUNK];
    while let Ok(count @ 1..) = pipe.read(&mut chunk) {
        if events.send(Event::Output(chunk[..count].to_vec())).is_err() {
            return;
        }
    }
    // Nobody listens after a time-out.
    let _ = events.send(Event::OutputEnded);
}

fn read_errors(mut pipe: impl Read, allowed: usize, events: &SyncSender<Event>) {
    let (mut chunk, mut total, mut tail) = ([0; CHUNK], 0usize, Vec::new());
    while let Ok(count @ 1..) = pipe.read(&mut chunk) {
        total += count;
        if total > allowed {
            let _ = events.send(Event::Flood);
            return;
        }
        tail.extend_from_slice(&chunk[..count]);
        tail.drain(..tail.len().saturating_sub(CHUNK));
    }
    let text = String::from_utf8_lossy(&tail);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let _ = events.send(Event::LastWords(last.trim().to_owned()));
}
