//! What goes wrong at engines and callers, and what the other side sees of it.

mod callers;
mod engines;
mod shapes;
