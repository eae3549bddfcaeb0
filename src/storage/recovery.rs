//! Opening a data directory: one path for a blank one, a clean stop and a crash.
//!
//! ```text
//! t1 lock, t2 sync what will be read and drop it from the cache, t3 read and verify (survey), t4 new epoch durable,
//! t5 keep a copy of a torn tail (and of what is damaged), t6 create a fresh segment, t7 write and sync its OPEN batch, t8 go
//! ```
//! - Until t4 nothing is written: what is refused is left as it was.
//! - t2: a broker that died may have left pages that the next power cut would take away. What is read is on the
//!   device, so what recovery builds upon cannot disappear later.
//! - Crash at any step: the next start finds the same end X, because no old file is ever changed; it only sees a
//!   higher epoch and perhaps a segment without a valid first batch, which is void.
//! - Index files come after t7: they are derived, and what is built again goes into free blocks.
//! - t7: from then on OPEN names X as the end of its predecessor; what is behind X is void for ever, and the
//!   segment number is above every existing file's, so no LSN is used twice.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::batch::{BatchBody, BatchHeader};
use super::error::StorageError;
use super::file::{io_error, list_or_empty, room_error, temp_path, write_all};
use super::format::{
    CHECKPOINT_DIR, INDEX_DIR, LOCK_FILE, LOG_DIR, QUARANTINE_DIR, RESERVE_FILE, SUPERBLOCK_FILES,
    StoreId, checkpoint_path, segment_path,
};
use super::image::QueueImage;
use super::index::files::IndexFiles;
use super::index::recover::IndexRecovery;
use super::options::OnCorruption;
use super::pool::{self, Prepared};
use super::quarantine;
use super::record::Entry;
use super::report::{Found, Recovered, RecoveryReport, TornTail};
use super::reserve::{Space, with_room};
use super::salvage::salvage;
use super::segment::{self, SegmentHeader};
use super::shared::Existing;
use super::superblock::{self, Superblock};
use super::survey::{Survey, survey};
use super::types::{Lsn, SegmentId};
use crate::disk::{Clock, DirectoryLock, Disk, DiskFile, OpenMode};

/// Entry that file systems put into the root of a volume.
const LOST_AND_FOUND: &str = "lost+found";

/// A data directory ready to be appended to.
pub(crate) struct Opened {
    pub(crate) lock: Box<dyn DirectoryLock>,
    pub(crate) superblock: Superblock,
    pub(crate) fresh: FreshSegment,
    pub(crate) existing: Existing,
    pub(crate) recovered: Recovered,
}

/// The segment of this incarnation, its OPEN batch synced.
pub(crate) struct FreshSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) open_batch: Vec<u8>,
    pub(crate) open_header: BatchHeader,
}

/// Opens the data directory; `new_store` names the store if there is none yet. `space` gets what is put aside there.
pub(crate) fn open(
    shared_disk: &Arc<dyn Disk>,
    clock: &dyn Clock,
    new_store: StoreId,
    on_corruption: OnCorruption,
    space: &Space,
) -> Result<Opened, StorageError> {
    let disk = &**shared_disk;
    let begun_ns = clock.monotonic_ns();
    let is_lost = check_is_ours(disk, on_corruption)?;
    let lock = take_lock(disk)?;
    let found = space.find_reserve();
    found.map_err(io_error(disk, "open", Path::new(RESERVE_FILE)))?;
    settle_superblocks(disk)?;
    let (superblock, is_blank) = match read_superblock(disk, is_lost, on_corruption)? {
        Identity::Known(superblock) => (Some(superblock), false),
        Identity::Lost => (None, false),
        Identity::Blank => (
            Some(with_room(space, || {
                initialise(disk, clock, new_store, space)
            })?),
            true,
        ),
    };
    settle_log(disk, superblock.as_ref())?;
    space.pool.add(pool::list(disk)?);
    let mut survey = read_store(disk, superblock, on_corruption)?;
    let superblock = with_room(space, || begin_epoch(disk, &survey))?;
    let torn = quarantine::keep_torn_tail(disk, &survey);
    if let Some(salvage) = &mut survey.salvage {
        quarantine::keep_damaged(disk, salvage);
    }
    let fresh = open_fresh_segment(disk, clock, &superblock, &survey, space)?;
    space.refill();
    let mut segments = survey.segments.clone();
    segments.insert(fresh.header.segment);
    segments.extend(segment::list_cold(disk)?);
    let found = if is_blank {
        Found::Fresh
    } else {
        describe(&survey, torn)
    };
    let (mut recovered, index) = finish(
        shared_disk,
        clock,
        survey,
        found,
        on_corruption,
        superblock.epoch,
        segments.len() as u64,
    )?;
    recovered.report.duration_ms = clock.monotonic_ns().saturating_sub(begun_ns) / 1_000_000;
    Ok(Opened {
        lock,
        superblock,
        fresh,
        existing: Existing { segments, index },
        recovered,
    })
}

