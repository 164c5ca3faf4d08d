//! The protocol of a service supervisor: readiness, status and watchdog (`sd_notify(3)`), and sockets it opened for us
//! (`sd_listen_fds(3)`). Without a supervisor every call here does nothing.

use std::{env, ffi::OsString, net::TcpListener, os::unix::net::UnixDatagram, process, time::Duration};

use crate::{
    error::Error,
    shutdown::{Phase, Shutdown},
};

/// Tells the supervisor how the service does.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    socket: Option<Address>,
    watchdog: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Address {
    Path(OsString),
    /// A name in Linux's abstract namespace, without the mark `@` in front.
    Abstract(Vec<u8>),
}

impl Notifier {
    /// The supervisor named by the environment: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name| variable(name).and_then(|value| value.into_string().ok());
        let for_us = text("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(process::id()));
        let micros = text("WATCHDOG_USEC").and_then(|micros| micros.parse().ok()).filter(|micros| *micros > 0);
        Self {
            socket: variable("NOTIFY_SOCKET").and_then(Address::parse),
            watchdog: micros.filter(|_| for_us).map(Duration::from_micros),
        }
    }

    /// Whether somebody listens.
    pub fn is_supervised(&self) -> bool {
        self.socket.is_some()
    }

    /// The time within which the supervisor wants a sign of life, if it does.
    pub fn watchdog_timeout(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The service has started, or has finished reloading.
    pub fn ready(&self) -> Result<(), Error> {
        self.send("READY=1")
    }

    /// The service began to stop.
    pub fn stopping(&self) -> Result<(), Error> {
        self.send("STOPPING=1")
    }

    /// A line for people; line breaks in it become spaces.
    pub fn status(&self, line: &str) -> Result<(), Error> {
        self.send(&format!("STATUS={}", line.replace(['\n', '\r'], " ")))
    }

    /// A sign of life.
    pub fn watchdog(&self) -> Result<(), Error> {
        self.send("WATCHDOG=1")
    }

    /// Gives signs of life, twice in each interval, until the process stops. As a task it proves that the runtime
    /// still runs tasks. Waits idly if nobody asked.
    pub async fn keep_alive(&self, shutdown: Shutdown) {
        let Some(timeout) = self.watchdog.filter(|_| self.is_supervised()) else {
            return shutdown.reached(Phase::Stopped).await;
        };
        let mut ticks = tokio::time::interval((timeout / 2).max(Duration::from_millis(1)));
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if let Err(error) = self.watchdog() {
                        tracing::warn!(%error, "watchdog notification failed");
                    }
                }
                () = shutdown.reached(Phase::Stopped) => return,
            }
        }
    }

    fn send(&self, message: &str) -> Result<(), Error> {
        let Some(address) = &self.socket else { return Ok(()) };
        let send = || {
            let socket = UnixDatagram::unbound()?;
            // A supervisor that does not read must not hold up the service.
            socket.set_nonblocking(true)?;
            address.send(&socket, message.as_bytes())
        };
        send().map_err(Error::Notify)
    }
}

impl Address {
    fn parse(value: OsString) -> Option<Self> {
        let bytes = value.as_encoded_bytes();
        match bytes.first()? {
            b'/' => Some(Self::Path(value)),
            b'@' => Some(Self::Abstract(bytes[1..].to_vec())),
            _ => None,
        }
    }

    #[cfg(target_os = "linux")]
    fn send(&self, socket: &UnixDatagram, message: &[u8]) -> std::io::Result<()> {
        use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};

        match self {
            Self::Path(path) => socket.send_to(message, path)?,
            Self::Abstract(name) => socket.send_to_addr(message, &SocketAddr::from_abstract_name(name)?)?,
        };
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn send(&self, socket: &UnixDatagram, message: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Path(path) => socket.send_to(message, path).map(drop),
            Self::Abstract(_) => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }
}

/// A listening socket the supervisor opened.
#[derive(Debug)]
pub struct Inherited {
    /// The name its unit gives it (`FileDescriptorName=`); by default the unit's own.
    pub name: Option<String>,
    /// The socket, set not to block, as tokio wants it.
    pub listener: TcpListener,
}

