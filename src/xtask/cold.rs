//! `cargo xtask cold`: how long both commands of the README take on a machine that has built nothing yet.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use clap::Args;

use crate::error::Error;
use crate::process::{Step, target};
use crate::report;

/// Where `smg demo` listens.
const DEMO: &str = "127.0.0.1:30000";

#[derive(Args)]
pub(crate) struct Options {
    /// Keep the build folder afterwards
    #[arg(long)]
    keep: bool,
}

/// Measures with a build folder of its own, which it removes first and, unless asked to keep it, afterwards.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let folder = target().join("cold");
    remove(&folder)?;
    let demo = time_demo(&folder)?;
    report::line(format!("cargo run --release -- demo: first answer after {:.0} s", demo.as_secs_f64()));
    let started = Instant::now();
    Step::cargo().args(["xtask", "test"]).env("CARGO_TARGET_DIR", &folder).run()?;
    report::line(format!("cargo xtask test: {:.0} s after the demo was built", started.elapsed().as_secs_f64()));
    if options.keep { Ok(()) } else { remove(&folder) }
}

fn time_demo(folder: &std::path::Path) -> Result<Duration, Error> {
    let started = Instant::now();
    Step::cargo().args(["build", "--release", "--bin", "smg"]).env("CARGO_TARGET_DIR", folder).run()?;
    let mut demo = Step::new(folder.join("release/smg")).arg("demo").spawn()?;
    let answered = wait_for_answer();
    let elapsed = started.elapsed();
    // The demo has nothing to save; a failure to end it means that it ended by itself.
    let _ = demo.kill();
    let _ = demo.wait();
    if answered { Ok(elapsed) } else { Err(Error::Late("an answer from the demo")) }
}

fn wait_for_answer() -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if asks_once().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    false
}

fn asks_once() -> Option<String> {
    let mut stream = TcpStream::connect(DEMO).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let body = r#"{"model":"demo","messages":[{"role":"user","content":"hello"}]}"#;
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: {DEMO}\r\nconnection: close\r\n");
    let rest = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all((head + &rest).as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn remove(folder: &std::path::Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::File { path: folder.to_owned(), source })
        }
        _ => Ok(()),
    }
}
