//! Where requests go.

mod caches;
mod keys;
mod models;
mod placement;
