//! `strata-dump` on directories of every format version, and beside an engine or a broker that works.
//!
//! The directories under `tests/fixtures` were made once by [`fixtures`] and are never made again: a format change
//! that cannot read them fails here, and one that reads them otherwise shows in the expected texts.

#[path = "../support/mod.rs"]
mod support;

mod broker;
mod command;
mod damage;
mod filed;
mod fixtures;
mod load;
mod moved;
mod rescue;
mod ruled;
mod script;
mod scripted;
mod snapshots;