/// Adopts the sockets passed by the supervisor (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`), in their order. To be
/// called once, before any thread is started: it takes the variables out of the environment.
pub fn inherited_listeners() -> Result<Vec<Inherited>, Error> {
    let names: Vec<String> =
        env::var("LISTEN_FDNAMES").map(|names| names.split(':').map(str::to_owned).collect()).unwrap_or_default();
    let mut passed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::with_capacity(passed.len());
    for index in 0..passed.len() {
        let adopt = |source| Error::Inherited { index, source };
        let Some(listener) = passed.take_tcp_listener(index).map_err(adopt)? else { continue };
        listener.set_nonblocking(true).map_err(adopt)?;
        let name = names.get(index).filter(|name| !name.is_empty() && *name != "unknown").cloned();
        listeners.push(Inherited { name, listener });
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn notifier(variables: &[(&str, &str)]) -> Notifier {
        Notifier::from_variables(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| v.into()))
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).expect("a message waits");
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    #[test]
    fn messages_reach_a_socket_in_the_file_system() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let notifier = notifier(&[("NOTIFY_SOCKET", path.to_str().expect("text"))]);
        assert!(notifier.is_supervised());
        notifier.ready().expect("sent");
        notifier.status("two\nlines").expect("sent");
        notifier.watchdog().expect("sent");
        notifier.stopping().expect("sent");
        let all: Vec<_> = (0..4).map(|_| received(&socket)).collect();
        assert_eq!(all, ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"]);
        drop((socket, folder));
        assert!(matches!(notifier.ready(), Err(Error::Notify(_))));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn messages_reach_an_abstract_socket() {
        use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};

        let name = format!("smg-notify-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        notifier(&[("NOTIFY_SOCKET", &format!("@{name}"))]).ready().expect("sent");
        assert_eq!(received(&socket), "READY=1");
    }

    #[test]
    fn the_watchdog_is_ours_only_if_it_names_us() {
        let check = |variables: &[(&str, &str)], expected: Option<Duration>| {
            assert_eq!(notifier(variables).watchdog_timeout(), expected, "{variables:?}");
        };
        let ours = process::id().to_string();
        let three = Some(Duration::from_secs(3));
        check(&[], None);
        check(&[("WATCHDOG_USEC", "3000000")], three);
        check(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", &ours)], three);
        check(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "1")], None);
        check(&[("WATCHDOG_USEC", "0")], None);
        check(&[("WATCHDOG_USEC", "soon")], None);
    }

    #[test]
    fn without_a_supervisor_nothing_happens() {
        for notifier in [notifier(&[]), notifier(&[("NOTIFY_SOCKET", "relative")]), notifier(&[("NOTIFY_SOCKET", "")])]
        {
            assert!(!notifier.is_supervised());
            notifier.ready().expect("nothing to do");
        }
    }

    const CHILD: &str = "SMG_TEST_INHERITS";

    /// A supervisor's part is played by this test, that of the service by the same executable, in which only
    /// [`a_service_that_inherits`] runs. The socket is passed as standard input, since the first descriptor may be
    /// named by `LISTEN_FDS_FIRST_FD`.
    #[test]
    fn sockets_of_the_supervisor_are_adopted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let served = process::Command::new(env::current_exe().expect("a path"))
            .args(["--exact", "systemd::tests::a_service_that_inherits", "--nocapture"])
            .envs([(CHILD, "1"), ("LISTEN_FDS", "1"), ("LISTEN_FDS_FIRST_FD", "0"), ("LISTEN_FDNAMES", "traffic")])
            .stdin(OwnedFd::from(listener))
            .output()
            .expect("the service ran");
        let said = String::from_utf8_lossy(&served.stdout);
        assert!(said.contains(&format!("inherited {address} as traffic")), "{said}");
    }

    #[test]
    fn a_service_that_inherits() {
        if env::var_os(CHILD).is_none() {
            assert!(inherited_listeners().expect("nothing to adopt").is_empty());
            return;
        }
        let [socket] = inherited_listeners().expect("a socket").try_into().expect("one socket");
        let address = socket.listener.local_addr().expect("an address");
        println!("inherited {address} as {}", socket.name.expect("a name"));
        assert_eq!(socket.listener.accept().expect_err("nobody calls").kind(), std::io::ErrorKind::WouldBlock);
        assert!(inherited_listeners().expect("nothing left").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_come_twice_an_interval() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let variables = [("NOTIFY_SOCKET", path.to_str().expect("text")), ("WATCHDOG_USEC", "2000000")];
        let (notifier, shutdown) = (notifier(&variables), Shutdown::new());
        let lived = tokio::time::timeout(Duration::from_millis(3500), notifier.keep_alive(shutdown.clone())).await;
        assert!(lived.is_err(), "it goes on until the process stops");
        let signs: Vec<_> = (0..4).map(|_| received(&socket)).collect();
        assert_eq!(signs, ["WATCHDOG=1"; 4]);
        shutdown.advance(Phase::Stopped);
        notifier.keep_alive(shutdown).await;
    }
}
