//! Copies of bytes that recovery leaves out, in `quarantine/`: torn tails, and what is damaged when it was told to go on.
//!
//! They are for people and never read back. A copy that cannot be made is no reason not to start: the bytes stay where
//! they are until their segment is freed.

use std::io;
use std::path::Path;

use super::file::{create_temp, publish_temp, temp_path, write_all};
use super::format::{CHECKPOINT_DIR, LOG_DIR, QUARANTINE_DIR, segment_path};
use super::report::TornTail;
use super::salvage::{DamagedPlace, Salvage};
use super::survey::Survey;
use crate::disk::{Disk, OpenMode};

/// Bytes copied at once.
const COPY_CHUNK_BYTES: usize = 1 << 20;

/// Copies what was cut off into `quarantine/`, for inspection. Not being able to is no reason not to start: the
/// bytes stay where they are until their segment is freed.
pub(crate) fn keep_torn_tail(disk: &dyn Disk, survey: &Survey) -> Option<TornTail> {
    if survey.discarded.is_empty() {
        return None;
    }
    let mut torn = TornTail {
        cut_at: survey.end,
        discarded_bytes: 0,
        discarded_batch_count: 0,
        discarded_record_count: 0,
        kept_in: Vec::new(),
    };
    for discarded in &survey.discarded {
        torn.discarded_bytes += discarded.remains.len_bytes;
        torn.discarded_batch_count += discarded.remains.batch_count;
        torn.discarded_record_count += discarded.remains.record_count;
        let name = format!(
            "{QUARANTINE_DIR}/{}-{:08x}.torn",
            discarded.segment, discarded.from
        );
        let from = segment_path(discarded.segment);
        let (offset, len) = (u64::from(discarded.from), discarded.remains.len_bytes);
        match keep(disk, &from, offset, len, Path::new(&name)) {
            Ok(()) => torn.kept_in.push(name),
            Err(error) => tracing::warn!(%error, name, "cannot keep a copy of a torn tail"),
        }
    }
    Some(torn)
}

/// Copies the damaged bytes of the log that are listed, and damaged checkpoints and superblocks whole.
pub(crate) fn keep_damaged(disk: &dyn Disk, salvage: &mut Salvage) {
    for place in &salvage.places {
        let is_log = place.path.starts_with(LOG_DIR);
        if is_log && place.len_bytes == 0 {
            continue;
        }
        let (offset, len_bytes) = if is_log {
            (place.offset, place.len_bytes)
        } else {
            (0, u64::MAX)
        };
        let name = name_of(place);
        match keep(disk, &place.path, offset, len_bytes, Path::new(&name)) {
            Ok(()) => salvage.kept_in.push(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, name, "cannot keep a copy of damaged bytes"),
        }
    }
}

fn name_of(place: &DamagedPlace) -> String {
    let stem = place.path.file_stem().unwrap_or_default();
    let name = place.path.file_name().unwrap_or_default();
    if place.path.starts_with(LOG_DIR) {
        let stem = stem.to_string_lossy();
        format!("{QUARANTINE_DIR}/{stem}-{:08x}.damaged", place.offset)
    } else if place.path.starts_with(CHECKPOINT_DIR) {
        format!("{QUARANTINE_DIR}/{}", name.to_string_lossy())
    } else {
        format!("{QUARANTINE_DIR}/{}.damaged", name.to_string_lossy())
    }
}

/// Copies up to `len_bytes` from `offset` of one file durably into another.
fn keep(disk: &dyn Disk, from: &Path, offset: u64, len_bytes: u64, path: &Path) -> io::Result<()> {
    let kept = copy(disk, from, offset, len_bytes, path);
    if kept.is_err() {
        // What was copied takes space that may be all there is.
        let _ = disk.remove(&temp_path(path));
    }
    kept
}

fn copy(disk: &dyn Disk, from: &Path, offset: u64, len_bytes: u64, path: &Path) -> io::Result<()> {
    disk.create_dir(Path::new(QUARANTINE_DIR))?;
    let from = disk.open(from, OpenMode::Read)?;
    let to = create_temp(disk, path)?;
    let mut copied = 0;
    while copied < len_bytes {
        let remaining = usize::try_from(len_bytes - copied).unwrap_or(COPY_CHUNK_BYTES);
        let mut chunk = vec![0; remaining.min(COPY_CHUNK_BYTES)];
        let read = from.read_at(&mut chunk, offset + copied)?;
        if read == 0 {
            break;
        }
        write_all(&*to, chunk.get(..read).unwrap_or_default(), copied)?;
        copied += read as u64;
    }
    publish_temp(disk, &*to, path)
}
