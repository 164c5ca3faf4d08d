//! What the transport of the mesh counts.

use prometheus::{Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use smg_mesh_proto::{Class, MemberState, Status};
use smg_runtime::metrics::{DURATION_BUCKETS, Registrar, catch_up};

/// Everything counted here; clones share it.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) peer_connections: IntGaugeVec,
    pub(crate) peer_reconnects: IntCounterVec,
    pub(crate) peer_acks: IntCounterVec,
    pub(crate) peer_nacks: IntCounterVec,
    pub(crate) store_cardinality: IntGaugeVec,
    pub(crate) store_hash: IntGaugeVec,
    pub(crate) join_duration: Histogram,
    pub(crate) members: IntGaugeVec,
    pub(crate) doubted: IntGauge,
    pub(crate) verdicts: IntCounterVec,
    pub(crate) lag: IntGaugeVec,
    pub(crate) plane_bytes: IntGaugeVec,
    pub(crate) stretched: IntGauge,
    pub(crate) joined: IntGauge,
    pub(crate) frame_bytes: IntCounterVec,
    pub(crate) frames: IntCounterVec,
    pub(crate) wire_bytes: IntCounterVec,
    pub(crate) wire_datagrams: IntCounterVec,
    pub(crate) rtt: GaugeVec,
    pub(crate) loss: GaugeVec,
    pub(crate) expiry: IntGauge,
    pub(crate) handshakes_failed: IntCounterVec,
    pub(crate) skipped: IntCounterVec,
    pub(crate) misbehaved: IntCounterVec,
    pub(crate) relay_opened: IntGauge,
    pub(crate) relay_accepted: IntGauge,
    pub(crate) relay_failures: IntCounter,
    pub(crate) lateness: Gauge,
    pub(crate) posts_dropped: IntCounter,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registrar: &Registrar) -> Self {
        let counters = |name, help, labels: &[&str]| registrar.counter_vec(name, help, labels);
        // Shown as zero by a node that has not met anybody.
        let both_ways = |name, help| {
            let counters = counters(name, help, &["direction"]);
            for direction in ["sent", "received"] {
                counters.with_label_values(&[direction]);
            }
            counters
        };
        let gauges = |name, help, labels: &[&str]| registrar.gauge_vec(name, help, labels);
        let relays = gauges("smg_mesh_relay_streams", "Relayed requests under way, by who sent them.", &["direction"]);
        Self {
            peer_connections: gauges("router_mesh_peer_connections", "Connections to a peer.", &["peer"]),
            peer_reconnects: counters(
                "router_mesh_peer_reconnects_total",
                "Connections to a peer after the first.",
                &["peer"],
            ),
            peer_acks: counters("router_mesh_peer_ack_total", "Frames that a peer has acknowledged.", &["peer"]),
            peer_nacks: counters(
                "router_mesh_peer_nack_total",
                "Frames that did not reach a peer: no room in its queue, or the connection was lost.",
                &["peer", "status"],
            ),
            store_cardinality: gauges("router_mesh_store_cardinality", "Live entries of a plane.", &["store"]),
            store_hash: gauges(
                "router_mesh_store_hash",
                "Digest of a plane, cut to 53 bits: equal on nodes that know the same.",
                &["store"],
            ),
            join_duration: registrar.histogram(
                "router_mesh_sync_round_duration_seconds",
                "Time from the start until the node knew what its peers knew.",
                DURATION_BUCKETS,
            ),
            members: gauges("smg_mesh_members", "Members, this node included, by state.", &["state"]),
            doubted: registrar.gauge("smg_mesh_members_doubted", "Members through which requests are rather not sent."),
            verdicts: counters("smg_mesh_member_news_total", "News of other members, by their state.", &["state"]),
            lag: gauges(
                "smg_mesh_lag_versions",
                "Greatest number of own changes that a peer has not acknowledged.",
                &["store"],
            ),
            plane_bytes: gauges("smg_mesh_store_bytes", "Bytes of keys and values of a plane.", &["store"]),
            stretched: registrar
                .gauge("smg_mesh_stretched", "Whether probes are slowed because own links lose packets."),
            joined: registrar.gauge("smg_mesh_joined", "Whether the node has joined and knows what its peers know."),
            frame_bytes: counters("smg_mesh_frame_bytes_total", "Bytes of frames.", &["class", "direction"]),
            frames: counters("smg_mesh_frames_total", "Frames.", &["class", "direction"]),
            wire_bytes: both_ways(
                "smg_mesh_wire_bytes_total",
                "UDP payload of the connections of the mesh, relayed requests excluded.",
            ),
            wire_datagrams: both_ways(
                "smg_mesh_wire_datagrams_total",
                "UDP datagrams of the connections of the mesh, relayed requests excluded.",
            ),
            rtt: registrar.float_gauge_vec("smg_mesh_rtt_seconds", "Round trip time to a peer.", &["peer"]),
            loss: registrar.float_gauge_vec(
                "smg_mesh_loss_ratio",
                "Share of packets to a peer that were lost lately.",
                &["peer"],
            ),
            expiry: registrar.gauge(
                "smg_mesh_certificate_expiry_timestamp_seconds",
                "When this node's certificate ends, in seconds since 1970.",
            ),
            handshakes_failed: counters(
                "smg_mesh_handshakes_failed_total",
                "Connections that did not come about, by who dialled.",
                &["direction"],
            ),
            skipped: counters(
                "smg_mesh_skipped_total",
                "What came and only a newer version of the program understands.",
                &["what"],
            ),
            misbehaved: counters("smg_mesh_misbehaviour_total", "Connections closed because of what came.", &["peer"]),
            relay_opened: relays.with_label_values(&["sent"]),
            relay_accepted: relays.with_label_values(&["received"]),
            relay_failures: registrar
                .counter("smg_mesh_relay_failures_total", "Streams to peers that could not be opened."),
            lateness: registrar.float_gauge("smg_mesh_lateness_seconds", "How late the mesh's clock work last was."),
            posts_dropped: registrar
                .counter("smg_mesh_posts_dropped_total", "Writes nobody waits for that found no room."),
        }
    }

    /// Brings what is read from the mesh itself up to date.
    pub(crate) fn observe(&self, status: &Status) {
        for state in [MemberState::Alive, MemberState::Suspect, MemberState::Down, MemberState::Left] {
            let count = status.members.iter().filter(|member| member.state == state).count();
            self.members.with_label_values(&[state.as_str()]).set(whole(count));
        }
        self.doubted.set(whole(status.members.iter().filter(|member| member.doubted).count()));
        self.stretched.set(i64::from(status.stretched));
        self.joined.set(i64::from(status.joined));
        for (what, count) in [("frames", status.skipped.frames), ("entries", status.skipped.entries)] {
            catch_up(&self.skipped.with_label_values(&[what]), count);
        }
        for plane in &status.planes {
            let store = [plane.kind.as_str()];
            let entries = plane.lanes.iter().map(|lane| lane.entries).sum();
            let lag = plane.lanes.iter().map(|lane| lane.lag).max().unwrap_or_default();
            self.store_cardinality.with_label_values(&store).set(whole(entries));
            self.store_hash.with_label_values(&store).set(i64::try_from(plane.digest.0 >> 75).unwrap_or_default());
            self.lag.with_label_values(&store).set(i64::try_from(lag).unwrap_or(i64::MAX));
            self.plane_bytes.with_label_values(&store).set(whole(plane.bytes));
        }
    }
}

/// The name of a class in metrics.
pub(crate) const fn class_label(class: Class) -> &'static str {
    match class {
        Class::Swim => "swim",
        Class::Lane => "lane",
        Class::Bulk => "bulk",
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
