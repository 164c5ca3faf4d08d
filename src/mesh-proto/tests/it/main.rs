//! Small clusters in virtual time.

mod cluster;
mod hostile;
mod membership;
