//! Names of the files and directories below the data directory.

use std::path::{Path, PathBuf};

use crate::storage::types::{QueueId, SegmentId};

/// The lock of the data directory.
pub const LOCK_FILE: &str = "LOCK";
/// The two copies of the superblock, in the order in which they are written.
pub const SUPERBLOCK_FILES: [&str; 2] = ["superblock.0", "superblock.1"];
/// Space put aside for a full disk.
pub const RESERVE_FILE: &str = "reserve";
/// Directory of segments.
pub const LOG_DIR: &str = "log";
/// Extension of segments.
pub const SEGMENT_EXTENSION: &str = "segment";
/// Extension of segments of messages that were moved out of the log.
pub const COLD_EXTENSION: &str = "cold";
/// Extension of files that may become segments.
pub const SPARE_EXTENSION: &str = "spare";
/// Directory of checkpoints.
pub const CHECKPOINT_DIR: &str = "checkpoint";
/// Extension of checkpoints.
pub const CHECKPOINT_EXTENSION: &str = "checkpoint";
/// Directory of index files.
pub const INDEX_DIR: &str = "index";
/// Extension of index files.
pub const INDEX_EXTENSION: &str = "index";
/// Extension of files that are being written; leftovers are replaced or removed by the next attempt.
pub const TEMP_EXTENSION: &str = "tmp";
/// Directory of copies of cut tails.
pub const QUARANTINE_DIR: &str = "quarantine";

/// Path of a segment below the data directory.
#[must_use]
pub fn segment_path(segment: SegmentId) -> PathBuf {
    let extension = if segment.is_cold() {
        COLD_EXTENSION
    } else {
        SEGMENT_EXTENSION
    };
    format!("{LOG_DIR}/{segment}.{extension}").into()
}

/// Path of a spare, a file that may become a segment. The number says which segment it was, or was made for.
#[must_use]
pub fn spare_path(segment: SegmentId) -> PathBuf {
    format!("{LOG_DIR}/{segment}.{SPARE_EXTENSION}").into()
}

/// Path of a checkpoint below the data directory.
#[must_use]
pub fn checkpoint_path(generation: u64) -> PathBuf {
    format!("{CHECKPOINT_DIR}/{generation:016x}.{CHECKPOINT_EXTENSION}").into()
}

/// Path of the index file of a queue below the data directory.
#[must_use]
pub fn index_path(queue: QueueId) -> PathBuf {
    format!("{INDEX_DIR}/{:016x}.{INDEX_EXTENSION}", queue.0).into()
}

/// Number in a file name of `digits` lower-case hexadecimal digits and `extension`; `None` for other names.
#[must_use]
pub fn number_in_name(name: &Path, digits: usize, extension: &str) -> Option<u64> {
    let stem = name.to_str()?.strip_suffix(extension)?.strip_suffix('.')?;
    let is_canonical = stem.len() == digits
        && stem
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_canonical {
        u64::from_str_radix(stem, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_strangers_are_no_segments() {
        let path = segment_path(SegmentId(0x2a));
        assert_eq!(path, Path::new("log/00000000002a.segment"));
        let name = Path::new(path.file_name().expect("it has a name"));
        assert_eq!(number_in_name(name, 12, SEGMENT_EXTENSION), Some(0x2a));
        for stranger in [
            "2a.segment",
            "00000000002A.segment",
            "00000000002a.segment.tmp",
            "x",
        ] {
            assert_eq!(
                number_in_name(Path::new(stranger), 12, SEGMENT_EXTENSION),
                None
            );
        }
        assert_eq!(
            checkpoint_path(7),
            Path::new("checkpoint/0000000000000007.checkpoint")
        );
    }
}
