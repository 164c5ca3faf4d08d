//! The mesh on the wire: QUIC, certificates, the loop that drives `mesh-proto`, and streams that carry requests to peers.