/// What the superblock says about the directory.
enum Identity {
    Known(Superblock),
    /// There was one, and no copy of it is whole.
    Lost,
    Blank,
}

fn read_superblock(
    disk: &dyn Disk,
    is_lost: bool,
    on_corruption: OnCorruption,
) -> Result<Identity, StorageError> {
    if is_lost {
        return Ok(Identity::Lost);
    }
    let copies = superblock::read_copies(disk)?;
    match superblock::choose(disk, &copies) {
        Ok(Some(superblock)) => Ok(Identity::Known(superblock)),
        Ok(None) => Ok(Identity::Blank),
        Err(StorageError::Damaged { .. }) if on_corruption == OnCorruption::Quarantine => {
            Ok(Identity::Lost)
        }
        Err(error) => Err(error),
    }
}

/// Reads the state; of a damaged store what is left of it, if that is wanted.
fn read_store(
    disk: &dyn Disk,
    superblock: Option<Superblock>,
    on_corruption: OnCorruption,
) -> Result<Survey, StorageError> {
    let Some(known) = superblock else {
        settle_all(disk)?;
        return salvage(disk, None);
    };
    let damage = match survey(disk, known) {
        Err(error @ StorageError::Damaged { .. }) if on_corruption == OnCorruption::Quarantine => {
            error
        }
        outcome => return outcome,
    };
    settle_all(disk)?;
    let survey = salvage(disk, Some(known))?;
    // To go on as if nothing were wrong would be to lose something without a word.
    if survey.salvage.is_some() {
        Ok(survey)
    } else {
        Err(damage)
    }
}

