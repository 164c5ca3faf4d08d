//! Gets the tools that the tests need: found on the path, fetched into `target/tools`, or installed by Debian's packages.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::process::{Step, root, target};
use crate::report;

/// Where tools of our own lie: a Python environment, whose `bin` also holds the cargo tools.
fn python_home() -> PathBuf {
    target().join("tools/python")
}

/// Where Debian's nginx is unpacked: not installed, so that no service starts.
fn nginx_home() -> PathBuf {
    target().join("tools/nginx")
}

/// The search path of every step: the caller's, then our own tools.
pub(crate) fn search_path() -> OsString {
    let callers = std::env::var_os("PATH").unwrap_or_default();
    let own = python_home().join("bin");
    std::env::join_paths(std::env::split_paths(&callers).chain([own])).unwrap_or(callers)
}

/// True where packages can be installed without asking: root on Debian.
fn may_install() -> bool {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0);
    is_root && Path::new("/etc/debian_version").exists()
}

/// The Python of our environment, with the packages of a pinned list.
pub(crate) fn python(list: &str) -> Result<PathBuf, Error> {
    let home = python_home();
    let python = home.join("bin/python");
    if !Step::new(&python).args(["-m", "pip", "--version"]).succeeds() {
        make_environment(&home)?;
    }
    let list = root().join("src/xtask").join(list);
    let step = Step::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    step.args(["--no-deps", "--only-binary=:all:", "-r"]).arg(list).run()?;
    Ok(python)
}

fn make_environment(home: &Path) -> Result<(), Error> {
    let make = Step::new("python3").args(["-m", "venv", "--clear"]).arg(home);
    if make.succeeds() {
        return Ok(());
    }
    if may_install() {
        install(&["python3", "python3-venv"])?;
        return make.run();
    }
    Err(Error::Missing { tool: "python3 with venv", remedy: "install the packages python3 and python3-venv" })
}

fn install(packages: &[&str]) -> Result<(), Error> {
    report::step(format!("installing {}", packages.join(", ")));
    Step::new("apt-get").args(["update", "-qq"]).run()?;
    let step = Step::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    step.env("DEBIAN_FRONTEND", "noninteractive").run()
}

/// Makes `cargo nextest` available.
pub(crate) fn nextest() -> Result<(), Error> {
    cargo_tool("nextest", "cargo-nextest")
}

/// Makes `cargo deny` available.
pub(crate) fn deny() -> Result<(), Error> {
    cargo_tool("deny", "cargo-deny")
}

/// A cargo subcommand: on the path, else prebuilt and pinned, else built, which takes minutes.
fn cargo_tool(subcommand: &str, package: &'static str) -> Result<(), Error> {
    let version = Step::cargo().args([subcommand, "--version"]);
    if version.succeeds() {
        return Ok(());
    }
    let prebuilt = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    if prebuilt && python("tools.txt").is_ok() && version.succeeds() {
        return Ok(());
    }
    report::step(format!("building {package}, which takes some minutes"));
    Step::cargo().args(["install", "--locked", package]).run()
}

/// Where Debian puts the library that gives a process another clock.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Makes libfaketime available if that can be had; the scenarios with wrong clocks are skipped and counted without it.
pub(crate) fn faketime() {
    if !Path::new(FAKETIME).exists() && may_install() && install(&["libfaketime"]).is_err() {
        report::line("libfaketime could not be had: scenarios with wrong clocks go without it");
    }
}

/// The nginx that benchmarks compare with: the system's, else Debian's package unpacked.
pub(crate) fn nginx() -> Option<PathBuf> {
    let unpacked = nginx_home().join("usr/sbin/nginx");
    for candidate in [PathBuf::from("nginx"), PathBuf::from("/usr/sbin/nginx"), unpacked.clone()] {
        if Step::new(&candidate).arg("-v").succeeds() {
            return Some(candidate);
        }
    }
    unpack_nginx().ok()?;
    Step::new(&unpacked).arg("-v").succeeds().then_some(unpacked)
}

fn unpack_nginx() -> Result<(), Error> {
    report::step("fetching nginx");
    let home = nginx_home();
    if may_install() {
        Step::new("apt-get").args(["update", "-qq"]).run()?;
    }
    // Downloads into the working folder, hence the shell.
    let script = "mkdir -p \"$1\" && cd \"$1\" && apt-get download -qq nginx && dpkg -x nginx_*.deb .";
    Step::new("sh").args(["-c", script, "sh"]).arg(&home).run()
}
