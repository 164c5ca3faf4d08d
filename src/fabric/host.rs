//! A place on the network: a thread in a namespace of its own, where processes and sockets can be made.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    marker::PhantomData,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command},
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tun_rs::SyncDevice;

use crate::{Error, namespace};

type Job = Box<dyn FnOnce() + Send>;

/// A host. Clones are the same host; when the last is dropped, its processes are killed. The namespace vanishes with the
/// network.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    index: usize,
    address: Ipv4Addr,
    namespace: File,
    /// To the thread that lives in the namespace. It holds a processes' parent's place: the kernel kills a process that
    /// asked for it when the *thread* that started it ends.
    jobs: SyncSender<Job>,
}

/// A visit of this thread to a host's namespace, which ends when this is dropped. Sockets keep the namespace in which they
/// were made.
#[derive(Debug)]
#[must_use = "the visit ends when this is dropped"]
pub struct Entered {
    home: File,
    /// Only the thread that came may go.
    _stays: PhantomData<*const ()>,
}

impl Host {
    /// Makes the host and the carrier's end of its device.
    pub(crate) fn new(name: &str, index: usize, address: Ipv4Addr) -> Result<(Self, SyncDevice), Error> {
        let (jobs, queue) = sync_channel::<Job>(16);
        let (report, made) = sync_channel(1);
        let live = move || {
            let device = namespace::leave_for_new(address);
            let namespace = namespace::current().map_err(Error::system("open the network namespace"));
            let made = device.and_then(|device| Ok((device, namespace?)));
            if report.send(made).is_ok() {
                queue.iter().for_each(|job| job());
            }
        };
        let thread = thread::Builder::new().name(format!("host {name}"));
        thread.spawn(live).map_err(Error::system("start a thread"))?;
        let (device, namespace) = made
            .recv()
            .map_err(|_| Error::System { step: "make a host", source: io::Error::other("its thread ended") })??;
        Ok((Self(Arc::new(Inner { name: name.to_owned(), index, address, namespace, jobs })), device))
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its address. It has no other but 127.0.0.1, which is its own.
    pub fn address(&self) -> Ipv4Addr {
        self.0.address
    }

    pub(crate) fn index(&self) -> usize {
        self.0.index
    }

    /// A command for [`Host::spawn`]: `program`, killed by the kernel when the host vanishes.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(TETHER);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// Starts a process on this host. The process has the id that the child tells; when this returns, it runs, and
    /// dies with the host.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        let child = self.run(move || command.spawn())?;
        // Before the tether has become the program, it may not have asked for its signal yet.
        let program = PathBuf::from(format!("/proc/{}/exe", child.id()));
        let patience = Instant::now() + TETHER_PATIENCE;
        while Instant::now() < patience && fs::read_link(&program).is_ok_and(|program| program.ends_with(TETHER)) {
            thread::yield_now();
        }
        Ok(child)
    }

    /// Runs `job` on this host's thread and waits for it.
    ///
    /// # Panics
    /// If the job does.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (report, done) = sync_channel(1);
        let job: Job = Box::new(move || drop(report.send(job())));
        self.0.jobs.send(job).expect("the thread of a host lives as long as the host, if no job panics");
        done.recv().expect("the job did not panic")
    }

    /// Moves this thread to the host. An async test does so for as long as it makes sockets, with a runtime that runs
    /// on this thread alone.
    pub fn enter(&self) -> io::Result<Entered> {
        let home = namespace::current()?;
        namespace::join(&self.0.namespace)?;
        Ok(Entered { home, _stays: PhantomData })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        namespace::join(&self.home).expect("the namespace exists as long as its descriptor, and root may return");
    }
}

/// Of util-linux: asks for a signal at the death of the parent, then becomes the program.
pub(crate) const TETHER: &str = "setpriv";

/// How long it may take for that.
const TETHER_PATIENCE: Duration = Duration::from_secs(10);
