//! Real QUIC: who is let in, what connections do, and whole nodes on loopback; and whole nodes in virtual time.

mod admission;
mod cluster;
mod network;
mod relayed;
mod streams;
mod unhurried;

use std::{net::SocketAddr, sync::Arc};

use smg_base::Secret;
use smg_runtime::{Receiver, channel, metrics::Registrar};

use crate::{
    DialError, Security,
    driver::Inbound,
    endpoint::{Admitted, Endpoint, Peer, Purpose},
    identity::Identity,
};

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A token that `mark` tells from others.
fn token(mark: &str) -> Secret {
    Secret::new(format!("{mark}-0123456789-0123456789"))
}

fn tokens(marks: &[&str]) -> Security {
    Security::Tokens(marks.iter().map(|mark| token(mark)).collect())
}

fn identity(cluster: &str, name: &str) -> Identity {
    Identity { cluster: cluster.to_owned(), name: name.to_owned() }
}

fn endpoint(name: &str, security: Security) -> Arc<Endpoint> {
    Arc::new(Endpoint::bind(loopback(), security, identity("smg", name)).expect("it binds").0)
}

/// Both ends of a connection from one endpoint to another.
struct Joined {
    near: Peer,
    far: Admitted,
}

/// Connects two endpoints.
async fn joined(from: &Endpoint, to: &Endpoint, purpose: Purpose) -> Result<Joined, DialError> {
    let admitted = async {
        let incoming = to.accept().await.expect("the endpoint is open");
        to.admit(incoming).await
    };
    let (near, far) = tokio::join!(from.dial(to.address(), purpose), admitted);
    Ok(Joined { near: near?, far: far? })
}

/// A queue such as that of a driver.
fn queue() -> (smg_runtime::Sender<Inbound>, Receiver<Inbound>) {
    channel("test", 64, &Registrar::new())
}
