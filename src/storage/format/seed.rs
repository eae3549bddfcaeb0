//! What checksums begin with: bytes of another store, segment or incarnation never validate.

use crate::storage::types::SegmentId;

/// Random name of a store; part of every checksum seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub [u8; 16]);

impl std::fmt::Display for StoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The value that the checksums of one segment, written by one incarnation, continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u32);

impl Seed {
    /// The seed of `segment` as written by incarnation `epoch` of `store`.
    #[must_use]
    pub fn new(store: StoreId, segment: SegmentId, epoch: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&store.0);
        hasher.update(&segment.0.to_le_bytes());
        hasher.update(&epoch.to_le_bytes());
        Self(hasher.finalize())
    }

    /// A checksum that continues this seed.
    #[must_use]
    pub fn hasher(self) -> crc32fast::Hasher {
        crc32fast::Hasher::new_with_initial(self.0)
    }

    /// The seeded checksum of `bytes`.
    #[must_use]
    pub fn crc(self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// True when a checksum read from disk agrees with the one computed.
///
/// Every check of a checksum in the engine goes through here, so that a build can remove them all and the
/// suite can be shown to notice.
#[must_use]
pub fn is_crc_right(stored: u32, computed: u32) -> bool {
    stored == computed || crate::disk::fault::is_active(crate::disk::fault::Fault::SkipCrc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_is_the_crc_of_what_precedes() {
        let seed = Seed::new(StoreId([7; 16]), SegmentId(3), 9);
        let mut whole = vec![7; 16];
        whole.extend(3u64.to_le_bytes());
        whole.extend(9u64.to_le_bytes());
        whole.extend(b"bytes");
        assert_eq!(seed.crc(b"bytes"), crc32fast::hash(&whole));
        assert_ne!(seed, Seed::new(StoreId([7; 16]), SegmentId(3), 10));
    }
}
