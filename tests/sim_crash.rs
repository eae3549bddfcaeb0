//! The storage engine against power failures, failing disks and damaged files; see [`sim`].

mod sim;
