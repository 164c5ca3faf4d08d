//! Who is there.

mod identity;
mod packet;
mod swim;

pub(crate) use identity::Identity;
