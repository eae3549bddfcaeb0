//! Opening a data directory: one path for a blank one, a clean stop and a crash.
//!
//! ```text
//! t1 lock, t2 sync what will be read and drop it from the cache, t3 read and verify (survey), t4 new epoch durable,
//! t5 keep a copy of a torn tail, t6 create a fresh segment, t7 write and sync its OPEN batch, t8 go
//! ```
//! - Until t4 nothing is written: what is refused is left as it was.
//! - t2: a broker that died may have left pages that the next power cut would take away. What is read is on the
//!   device, so what recovery builds upon cannot disappear later.
//! - Crash at any step: the next start finds the same end X, because no old file is ever changed; it only sees a
//!   higher epoch and perhaps a segment without a valid first batch, which is void.
//! - t7: from then on OPEN names X as the end of its predecessor; what is behind X is void for ever, and the
//!   segment number is above every existing file's, so no LSN is used twice.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::batch::{BatchBody, BatchHeader};
use super::error::StorageError;
use super::file::{create_temp, io_error, list_or_empty, publish_temp, temp_path, write_all};
use super::format::{
    CHECKPOINT_DIR, LOCK_FILE, LOG_DIR, QUARANTINE_DIR, SUPERBLOCK_FILES, StoreId, checkpoint_path,
    segment_path,
};
use super::pool::{self, Pool, Prepared};
use super::record::Entry;
use super::report::{Found, Recovered, RecoveryReport, TornTail};
use super::segment::{self, SegmentHeader};
use super::superblock::{self, Superblock};
use super::survey::{Discarded, Survey, survey};
use super::types::{Lsn, SegmentId};
use crate::disk::{Clock, DirectoryLock, Disk, DiskFile, OpenMode};

/// Bytes copied at once.
const COPY_CHUNK_BYTES: usize = 1 << 20;
/// Entry that file systems put into the root of a volume.
const LOST_AND_FOUND: &str = "lost+found";

/// A data directory ready to be appended to.
pub(crate) struct Opened {
    pub(crate) lock: Box<dyn DirectoryLock>,
    pub(crate) superblock: Superblock,
    pub(crate) fresh: FreshSegment,
    pub(crate) segments: BTreeSet<SegmentId>,
    pub(crate) recovered: Recovered,
}

/// The segment of this incarnation, its OPEN batch synced.
pub(crate) struct FreshSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) open_batch: Vec<u8>,
    pub(crate) open_header: BatchHeader,
}

/// Opens the data directory; `new_store` names the store if there is none yet. `pool` gets the spares that are there.
pub(crate) fn open(
    disk: &dyn Disk,
    clock: &dyn Clock,
    new_store: StoreId,
    pool: &Pool,
) -> Result<Opened, StorageError> {
    let begun_ns = clock.monotonic_ns();
    check_is_ours(disk)?;
    let lock = take_lock(disk)?;
    settle_superblocks(disk)?;
    let copies = superblock::read_copies(disk)?;
    let (superblock, is_blank) = match superblock::choose(disk, &copies)? {
        Some(superblock) => (superblock, false),
        None => (initialise(disk, clock, new_store)?, true),
    };
    settle_log(disk, &superblock)?;
    pool.add(pool::list(disk)?);
    let survey = survey(disk, superblock)?;
    let superblock = begin_epoch(disk, &survey)?;
    let torn = keep_torn_tail(disk, &survey);
    let fresh = open_fresh_segment(disk, clock, &superblock, &survey, pool)?;
    let mut segments = survey.segments.clone();
    segments.insert(fresh.header.segment);
    let found = if is_blank {
        Found::Fresh
    } else {
        describe(&survey, torn)
    };
    let mut recovered = finish(survey, found, superblock.epoch, segments.len() as u64);
    recovered.report.duration_ms = clock.monotonic_ns().saturating_sub(begun_ns) / 1_000_000;
    Ok(Opened {
        lock,
        superblock,
        fresh,
        segments,
        recovered,
    })
}

