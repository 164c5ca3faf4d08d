//! Where the first peers are.

mod file;
mod names;
mod srv;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use smg_base::Backoff;
use smg_runtime::entropy;
use tokio::time::{sleep, timeout};

use crate::Config;

/// A source of addresses where peers may be. It is asked again and again.
pub trait Discover: Send + 'static {
    /// What it is, for logs.
    fn name(&self) -> String;

    /// The addresses that it knows of now.
    fn find(&mut self) -> BoxFuture<'_, Result<Vec<SocketAddr>, DiscoverError>>;
}

/// Why a source gave no addresses. Those it gave before stay in use.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// A name has no address, or the file cannot be read.
    #[error("{0}")]
    Io(
        /// Why.
        #[from]
        std::io::Error,
    ),
    /// What should be `host:port` is not.
    #[error("'{0}' is not of the form host:port")]
    Malformed(
        /// What it is instead.
        String,
    ),
    /// The name has no SRV record, or nobody knows.
    #[error("{0}")]
    Dns(
        /// Why.
        String,
    ),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
}

/// How long one source may take.
const FIND_MAX: Duration = Duration::from_secs(5);

/// Pause between two rounds when every source answers.
const ROUND: Duration = Duration::from_secs(5);

/// Pauses while some source does not.
const RETRY: Backoff = Backoff { initial: Duration::from_millis(500), max: ROUND, multiplier: 2.0, jitter: 0.2 };

/// The sources that `config` names.
pub(crate) fn sources(config: &Config) -> Vec<Box<dyn Discover>> {
    let mut sources: Vec<Box<dyn Discover>> = Vec::new();
    for seed in &config.seeds {
        sources.push(Box::new(names::Seed(seed.clone())));
    }
    for name in &config.srv {
        sources.push(Box::new(srv::Srv::new(name.clone())));
    }
    if let Some(path) = &config.peers_file {
        sources.push(Box::new(file::PeersFile(path.clone())));
    }
    sources
}

/// Asks all sources again and again, and follows what they know together.
pub(crate) struct Follower {
    sources: Vec<Source>,
    most: usize,
    /// What was last told; none at first.
    known: Option<Vec<SocketAddr>>,
    /// Rounds so far.
    rounds: u32,
    /// Rounds since every source last answered.
    failed_rounds: u32,
}

struct Source {
    discover: Box<dyn Discover>,
    found: Vec<SocketAddr>,
    complaint: Option<String>,
}

impl Follower {
    /// Follows `sources`; more than `most` addresses are cut off.
    pub(crate) fn new(sources: Vec<Box<dyn Discover>>, most: usize) -> Self {
        let sources = sources.into_iter().map(|discover| Source { discover, found: Vec::new(), complaint: None });
        Self { sources: sources.collect(), most, known: None, rounds: 0, failed_rounds: 0 }
    }

    /// Waits until the addresses are others than at the last call. Without any source that is at once, and then never
    /// again; while names are not yet known, nothing is told rather than that there are none.
    pub(crate) async fn next(&mut self) -> Vec<SocketAddr> {
        let random = entropy();
        loop {
            if self.rounds > 0 {
                let retry = self.failed_rounds.checked_sub(1).map(|round| RETRY.delay(round, &random));
                sleep(retry.unwrap_or(ROUND)).await;
            }
            self.rounds = self.rounds.saturating_add(1);
            let answers = join_all(self.sources.iter_mut().map(Source::ask)).await;
            let failed = answers.contains(&Answer::None);
            self.failed_rounds = if failed { self.failed_rounds.saturating_add(1) } else { 0 };
            let all: BTreeSet<_> = self.sources.iter().flat_map(|source| &source.found).copied().collect();
            let all: Vec<_> = all.into_iter().take(self.most).collect();
            let unknown = failed && all.is_empty();
            if !unknown && self.known.as_ref() != Some(&all) {
                self.known = Some(all.clone());
                return all;
            }
        }
    }
}

#[derive(PartialEq)]
enum Answer {
    Some,
    None,
}

impl Source {
    async fn ask(&mut self) -> Answer {
        let found = timeout(FIND_MAX, self.discover.find()).map(|found| found.unwrap_or(Err(DiscoverError::Timeout)));
        match found.await {
            Ok(found) => {
                self.found = found;
                self.complaint = None;
                Answer::Some
            }
            Err(error) => {
                let complaint = error.to_string();
                if self.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!(source = self.discover.name(), %error, "peers are not found, trying again");
                    self.complaint = Some(complaint);
                }
                Answer::None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use parking_lot::Mutex;

    use super::*;

    type Answers = Vec<Result<Vec<SocketAddr>, DiscoverError>>;

    struct Scripted(Arc<Mutex<Answers>>);

    impl Discover for Scripted {
        fn name(&self) -> String {
            "scripted".to_owned()
        }

        fn find(&mut self) -> BoxFuture<'_, Result<Vec<SocketAddr>, DiscoverError>> {
            let next = self.0.lock().pop().unwrap_or(Err(DiscoverError::Timeout));
            async move { next }.boxed()
        }
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_source_said_stays_while_it_is_silent_and_changes_are_followed() {
        let script = vec![
            Ok(vec![address(3), address(1)]),
            Err(DiscoverError::Malformed("x".to_owned())),
            Err(DiscoverError::Timeout),
            Ok(vec![address(2), address(1), address(2)]),
            Err(DiscoverError::Timeout),
        ];
        let mut follower = Follower::new(vec![Box::new(Scripted(Arc::new(Mutex::new(script))))], 2);
        assert_eq!(follower.next().await, vec![address(1), address(2)]);
        assert_eq!(follower.next().await, vec![address(1), address(3)]);
        let mut alone = Follower::new(Vec::new(), 2);
        assert_eq!(alone.next().await, vec![], "one without seeds knows it at once");
    }

    #[tokio::test]
    async fn names_and_files_are_resolved() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        writeln!(file, "# peers\n127.0.0.1:5\n\n  127.0.0.2  # the other").expect("it is written");
        for (mut source, expected) in [
            (Box::new(names::Seed("127.0.0.1:7".to_owned())) as Box<dyn Discover>, vec![address(7)]),
            (Box::new(names::Seed("[::1]:7".to_owned())), vec!["[::1]:7".parse().expect("an address")]),
            (Box::new(names::Seed("127.0.0.1".to_owned())), vec![address(crate::DEFAULT_PORT)]),
            (
                Box::new(file::PeersFile(file.path().to_owned())),
                vec![address(5), SocketAddr::from(([127, 0, 0, 2], crate::DEFAULT_PORT))],
            ),
        ] {
            assert_eq!(source.find().await.expect("found"), expected, "{}", source.name());
        }
        let local = names::Seed("localhost:7".to_owned()).find().await.expect("every system knows it");
        assert!(local.iter().all(|found| found.ip().is_loopback() && found.port() == 7) && !local.is_empty());
        for bad in ["", ":7", "host:", "host:70000", "a b:7"] {
            let found = names::Seed(bad.to_owned()).find().await;
            assert!(matches!(found, Err(DiscoverError::Malformed(_))), "{bad}: {found:?}");
        }
        assert!(file::PeersFile("/nowhere/at/all".into()).find().await.is_err());
    }
}
