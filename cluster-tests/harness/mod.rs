//! What the scenarios are told with: a gateway process, fake engines, a byte-exact client, and bounded waiting.

// Each scenario uses a part of it.
#![allow(dead_code, reason = "shared by groups of scenarios that are written apart")]
#![allow(unused_imports, reason = "shared by groups of scenarios that are written apart")]

mod client;
mod cluster;
mod gateway;
mod http2;
mod lab;
mod load;
mod nodes;
mod raw;
mod wait;

pub(crate) use client::{Answer, Ask, Connection, Event, Head, Piece, ask, events};
pub(crate) use cluster::{Cluster, Stream, caller_id, check_refused, engine, on, serving};
pub(crate) use gateway::{Gateway, free_port};
pub(crate) use http2::Http2;
pub(crate) use lab::{Engine, Lab, new_token, skipped};
pub(crate) use load::{Load, Miss, Plan, Replay, Tally};
pub(crate) use nodes::{Node, agreed, formed, launched, lost, serving_all};
pub(crate) use raw::{RawAnswer, RawEngine};
pub(crate) use wait::{PATIENCE, settled, stays, took, wait_for, within};