/// Refuses a directory whose content is not ours, before anything is created in it. True when it is ours and both
/// copies of the superblock are missing, which only [`OnCorruption::Quarantine`] lets pass.
fn check_is_ours(disk: &dyn Disk, on_corruption: OnCorruption) -> Result<bool, StorageError> {
    let names = list_or_empty(disk, Path::new(""))?;
    let is_named = |name: &Path, known: &str| name == Path::new(known);
    let has_superblock = names
        .iter()
        .any(|name| SUPERBLOCK_FILES.iter().any(|known| is_named(name, known)));
    if has_superblock {
        return Ok(false);
    }
    let temporary = SUPERBLOCK_FILES.map(|name| temp_path(Path::new(name)));
    let known = [
        LOCK_FILE,
        LOG_DIR,
        CHECKPOINT_DIR,
        INDEX_DIR,
        QUARANTINE_DIR,
        RESERVE_FILE,
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
        None if has_log && on_corruption == OnCorruption::Quarantine => Ok(true),
        None if has_log => {
            let detail = "both copies of the superblock are missing, but there is a log";
            Err(super::file::damaged(
                disk,
                Path::new(SUPERBLOCK_FILES[0]),
                0,
                detail,
            ))
        }
        None => Ok(false),
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
    space: &Space,
) -> Result<Superblock, StorageError> {
    for dir in [LOG_DIR, CHECKPOINT_DIR, QUARANTINE_DIR] {
        let path = Path::new(dir);
        disk.create_dir(path)
            .map_err(room_error(disk, "create a directory", path))?;
    }
    let path = Path::new(RESERVE_FILE);
    let created = space.create_reserve();
    created.map_err(room_error(disk, "create", path))?;
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
/// Without a superblock nothing is: a salvage settles everything.
fn settle_log(disk: &dyn Disk, superblock: Option<&Superblock>) -> Result<(), StorageError> {
    sync_dir(disk, CHECKPOINT_DIR)?;
    sync_dir(disk, LOG_DIR)?;
    let Some(superblock) = superblock else {
        return Ok(());
    };
    settle(disk, &checkpoint_path(superblock.checkpoint_generation))?;
    let segments = segment::list(disk)?;
    segments
        .range(superblock.begin.segment()..)
        .try_for_each(|segment| settle(disk, &segment_path(*segment)))
}

/// Settles what only a salvage reads.
fn settle_all(disk: &dyn Disk) -> Result<(), StorageError> {
    for name in list_or_empty(disk, Path::new(CHECKPOINT_DIR))? {
        settle(disk, &Path::new(CHECKPOINT_DIR).join(name))?;
    }
    let mut segments = segment::list(disk)?;
    segments.extend(segment::list_cold(disk)?);
    segments
        .iter()
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

/// Creates the segment of this incarnation behind everything that exists, and makes its OPEN batch durable.
fn open_fresh_segment(
    disk: &dyn Disk,
    clock: &dyn Clock,
    superblock: &Superblock,
    survey: &Survey,
    space: &Space,
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
    let (Prepared { header, file }, _) = with_room(space, || space.pool.take(header))?;
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
    with_room(space, || {
        write_all(&*file, &block, u64::from(segment::FIRST_BATCH_OFFSET)).map_err(room_error(
            disk,
            "open a fresh segment",
            &path,
        ))
    })?;
    file.sync_data()
        .map_err(io_error(disk, "open a fresh segment", &path))?;
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

fn finish(
    disk: &Arc<dyn Disk>,
    clock: &dyn Clock,
    survey: Survey,
    found: Found,
    on_corruption: OnCorruption,
    epoch: u64,
    segment_count: u64,
) -> Result<(Recovered, IndexFiles), StorageError> {
    let replayed_record_count = survey.replay.record_count();
    let high_counts = survey.replay.high_counts().clone();
    let (mut queues, meta_records) = survey.replay.finish();
    let store = survey.superblock.store;
    let index = IndexFiles::open(Arc::clone(disk), store, &queues)?;
    let recovery = IndexRecovery {
        disk: &**disk,
        clock,
        store,
        files: &index,
        high_counts: &high_counts,
        is_forgiving: on_corruption == OnCorruption::Quarantine,
    };
    let rebuilt = recovery.run(&mut queues)?;
    let lost_count: u64 = rebuilt.missing.values().sum();
    if lost_count > 0 {
        tracing::error!(
            messages = lost_count,
            queues = rebuilt.missing.len(),
            "messages are neither in an index file nor in the log: they stay in their queues and cannot be read"
        );
    }
    let report = RecoveryReport {
        found,
        epoch,
        checkpoint_generation: survey
            .checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.header.generation),
        replayed_from: survey.superblock.begin,
        replayed_to: survey.end,
        replayed_record_count,
        queue_count: queues.len() as u64,
        message_count: queues.iter().map(QueueImage::message_count).sum(),
        filed_run_count: queues.iter().map(|queue| queue.runs.len() as u64).sum(),
        rebuilt_run_count: rebuilt.rebuilt_run_count,
        segment_count,
        read_bytes: survey.read_bytes + rebuilt.read_bytes,
        duration_ms: 0,
        salvage: survey.salvage,
    };
    let recovered = Recovered {
        report,
        meta_snapshot: survey.checkpoint.map(|checkpoint| checkpoint.meta),
        meta_records,
        queues,
    };
    Ok((recovered, index))
}
