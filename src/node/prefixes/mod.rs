//! What workers' caches hold, found out by one node each and told to all.

mod claims;
mod copy;
mod lane;
mod plane;
mod segments;
