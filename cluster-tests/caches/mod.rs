//! Conversations and the caches they left behind: whether nodes send a turn to where the turns before it are.

mod agents;
mod comparing;
mod failing;
mod figures;
mod setting;
mod streams;
