//! Retries, breakers, health, drains and admission, seen from outside.
