//! The operating system's files.

/// Files below one directory of the operating system.
#[derive(Debug)]
pub struct RealDisk {}

/// The system's clocks.
#[derive(Debug)]
pub struct RealClock {}
