//! Who goes first where not all can go at once: classes, and tenants beside each other.

mod classes;
mod tenants;
