//! The benchmark's stages: what is started, in which order the contenders take turns, and what is told of it.

mod mesh;
mod policies;
mod startup;
mod streams;
mod throughput;

use std::path::{Path, PathBuf};
use std::process::Command;

use super::chart::Panel;
use super::children::{Programs, Role, Server};
use super::failure::{Failure, Tried as _};
use super::generator::{BEGIN, END, Job, Report};
use super::options::{Contender, Options, Stage};
use super::procfs;
use super::verdict::Verdicts;
use super::{GENERATE, chart};

/// One run.
pub(crate) struct Bench {
    options: Options,
    programs: Programs,
    verdicts: Verdicts,
    panels: Vec<Panel>,
}

impl Bench {
    /// Builds smg if it must, and leaves out nginx if there is none.
    pub(crate) fn prepare(mut options: Options) -> Result<Bench, Failure> {
        let smg = match &options.smg {
            Some(path) => absolute(path)?,
            None => build_smg(&options.profile)?,
        };
        let engine = options.engine.as_deref().map_or_else(|| Ok(smg.clone()), absolute)?;
        let nginx = options.nginx.clone();
        if options.contenders.contains(&Contender::Nginx) && Command::new(&nginx).arg("-v").output().is_err() {
            println!("nginx is not to be found: compared without it (`cargo xtask bench` fetches it)");
            options.contenders.retain(|contender| *contender != Contender::Nginx);
        }
        let folder = tempfile::tempdir().tried("making a folder for this run")?;
        let programs = Programs { smg, engine, nginx, folder };
        Ok(Bench { options, programs, verdicts: Verdicts::default(), panels: Vec::new() })
    }

    /// Says what is measured on what.
    pub(crate) fn introduce(&self) {
        println!("{}", procfs::machine());
        println!("smg     {} ({})", version(&self.programs.smg, "--version"), self.programs.smg.display());
        if self.options.contenders.contains(&Contender::Nginx) {
            println!("nginx   {}", version(&self.programs.nginx, "-v"));
        }
        println!("load, proxies and engine share these cores; medians of {} rounds", self.options.rounds());
    }

    /// Runs the chosen stages.
    pub(crate) fn run(&mut self) -> Result<(), Failure> {
        for stage in self.options.stages.clone() {
            match stage {
                Stage::Startup => self.startup()?,
                Stage::Throughput => self.throughput()?,
                Stage::Events => self.events()?,
                Stage::Policies => self.policies()?,
                Stage::Streams => self.open_streams()?,
                Stage::Storm => self.storm()?,
                Stage::Mesh => self.mesh()?,
            }
        }
        Ok(())
    }

    /// Prints the verdicts and writes the chart.
    pub(crate) fn conclude(&self) -> Result<(), Failure> {
        self.verdicts.print();
        if self.panels.is_empty() {
            return Ok(());
        }
        let path = workspace().join(&self.options.chart);
        chart::write(&path, &self.panels, &procfs::machine())?;
        println!("chart: {}", path.display());
        Ok(())
    }

    fn has(&self, contender: Contender) -> bool {
        self.options.contenders.contains(&contender)
    }

    /// The contenders that are proxies.
    fn proxies(&self) -> Vec<Contender> {
        self.options.contenders.iter().copied().filter(|contender| *contender != Contender::Direct).collect()
    }

    /// Starts a contender before an engine; none for a direct connection.
    fn start(&self, contender: Contender, engine: &Server) -> Result<Option<Server>, Failure> {
        match contender {
            Contender::Direct => Ok(None),
            Contender::Nginx => self.programs.nginx(engine.address).map(Some),
            Contender::Smg => self.programs.smg(&[engine.address], "round_robin").map(Some),
        }
    }
}

/// What one measurement gave.
#[derive(Clone, Debug, Default)]
struct Sample {
    report: Report,
    /// CPU time of the proxy within the measured time.
    cpu_seconds: Option<f64>,
    /// Memory of the proxy at its end.
    resident_bytes: Option<u64>,
}

impl Sample {
    fn answers_per_second(&self) -> f64 {
        self.report.answers as f64 / self.report.seconds
    }

    fn events_per_second(&self) -> f64 {
        self.report.events as f64 / self.report.seconds
    }

    fn cpu_per_10_000(&self) -> Option<f64> {
        self.cpu_seconds.map(|seconds| seconds / self.report.answers as f64 * 10_000.0)
    }

    fn cpu_us_per_event(&self) -> Option<f64> {
        self.cpu_seconds.map(|seconds| seconds / self.report.events as f64 * 1e6)
    }
}

/// Runs one job; the proxy's clocks are read when the measured time begins and ends.
fn measure(name: &str, proxy: Option<&Server>, job: &Job) -> Result<Sample, Failure> {
    let mut role = Role::start(GENERATE, job)?;
    role.expect(BEGIN)?;
    let before = proxy.map(Server::usage);
    role.expect(END)?;
    let after = proxy.map(Server::usage);
    let report: Report = role.report()?;
    if report.wrong > 0 || report.answers == 0 {
        let what = format!("{} of {} answers: {}", report.wrong, report.answers, report.told.join("; "));
        return Err(Failure::Wrong { contender: name.to_owned(), what });
    }
    let cpu_seconds = before.zip(after).map(|(before, after)| after.cpu_seconds - before.cpu_seconds);
    Ok(Sample { report, cpu_seconds, resident_bytes: after.map(|usage| usage.resident_bytes) })
}

/// The repository's root, whatever folder cargo started us in.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the benches lie one folder below the root")
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(workspace().join(path)).tried("finding a program")
}

fn build_smg(profile: &str) -> Result<PathBuf, Failure> {
    println!("building smg ({profile})");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--profile", profile, "--bin", "smg"]).current_dir(workspace());
    if !command.status().tried("starting cargo")?.success() {
        return Err(Failure::Build);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(workspace().join(target).join(profile).join("smg"))
}

fn version(program: &Path, flag: &str) -> String {
    let output = Command::new(program).arg(flag).output();
    let said = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&said).lines().next().unwrap_or("?").trim().to_owned()
}