/// Refuses a directory whose content is not ours, before anything is created in it.
fn check_is_ours(disk: &dyn Disk) -> Result<(), StorageError> {
    let names = list_or_empty(disk, Path::new(""))?;
    let is_named = |name: &Path, known: &str| name == Path::new(known);
    let has_superblock = names
        .iter()
        .any(|name| SUPERBLOCK_FILES.iter().any(|known| is_named(name, known)));
    if has_superblock {
        return Ok(());
    }
    let temporary = SUPERBLOCK_FILES.map(|name| temp_path(Path::new(name)));
    let known = [
        LOCK_FILE,
        LOG_DIR,
        CHECKPOINT_DIR,
        QUARANTINE_DIR,
        LOST_AND_FOUND,
    ];
    let foreign = names
        .iter()
        .find(|name| !known.iter().any(|known| is_named(name, known)) && !temporary.contains(name));
    let has_log = !segment::list(disk)?.is_empty()
        || !list_or_empty(disk, Path::new(CHECKPOINT_DIR))?.is_empty();
    match foreign {
        Some(name) => Err(StorageError::NotADataDirectory {
            path: disk.describe(Path::new("")),
            found: name.display().to_string(),
        }),
        None if has_log => {
            let detail = "both copies of the superblock are missing, but there is a log";
            Err(super::file::damaged(
                disk,
                Path::new(SUPERBLOCK_FILES[0]),
                0,
                detail,
            ))
        }
        None => Ok(()),
    }
}

fn take_lock(disk: &dyn Disk) -> Result<Box<dyn DirectoryLock>, StorageError> {
    let path = Path::new(LOCK_FILE);
    disk.lock(path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => StorageError::Locked {
            path: disk.describe(Path::new("")),
        },
        _ => io_error(disk, "lock the data directory", path)(error),
    })
}

/// Makes a blank store: directories first, then the superblock, which alone says that there is a store.
fn initialise(
    disk: &dyn Disk,
    clock: &dyn Clock,
    store: StoreId,
) -> Result<Superblock, StorageError> {
    for dir in [LOG_DIR, CHECKPOINT_DIR, QUARANTINE_DIR] {
        let path = Path::new(dir);
        disk.create_dir(path)
            .map_err(io_error(disk, "create a directory", path))?;
    }
    sync_dir(disk, "")?;
    let superblock = Superblock {
        store,
        sequence: 1,
        epoch: 0,
        checkpoint_generation: 0,
        begin: Lsn(0),
        synced: Lsn(0),
        created_at_ms: clock.unix_ms(),
    };
    superblock.write(disk)?;
    Ok(superblock)
}

/// Makes sure that what is read is what a power cut would leave: syncs first, then drops the cache.
fn settle(disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
    let error = |operation| io_error(disk, operation, path);
    let file = match disk.open(path, OpenMode::Read) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(error("open"))?,
    };
    file.sync_data()
        .map_err(error("sync, before it is read,"))?;
    file.drop_cache().map_err(error("drop the cache of"))
}

fn sync_dir(disk: &dyn Disk, dir: &str) -> Result<(), StorageError> {
    let path = Path::new(dir);
    disk.sync_dir(path)
        .map_err(io_error(disk, "sync the directory", path))
}

fn settle_superblocks(disk: &dyn Disk) -> Result<(), StorageError> {
    sync_dir(disk, "")?;
    SUPERBLOCK_FILES
        .iter()
        .try_for_each(|name| settle(disk, Path::new(name)))
}

/// Settles the checkpoint and every segment that will be read. Older segments were synced before that checkpoint.
fn settle_log(disk: &dyn Disk, superblock: &Superblock) -> Result<(), StorageError> {
    sync_dir(disk, CHECKPOINT_DIR)?;
    sync_dir(disk, LOG_DIR)?;
    settle(disk, &checkpoint_path(superblock.checkpoint_generation))?;
    let first = superblock.begin.segment();
    let segments = segment::list(disk)?;
    segments
        .range(first..)
        .try_for_each(|segment| settle(disk, &segment_path(*segment)))
}

/// Makes the number of this incarnation durable, before it writes anything else.
fn begin_epoch(disk: &dyn Disk, survey: &Survey) -> Result<Superblock, StorageError> {
    let superblock = Superblock {
        sequence: survey.superblock.sequence + 1,
        epoch: survey.superblock.epoch + 1,
        // All of it was synced before it was read.
        synced: survey.end,
        ..survey.superblock
    };
    superblock.write(disk)?;
    Ok(superblock)
}

