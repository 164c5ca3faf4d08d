//! The service supervisor: readiness, watchdog, and a socket that was open before.

use std::{
    net::TcpListener,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use tokio::net::UnixDatagram;

use super::CHAT;
use crate::harness::{Ask, Gateway, Stream, ask, engine, free_port, on, within};

struct Supervisor {
    socket: UnixDatagram,
    path: String,
    _folder: tempfile::TempDir,
}

impl Supervisor {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, path: path.to_str().unwrap().to_owned(), _folder: folder }
    }

    async fn hears(&self, wanted: &str) {
        within(wanted, async {
            let mut message = [0; 256];
            loop {
                let length = self.socket.recv(&mut message).await.unwrap();
                if String::from_utf8_lossy(&message[..length]).lines().any(|line| line == wanted) {
                    return;
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn it_is_told_of_the_start_the_life_and_the_end() {
    let supervisor = Supervisor::new();
    let environment = [("NOTIFY_SOCKET", supervisor.path.as_str()), ("WATCHDOG_USEC", "100000")];
    let mut gateway = Gateway::launch_in(&[], &[], &environment, &[]).await;
    supervisor.hears("READY=1").await;
    assert_eq!(gateway.ask(&Ask::get("/livez")).await.status, 200);
    supervisor.hears("WATCHDOG=1").await;
    supervisor.hears("WATCHDOG=1").await;
    gateway.signal("TERM");
    supervisor.hears("STOPPING=1").await;
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn a_supervisor_that_is_gone_does_not_matter() {
    let supervisor = Supervisor::new();
    let path = supervisor.path.clone();
    drop(supervisor);
    let gateway = Gateway::launch_in(&[], &[], &[("NOTIFY_SOCKET", path.as_str())], &[]).await;
    assert_eq!(gateway.ask(&Ask::get("/livez")).await.status, 200);
}

/// Ends the process with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::test]
async fn a_socket_that_was_open_before_is_taken_over() {
    let engine = engine(smg_mock_worker::Config::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // A client that comes before the gateway does: it is served, not refused.
    let early = tokio::net::TcpStream::connect(address).await.unwrap();
    drop(early);
    // The shell moves the socket to where the protocol wants it, and becomes the gateway.
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let metrics_port = free_port().to_string();
    let flags = ["launch", "--port", "1", "--prometheus-host", "127.0.0.1", "--prometheus-port", &metrics_port];
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_smg")]).args(flags).args(["--worker-urls", engine.url()]);
    command.current_dir(folder.path()).stdin(Stdio::from(OwnedFd::from(listener)));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let _gateway = Ended(command.spawn().unwrap());
    crate::harness::settled("readiness", async || ask(address, &Ask::get("/readyz")).await.status == 200).await;
    let answer = ask(address, &on(CHAT, "demo", Stream::No)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}
