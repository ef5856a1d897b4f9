//! Serves folders as repositories of a Hub on loopback until its standard input ends:
//!
//! ```sh
//! cargo run -p peft-testkit --example loopback_hub -- --token hf_x maker/base=assets/tiny-llama user/adapter=DIR
//! ```
//!
//! Every line of standard input is answered with a line: `requests` with the requests since the last time as a JSON array,
//! `REPO=DIR` with the commit that the folder became.
#![allow(clippy::print_stdout)]

use peft_testkit::hub::{LoopbackHub, Port};
use serde_json::json;
use std::error::Error;
use std::io::{BufRead, stdin};
use std::{env, fs, io};

fn main() -> Result<(), Box<dyn Error>> {
    let hub = LoopbackHub::start()?;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--token" => hub.require_token(&arguments.next().ok_or("--token needs a token")?),
            repo => {
                commit(&hub, repo)?;
            }
        }
    }
    println!("{}", hub.endpoint());
    for line in stdin().lock().lines() {
        match line?.trim() {
            "requests" => {
                let requests: Vec<_> = hub
                    .requests()
                    .iter()
                    .map(|request| {
                        json!({
                            "line": request.line(), "token": request.token(), "storage": request.port == Port::Storage,
                        })
                    })
                    .collect();
                hub.forget();
                println!("{}", json!(requests));
            }
            repo => println!("{}", commit(&hub, repo)?),
        }
    }
    Ok(())
}

/// Makes a commit of a folder's files.
fn commit(hub: &LoopbackHub, repo: &str) -> Result<String, Box<dyn Error>> {
    let (repo, dir) = repo.split_once('=').ok_or("give REPO=DIR")?;
    let mut files = vec![];
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
        }
    }
    if files.is_empty() {
        return Err(io::Error::other(format!("{dir} has no files")).into());
    }
    Ok(hub.commit(repo, "main", files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone()))))
}