/// Copies what was cut off into `quarantine/`, for inspection. Not being able to is no reason not to start: the
/// bytes stay where they are until their segment is freed.
fn keep_torn_tail(disk: &dyn Disk, survey: &Survey) -> Option<TornTail> {
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
        match keep(disk, discarded, Path::new(&name)) {
            Ok(()) => torn.kept_in.push(name),
            Err(error) => tracing::warn!(%error, name, "cannot keep a copy of a torn tail"),
        }
    }
    Some(torn)
}

fn keep(disk: &dyn Disk, discarded: &Discarded, path: &Path) -> io::Result<()> {
    disk.create_dir(Path::new(QUARANTINE_DIR))?;
    let from = disk.open(&segment_path(discarded.segment), OpenMode::Read)?;
    let to = create_temp(disk, path)?;
    let mut copied = 0;
    while copied < discarded.remains.len_bytes {
        let remaining = discarded.remains.len_bytes - copied;
        let mut chunk = vec![
            0;
            usize::try_from(remaining)
                .map_or(COPY_CHUNK_BYTES, |r| r.min(COPY_CHUNK_BYTES))
        ];
        let read = from.read_at(&mut chunk, u64::from(discarded.from) + copied)?;
        if read == 0 {
            break;
        }
        write_all(&*to, chunk.get(..read).unwrap_or_default(), copied)?;
        copied += read as u64;
    }
    publish_temp(disk, &*to, path)
}

/// Creates the segment of this incarnation behind everything that exists, and makes its OPEN batch durable.
fn open_fresh_segment(
    disk: &dyn Disk,
    clock: &dyn Clock,
    superblock: &Superblock,
    survey: &Survey,
    pool: &Pool,
) -> Result<FreshSegment, StorageError> {
    let last = survey
        .segments
        .last()
        .map_or(SegmentId(0), |last| *last)
        .max(survey.end.segment());
    let header = SegmentHeader {
        store: superblock.store,
        segment: SegmentId(last.0 + 1),
        epoch: superblock.epoch,
        created_at_ms: clock.unix_ms(),
        is_recycled: false,
    };
    let (Prepared { header, file }, _) = pool.take(header)?;
    let mut body = BatchBody::new(header.first_batch());
    body.push(&Entry::Open {
        predecessor_end: survey.end,
        epoch: header.epoch,
    });
    let seed = header.seed();
    let mut open_header = BatchHeader {
        len_bytes: u32::try_from(body.len_bytes).expect("an OPEN batch is small"),
        record_count: body.record_count,
        lsn: body.base,
        epoch: header.epoch,
        synced: survey.end,
        previous_crc: 0,
        records_crc: body.records_crc(seed),
        crc: 0,
    };
    let mut open_batch = open_header.encode(seed).to_vec();
    body.pieces()
        .for_each(|piece| open_batch.extend_from_slice(piece));
    let mut block = open_batch.clone();
    block.resize(segment::FIRST_BATCH_OFFSET as usize, 0);
    let path = segment_path(header.segment);
    let written = write_all(&*file, &block, u64::from(segment::FIRST_BATCH_OFFSET))
        .and_then(|()| file.sync_data());
    written.map_err(io_error(disk, "open a fresh segment", &path))?;
    Ok(FreshSegment {
        header,
        file,
        open_batch,
        open_header,
    })
}

fn describe(survey: &Survey, torn: Option<TornTail>) -> Found {
    match torn {
        Some(torn) => Found::TornTail(torn),
        None if survey.replay.record_count() > 0 => Found::Replayed,
        None => Found::Clean,
    }
}

fn finish(survey: Survey, found: Found, epoch: u64, segment_count: u64) -> Recovered {
    let replayed_record_count = survey.replay.record_count();
    let (queues, meta_records) = survey.replay.finish();
    let report = RecoveryReport {
        found,
        epoch,
        checkpoint_generation: survey.superblock.checkpoint_generation,
        replayed_from: survey.superblock.begin,
        replayed_to: survey.end,
        replayed_record_count,
        queue_count: queues.len() as u64,
        message_count: queues.iter().map(|queue| queue.entries.len() as u64).sum(),
        segment_count,
        read_bytes: survey.read_bytes,
        duration_ms: 0,
    };
    Recovered {
        report,
        meta_snapshot: survey.checkpoint.map(|checkpoint| checkpoint.meta),
        meta_records,
        queues,
    }
}
