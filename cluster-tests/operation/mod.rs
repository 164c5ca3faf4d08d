//! Metrics, logs, reload, admin, command line: what operators use.
