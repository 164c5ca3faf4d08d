//! Retries, breakers, health, drains and admission, seen from outside.

mod admission;
mod breaker;
mod lifecycle;
mod retries;
mod stopping;
