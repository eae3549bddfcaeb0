//! Deliberate defects, so that the suite can be shown to notice them.
//!
//! A crash test that passes proves little until it has been seen to fail. A build with the cargo feature
//! `fault-injection` reads `STRATAMQ_FAULT` once and then commits the named defect; the suite run against
//! such a process must fail. Without the feature [`is_active`] is the constant `false`, so nothing of this
//! is left in a normal build.
//!
//! ```text
//! STRATAMQ_FAULT=skip-sync cargo test --features fault-injection     # must fail
//! ```

/// A defect that can be switched on by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `skip-sync`: fdatasync and fsync of files report success and do nothing.
    SkipSync,
    /// `skip-dir-sync`: the sync of a directory reports success and does nothing.
    SkipDirSync,
    /// `skip-crc`: readers take bytes whose checksum does not match.
    SkipCrc,
    /// `swap-superblock`: the superblock names a checkpoint before that is synced and has its name.
    SwapSuperblock,
    /// `swap-segments`: a segment gets its first batches before the one before it is synced.
    SwapSegments,
}

impl Fault {
    /// Every fault, in the order of the documentation.
    pub const ALL: [Self; 5] = [
        Self::SkipSync,
        Self::SkipDirSync,
        Self::SkipCrc,
        Self::SwapSuperblock,
        Self::SwapSegments,
    ];

    /// The word that selects this fault in `STRATAMQ_FAULT`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SkipSync => "skip-sync",
            Self::SkipDirSync => "skip-dir-sync",
            Self::SkipCrc => "skip-crc",
            Self::SwapSuperblock => "swap-superblock",
            Self::SwapSegments => "swap-segments",
        }
    }

    /// The fault called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }
}

/// True when this process was told to commit `fault`. Always false without the feature `fault-injection`.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
#[must_use]
pub const fn is_active(_fault: Fault) -> bool {
    false
}

/// True when this process was told to commit `fault` by the variable `STRATAMQ_FAULT`.
///
/// # Panics
/// When the variable holds a word that is no fault: a misspelt fault would look like a suite that
/// notices nothing.
#[cfg(feature = "fault-injection")]
#[must_use]
pub fn is_active(fault: Fault) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<Fault>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("STRATAMQ_FAULT")
            .ok()
            .filter(|name| !name.is_empty())?;
        match Fault::from_name(&name) {
            Some(fault) => Some(fault),
            None => panic!(
                "STRATAMQ_FAULT={name} is not one of {:?}",
                Fault::ALL.map(Fault::name)
            ),
        }
    });
    *chosen == Some(fault)
}

#[cfg(feature = "fault-injection")]
thread_local! {
    /// Files whose sync this thread has put off.
    static LATE: std::cell::RefCell<Vec<std::sync::Arc<dyn super::DiskFile>>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Has `file` synced by the next [`sync_late`] of this thread. Does nothing in a normal build.
#[cfg_attr(
    not(feature = "fault-injection"),
    expect(unused_variables, reason = "a fault only")
)]
pub fn put_off_sync(file: &std::sync::Arc<dyn super::DiskFile>) {
    #[cfg(feature = "fault-injection")]
    LATE.with_borrow_mut(|late| late.push(std::sync::Arc::clone(file)));
}

/// Syncs what was put off. Does nothing in a normal build.
pub fn sync_late() {
    #[cfg(feature = "fault-injection")]
    for file in LATE.take() {
        // Whoever waited for it has been told long ago.
        let _ = file.sync_data();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_by_its_name() {
        for fault in Fault::ALL {
            assert_eq!(Fault::from_name(fault.name()), Some(fault));
        }
        assert_eq!(Fault::from_name("skip"), None);
    }

    #[cfg(not(feature = "fault-injection"))]
    #[test]
    fn no_fault_is_active_in_a_normal_build() {
        assert!(Fault::ALL.into_iter().all(|fault| !is_active(fault)));
    }
}
