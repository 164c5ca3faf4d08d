//! Bounded channels with a name, whose depth is a metric.

use tokio::sync::mpsc::{
    self,
    error::{SendError, TryRecvError, TrySendError},
};

use prometheus::IntCounter;

use crate::metrics::Registrar;

/// Makes a channel that holds at most `capacity` values (at least one).
///
/// `smg_channel_depth{channel}` shows how many wait, `smg_channel_capacity{channel}` how many may, and
/// `smg_channel_refused_total{channel}` how many [`Sender::try_send`] turned away because it was full.
pub fn channel<T: Send + 'static>(
    name: &'static str,
    capacity: usize,
    registrar: &Registrar,
) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    let refused =
        registrar.counter_vec("smg_channel_refused_total", "Values refused because a channel was full.", &["channel"]);
    observe(name, &sender, registrar);
    (Sender { name, sender, refused: refused.with_label_values(&[name]) }, Receiver { name, receiver })
}

/// Depth is read when metrics are, so sending and receiving pay nothing for it.
fn observe<T: Send + 'static>(name: &'static str, sender: &mpsc::Sender<T>, registrar: &Registrar) {
    let depth = registrar.gauge_vec("smg_channel_depth", "Values waiting in a channel.", &["channel"]);
    let most = registrar.gauge_vec("smg_channel_capacity", "Values a channel can hold.", &["channel"]);
    most.with_label_values(&[name]).set(i64::try_from(sender.max_capacity()).unwrap_or(i64::MAX));
    let depth = depth.with_label_values(&[name]);
    let sender = sender.downgrade();
    registrar.on_gather(move || {
        let waiting = sender.upgrade().map_or(0, |sender| sender.max_capacity() - sender.capacity());
        depth.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    });
}

/// The sending side; clones share the channel.
#[derive(Debug)]
pub struct Sender<T> {
    name: &'static str,
    sender: mpsc::Sender<T>,
    refused: IntCounter,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { name: self.name, sender: self.sender.clone(), refused: self.refused.clone() }
    }
}

impl<T> Sender<T> {
    /// The channel's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Waits for room, then sends. Fails, giving the value back, if the receiver is gone.
    pub async fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.sender.send(value).await
    }

    /// Sends if there is room now; gives the value back if not, or if the receiver is gone.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let sent = self.sender.try_send(value);
        if let Err(TrySendError::Full(_)) = &sent {
            self.refused.inc();
        }
        sent
    }

    /// Waits until the receiver is gone.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

/// The receiving side.
#[derive(Debug)]
pub struct Receiver<T> {
    name: &'static str,
    receiver: mpsc::Receiver<T>,
}

impl<T> Receiver<T> {
    /// The channel's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The next value; `None` once all senders are gone and the channel is empty. Safe to cancel.
    pub async fn recv(&mut self) -> Option<T> {
        self.receiver.recv().await
    }

    /// The next value if one waits.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.receiver.try_recv()
    }

    /// How many values wait.
    pub fn len(&self) -> usize {
        self.receiver.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Lets no more in; what waits can still be received.
    pub fn close(&mut self) {
        self.receiver.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn depth_and_refusals_are_counted() {
        let registrar = Registrar::new();
        let (sender, mut receiver) = channel("test", 2, &registrar);
        sender.send(1).await.expect("room");
        sender.try_send(2).expect("room");
        assert!(matches!(sender.try_send(3), Err(TrySendError::Full(3))));
        let text = registrar.encode();
        for line in [
            "smg_channel_depth{channel=\"test\"} 2",
            "smg_channel_capacity{channel=\"test\"} 2",
            "smg_channel_refused_total{channel=\"test\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert_eq!(receiver.recv().await, Some(1));
        assert_eq!(receiver.len(), 1);
        drop(sender);
        assert_eq!(receiver.recv().await, Some(2));
        assert_eq!(receiver.recv().await, None);
        assert!(registrar.encode().contains("smg_channel_depth{channel=\"test\"} 0"));
    }
}
