//! Listener, keys, limits, TLS: what guards the two edges.
