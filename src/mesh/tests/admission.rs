//! Who is let in.

use std::{fs, path::PathBuf};

use rustls::pki_types::PrivateKeyDer;
use smg_mesh_proto::NodeId;
use tokio::time::{Duration, timeout};

use super::*;
use crate::{
    Error, FileProblem,
    credentials::mint,
    endpoint::explained,
    token::{Authority, Keys},
};

#[tokio::test]
async fn both_sides_learn_who_is_there_and_what_for() {
    let (a, b) = (endpoint("a", tokens(&["one"])), endpoint("b/1", tokens(&["one"])));
    for purpose in [Purpose::Mesh, Purpose::Relay] {
        let joined = joined(&a, &b, purpose).await.expect("they connect");
        assert_eq!(joined.near.identity, identity("smg", "b/1"));
        assert_eq!(joined.far.peer.identity, identity("smg", "a"));
        assert_eq!(joined.far.peer.identity.node(), NodeId::of("a"));
        assert_eq!(joined.far.purpose, purpose);
    }
}

/// How `dialler` fares at `listener`, as an operator is told.
async fn check(dialler: (&str, Security), listener: (&str, Security), expected: Result<(), &str>) {
    let bind = |cluster: &str, name, security| {
        Endpoint::bind(loopback(), security, identity(cluster, name)).expect("it binds").0
    };
    let what = format!("{dialler:?} at {listener:?}");
    let (from, to) = (bind(dialler.0, "a", dialler.1), bind(listener.0, "b", listener.1));
    let outcome = async {
        let joined = joined(&from, &to, Purpose::Mesh).await?;
        drop(joined.far);
        Ok::<(), DialError>(())
    };
    let outcome = timeout(Duration::from_secs(5), outcome).await.expect("in time");
    match (outcome, expected) {
        (Ok(()), Ok(())) => {}
        (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{what}: {error}"),
        (outcome, _) => panic!("{what}: {outcome:?}"),
    }
}

#[tokio::test]
async fn only_nodes_of_the_same_authority_and_cluster_are_let_in() {
    let foreign = "belongs to cluster 'other', this node to 'smg'";
    check(("smg", tokens(&["one"])), ("smg", tokens(&["one"])), Ok(())).await;
    check(("smg", tokens(&["one"])), ("smg", tokens(&["two"])), Err("another authority")).await;
    check(("smg", tokens(&["one"])), ("other", tokens(&["one"])), Err(foreign)).await;
    check(("smg", tokens(&["one"])), ("smg", Security::Throwaway), Err("another authority")).await;
    check(("smg", Security::Throwaway), ("smg", Security::Throwaway), Ok(())).await;
    // On the way from one token to the next: accept both, then show the new one, then drop the old one.
    check(("smg", tokens(&["old"])), ("smg", tokens(&["old", "new"])), Ok(())).await;
    check(("smg", tokens(&["old", "new"])), ("smg", tokens(&["new", "old"])), Ok(())).await;
    check(("smg", tokens(&["new"])), ("smg", tokens(&["new", "old"])), Ok(())).await;
    check(("smg", tokens(&["new"])), ("smg", tokens(&["old", "new"])), Err("another authority")).await;
}

#[tokio::test]
async fn a_node_that_is_refused_only_after_its_own_handshake_is_told_so() {
    // The dialler accepts the listener, but shows a certificate that the listener does not accept.
    let dialler = endpoint("a", tokens(&["old", "new"]));
    let listener = endpoint("b", tokens(&["new"]));
    let admitted = async {
        let incoming = listener.accept().await.expect("the endpoint is open");
        listener.admit(incoming).await
    };
    let (near, far) = tokio::join!(dialler.dial(listener.address(), Purpose::Mesh), admitted);
    assert_eq!(far.expect_err("it is refused"), DialError::OtherAuthority);
    let error = match near {
        Ok(peer) => explained(&peer.connection.closed().await),
        Err(error) => error,
    };
    assert_eq!(error, DialError::Refused);
}

#[tokio::test]
async fn nobody_answering_is_noticed_within_the_limit_of_a_handshake() {
    let silent = std::net::UdpSocket::bind(loopback()).expect("a socket");
    let from = endpoint("a", tokens(&["one"]));
    let outcome = from.dial(silent.local_addr().expect("bound"), Purpose::Mesh).await;
    assert_eq!(outcome.expect_err("nobody is there"), DialError::Timeout);
}

#[tokio::test]
async fn without_an_identity_only_this_machine_is_reached() {
    let everywhere: SocketAddr = ([0, 0, 0, 0], 0).into();
    let refused = Endpoint::bind(everywhere, Security::Throwaway, identity("smg", "a")).err().expect("it is refused");
    let text = refused.to_string();
    assert!(text.contains("smg mesh token") && text.contains("--mesh-ca"), "{text}");
    let from = endpoint("a", Security::Throwaway);
    let elsewhere = ([192, 0, 2, 1], 1).into();
    assert_eq!(from.dial(elsewhere, Purpose::Mesh).await.expect_err("refused"), DialError::NotLoopback);
    for weak in [tokens(&[]), Security::Tokens(vec![Secret::new("short")])] {
        assert!(matches!(Endpoint::bind(loopback(), weak, identity("smg", "a")), Err(Error::WeakToken)));
    }
}

/// A folder with the files of one node.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn security(&self) -> Security {
        Security::Files {
            ca: vec![self.path("ca.pem")],
            cert: self.path("cert.pem"),
            key: self.path("key.pem"),
            token: None,
        }
    }

    /// Writes the authorities that are accepted.
    fn accept(&self, authorities: &[&Authority]) {
        let pems: String = authorities.iter().map(|authority| authority.certificate.pem()).collect();
        fs::write(self.path("ca.pem"), pems).expect("it is written");
    }

    /// Writes a certificate of `node` by `authority`, and its key.
    fn show(&self, node: &Identity, authority: &Authority) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let (certificate, key) = mint(node, authority, now);
        fs::write(self.path("cert.pem"), pem("CERTIFICATE", &certificate)).expect("it is written");
        let PrivateKeyDer::Pkcs8(key) = key else { panic!("keys have this form") };
        fs::write(self.path("key.pem"), pem("PRIVATE KEY", key.secret_pkcs8_der())).expect("it is written");
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * at) & 63).expect("six bits");
            text.push(if at <= chunk.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[tokio::test]
async fn certificates_are_read_again_and_authorities_change_without_a_gap() {
    let (old, new) = (Keys::of(b"old").authority(), Keys::of(b"new").authority());
    let folders = [Folder::new(), Folder::new()];
    let names = ["a", "b"].map(|name| identity("smg", name));
    let nodes = [0, 1].map(|at| {
        folders[at].accept(&[&old]);
        folders[at].show(&names[at], &old);
        endpoint(&names[at].name, folders[at].security())
    });
    let both_ways = async || {
        joined(&nodes[0], &nodes[1], Purpose::Mesh).await.map(drop)?;
        joined(&nodes[1], &nodes[0], Purpose::Mesh).await.map(drop)
    };
    both_ways().await.expect("both have the old authority");
    let kept = joined(&nodes[0], &nodes[1], Purpose::Mesh).await.expect("they connect");
    for step in 0..6 {
        let (at, folder) = (step % 2, &folders[step % 2]);
        match step / 2 {
            0 => folder.accept(&[&old, &new]),
            1 => folder.show(&names[at], &new),
            _ => folder.accept(&[&new]),
        }
        assert!(nodes[at].reload().expect("the files are good"), "step {step}");
        assert!(!nodes[at].reload().expect("the files are good"), "nothing has changed since");
        both_ways().await.unwrap_or_else(|error| panic!("step {step}: {error}"));
    }
    assert_eq!(kept.near.connection.close_reason(), None, "connections that stand, stay");

    fs::write(folders[0].path("cert.pem"), "no certificate").expect("it is written");
    assert!(nodes[0].reload().is_err());
    both_ways().await.expect("the last good ones stay in force");
    folders[0].accept(&[&old, &new]);
    folders[0].show(&names[0], &old);
    assert!(nodes[0].reload().expect("the files are good"));
    assert_eq!(both_ways().await, Err(DialError::OtherAuthority), "the old authority is no longer accepted");
}

#[tokio::test]
async fn files_that_cannot_work_are_refused_at_the_start() {
    let (ours, theirs) = (Keys::of(b"ours").authority(), Keys::of(b"theirs").authority());
    let own = identity("smg", "a");
    type Spoil = fn(&Folder, &Authority);
    let cases: [(&str, Spoil); 6] = [
        ("no such file", |folder, _| fs::remove_file(folder.path("key.pem")).expect("removed")),
        ("holds no certificate", |folder, _| fs::write(folder.path("ca.pem"), "").expect("written")),
        ("of smg://smg/b, but this node is smg://smg/a", |folder, ca| folder.show(&identity("smg", "b"), ca)),
        ("of smg://other/a, but this node is smg://smg/a", |folder, ca| folder.show(&identity("other", "a"), ca)),
        ("not be accepted by this node itself", |folder, _| folder.accept(&[&Keys::of(b"else").authority()])),
        ("not be accepted by this node itself", |folder, ca| {
            let cert = fs::read(folder.path("cert.pem")).expect("read");
            folder.show(&identity("smg", "a"), ca);
            fs::write(folder.path("cert.pem"), cert).expect("written");
        }),
    ];
    for (text, spoil) in cases {
        let folder = Folder::new();
        folder.accept(&[&ours, &theirs]);
        folder.show(&own, &ours);
        Endpoint::bind(loopback(), folder.security(), own.clone()).map(drop).expect("good files");
        spoil(&folder, &ours);
        let error = Endpoint::bind(loopback(), folder.security(), own.clone()).err().expect(text);
        assert!(error.to_string().to_lowercase().contains(text), "{text}: {error}");
        assert!(matches!(
            error,
            Error::File {
                problem: FileProblem::Pem(_)
                    | FileProblem::Empty
                    | FileProblem::OtherNode { .. }
                    | FileProblem::NotAccepted(_),
                ..
            }
        ));
    }
}

#[tokio::test]
async fn a_restarted_node_tells_its_peers_that_it_has_forgotten_them() {
    let a = endpoint("a", tokens(&["one"]));
    // A runtime of its own is the only way to end a node without a word.
    let process =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let crashing = process.spawn(async { endpoint("b", tokens(&["one"])) }).await.expect("it binds");
    let port = crashing.address();
    let server = Arc::clone(&crashing);
    let held = process.spawn(async move {
        let incoming = server.accept().await.expect("the endpoint is open");
        server.admit(incoming).await
    });
    let peer = a.dial(port, Purpose::Mesh).await.expect("they connect");
    let held = held.await.expect("it runs").expect("it is let in");
    // Once nothing runs any more, not even a close can be sent.
    tokio::task::spawn_blocking(move || process.shutdown_timeout(Duration::from_secs(5))).await.expect("it ends");
    drop((crashing, held));
    let again = loop {
        match Endpoint::bind(port, tokens(&["one"]), identity("smg", "b")) {
            Ok(bound) => break bound.0,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let word = async {
        while let Ok(mut stream) = peer.connection.open_uni().await {
            // Fails with the connection.
            let _ = stream.write_all(&[7; 100]).await;
            tokio::task::yield_now().await;
        }
        peer.connection.closed().await
    };
    let gone = timeout(Duration::from_secs(5), word).await.expect("sooner than the idle limit");
    assert_eq!(gone, quinn::ConnectionError::Reset);
    drop(again);
}
