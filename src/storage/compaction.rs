//! Copy-forward compaction: the last messages of nearly empty segments move together, so that their segments go.
//!
//! ```text
//!   segment 7  [..........m1......]  --copy-->  cold 1 [m1][m2][m3]      segments 7 and 9 have no live ref in the
//!   segment 9  [.m2...........m3..]                                      next checkpoint, and are freed by it
//!
//! t1 read and verify records, t2 write them to a cold segment, t3 sync it and its name, t4 the owner swaps positions,
//! queue by queue, t5 the next checkpoint names the new ones, t6 the old segments are freed
//! crash before t5 -> the old positions count again, their segments are there; the copies are garbage
//! crash after t5  -> the new positions count; what t6 did not free is freed later
//! ```
//! No record says that a message moved. It would have to be durable before the old segment goes, and so has the
//! checkpoint, which says the same: nothing between two checkpoints depends on where a message lies.
//!
//! Which segments that pays for is `occupancy`'s to say: bytes count, and a message in many queues has them once.
//!
//! 1. A record is copied only if it verifies as for a delivery. A damaged one stays where it is and keeps its segment.
//! 2. A position is swapped only if it still is the old one, under the lock of its queue.
//! 3. A reader on its way to the old place finds it there until the next checkpoint; then it is told `Freed`.
//! 4. Cold segments have numbers of their own, above all of the log's: bit 33 is set. They have no successor and no
//!    place in the chain; replay never reads them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::CheckpointSource;
use super::checkpoint::Written;
use super::cold::Cold;
use super::engine::Storage;
use super::error::StorageError;
use super::index::block;
use super::occupancy::{Bounds, Occupancy, Places};
use super::read::check_record;
use super::record::{Entry, Record, decode};
use super::run::FiledRun;
use super::shared::Shared;
use super::types::{ImageEntry, Lsn, Move, Position, QueueId, Ref, Request, SegmentId, Seq};
use crate::sync::lock;

/// A segment with no more than this part of it alive is a candidate.
const LIVE_PERCENT_MAX: u64 = 25;
/// The same while the disk is low.
const LIVE_PERCENT_MAX_LOW: u64 = 50;
/// What a count may exceed that part by, so that it holds until as much has been settled; else a segment that stands
/// just above would be counted again after every checkpoint.
const COUNTED_SLACK_PERCENT: u64 = 2;
/// Segments are counted together up to this sum of their lengths: it bounds the memory that takes, 4 MiB.
const COUNT_TOGETHER_BYTES: u64 = 1 << 30;

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Segments whose messages were looked for.
    pub segment_count: u64,
    /// Segments whose refs were all looked up, only to see how much is alive.
    pub counted_count: u64,
    /// Messages that have a new place; one in two queues counts twice.
    pub moved_count: u64,
    /// Bytes of records copied.
    pub copied_bytes: u64,
    /// Records that could not be copied, because they do not verify.
    pub damaged_count: u64,
}

/// What compaction knows between its passes. Guarded by the lock of checkpoints.
#[derive(Default)]
pub(crate) struct Compactor {
    /// What is alive in each segment.
    occupancy: Occupancy,
    /// Where its replay begins: older segments are closed.
    begin: SegmentId,
    /// Segments looked at since that checkpoint.
    tried: BTreeSet<SegmentId>,
    /// The cold segment being filled.
    cold: Option<Cold>,
}

impl Compactor {
    /// A checkpoint is durable.
    pub(crate) fn checkpointed(&mut self, written: &Written, begin: SegmentId) {
        self.occupancy
            .checkpointed(&written.segments, &written.fullest);
        self.begin = begin;
        self.tried.clear();
    }

    /// The cold segment that is not to be freed, because more will be written to it.
    pub(crate) fn open_segment(&self) -> Option<SegmentId> {
        self.cold.as_ref().map(Cold::segment)
    }

    /// Bytes of live records, see [`Occupancy::live_bytes`].
    pub(crate) fn live_bytes(&self) -> u64 {
        self.occupancy.live_bytes()
    }

    /// Segments that are closed, not tried yet, and may be nearly empty.
    fn closed(&self, shared: &Shared, percent_max: u64) -> Vec<Closed> {
        let existing = lock(&shared.segments).clone();
        let is_closed = |segment: &SegmentId| {
            let is_open = self.open_segment() == Some(*segment);
            (segment.is_cold() && !is_open) || *segment < self.begin
        };
        let found = existing
            .into_iter()
            .filter(|segment| is_closed(segment) && !self.tried.contains(segment))
            .filter_map(|segment| {
                let bounds = self.occupancy.bounds(segment)?;
                let len_bytes = shared.files.get(segment).and_then(|file| file.len()).ok()?;
                Some(Closed {
                    segment,
                    bounds,
                    len_bytes,
                })
            });
        found
            .filter(|closed| closed.is_within(closed.bounds.least_bytes, percent_max))
            .collect()
    }
}

/// A segment that nothing is added to.
struct Closed {
    segment: SegmentId,
    bounds: Bounds,
    len_bytes: u64,
}

impl Closed {
    fn is_within(&self, live_bytes: u64, percent_max: u64) -> bool {
        live_bytes.saturating_mul(100) <= self.len_bytes.saturating_mul(percent_max)
    }
}

/// The first of `segments`, the emptiest first, that together hold about `max_bytes` of live records.
fn fitting(mut segments: Vec<(u64, SegmentId)>, max_bytes: u64) -> BTreeSet<SegmentId> {
    segments.sort_unstable();
    let mut sum_bytes = 0;
    let fitting = segments.into_iter().take_while(|(live_bytes, _)| {
        let is_first = sum_bytes == 0;
        sum_bytes += live_bytes;
        is_first || sum_bytes <= max_bytes
    });
    fitting.map(|(_, segment)| segment).collect()
}

/// A record to be copied, and who refers to it.
struct Wanted {
    position: Position,
    named: (QueueId, Seq),
}

/// A filed run with messages in the segments that are being emptied.
struct WantedRun {
    queue: QueueId,
    run: FiledRun,
    entries: Vec<ImageEntry>,
}

/// Refs of one queue.
enum Refs {
    InMemory(Vec<ImageEntry>),
    /// All live ones of a run.
    Filed(FiledRun, Vec<ImageEntry>),
}

impl Refs {
    fn entries(&self) -> &[ImageEntry] {
        match self {
            Self::InMemory(entries) | Self::Filed(_, entries) => entries,
        }
    }
}

/// All that is to be moved.
#[derive(Default)]
struct Found {
    records: BTreeMap<Lsn, Wanted>,
    entries: BTreeMap<QueueId, Vec<ImageEntry>>,
    runs: Vec<WantedRun>,
}

impl Storage {
    /// Makes one pass: empties segments of which little is alive, about `max_bytes` of it, by moving that to cold
    /// segments. They are freed by the next checkpoint, which becomes due. Blocks; like a checkpoint, and never at the
    /// same time.
    ///
    /// # Errors
    /// Those of the disk: nothing has moved. `Stopped` when the engine has failed.
    pub fn compact(
        &self,
        source: &dyn CheckpointSource,
        is_low: bool,
        max_bytes: u64,
    ) -> Result<Compacted, StorageError> {
        let mut checkpoints = self.checkpoints();
        let shared = self.shared();
        shared.check_not_failed()?;
        let compactor = &mut checkpoints.compactor;
        let mut done = Compacted::default();
        let segments = self.candidates(compactor, source, is_low, max_bytes, &mut done);
        done.segment_count = segments.len() as u64;
        if segments.is_empty() {
            return Ok(done);
        }
        compactor.tried.extend(&segments);
        let found = self.find(source, &segments);
        // After an error the file is left alone: a sync of it may have failed. The next checkpoint frees it.
        let mut cold = compactor.cold.take();
        let places = copy_all(shared, &mut cold, &found.records, &mut done)?;
        compactor.cold = cold;
        if !places.is_empty() {
            self.swap(source, found, &places, &mut done)?;
            self.note_moved();
        }
        let mut stats = lock(&shared.stats);
        stats.compacted_bytes += done.copied_bytes;
        stats.compacted_segment_count += done.segment_count;
        drop(stats);
        tracing::info!(?done, "moved messages out of nearly empty segments");
        Ok(done)
    }

    /// Segments to empty. Those whose bounds leave a doubt are counted, some at a time, the least full first.
    fn candidates(
        &self,
        compactor: &mut Compactor,
        source: &dyn CheckpointSource,
        is_low: bool,
        max_bytes: u64,
        done: &mut Compacted,
    ) -> BTreeSet<SegmentId> {
        let percent_max = if is_low {
            LIVE_PERCENT_MAX_LOW
        } else {
            LIVE_PERCENT_MAX
        };
        let closed = compactor.closed(self.shared(), percent_max);
        let (certain, mut doubtful): (Vec<Closed>, Vec<Closed>) = closed
            .into_iter()
            .partition(|closed| closed.is_within(closed.bounds.most_bytes, percent_max));
        let mut found: Vec<(u64, SegmentId)> = certain
            .iter()
            .map(|closed| (closed.bounds.most_bytes, closed.segment))
            .collect();
        doubtful.sort_by_key(|closed| closed.bounds.least_bytes);
        let mut sum_bytes = 0;
        doubtful.retain(|closed| {
            let is_first = sum_bytes == 0;
            sum_bytes += closed.len_bytes;
            is_first || sum_bytes <= COUNT_TOGETHER_BYTES
        });
        if !doubtful.is_empty() {
            let segments = doubtful.iter().map(|closed| closed.segment).collect();
            let counts = self.count(source, &segments);
            done.counted_count = doubtful.len() as u64;
            for closed in doubtful {
                let places = counts.get(&closed.segment);
                let live_bytes = places.map_or(0, Places::bytes);
                compactor.occupancy.note_counted(closed.segment, live_bytes);
                if closed.is_within(live_bytes, percent_max + COUNTED_SLACK_PERCENT) {
                    found.push((live_bytes, closed.segment));
                }
            }
        }
        fitting(found, max_bytes)
    }

    /// Live bytes of these segments, each record counted once.
    fn count(
        &self,
        source: &dyn CheckpointSource,
        segments: &BTreeSet<SegmentId>,
    ) -> BTreeMap<SegmentId, Places> {
        let mut counts: BTreeMap<SegmentId, Places> = BTreeMap::new();
        self.for_refs(source, segments, |_, refs| {
            for position in refs.entries().iter().map(|entry| entry.position) {
                let segment = position.lsn.segment();
                if segments.contains(&segment) {
                    counts.entry(segment).or_default().note(position);
                }
            }
        });
        counts
    }

    fn find(&self, source: &dyn CheckpointSource, segments: &BTreeSet<SegmentId>) -> Found {
        let mut found = Found::default();
        self.for_refs(source, segments, |queue, refs| {
            for entry in refs.entries() {
                let position = entry.position;
                if segments.contains(&position.lsn.segment()) {
                    let named = (queue, entry.seq);
                    let wanted = Wanted { position, named };
                    found.records.entry(position.lsn).or_insert(wanted);
                }
            }
            match refs {
                Refs::InMemory(entries) => drop(found.entries.insert(queue, entries)),
                Refs::Filed(run, entries) => found.runs.push(WantedRun {
                    queue,
                    run,
                    entries,
                }),
            }
        });
        found
    }

    /// Looks up all refs into these segments, queue by queue; some into others are among them.
    fn for_refs(
        &self,
        source: &dyn CheckpointSource,
        segments: &BTreeSet<SegmentId>,
        mut act: impl FnMut(QueueId, Refs),
    ) {
        for queue in source.queue_ids() {
            let (entries, runs) = source.refs_in(queue, segments);
            if !entries.is_empty() {
                act(queue, Refs::InMemory(entries));
            }
            for run in runs {
                match self.read_run(queue, &run) {
                    Ok(entries) => act(queue, Refs::Filed(run, entries)),
                    Err(error) => {
                        tracing::warn!(%error, %queue, "cannot look up the messages of a run");
                    }
                }
            }
        }
    }

    /// Tells the owner of the new places.
    fn swap(
        &self,
        source: &dyn CheckpointSource,
        found: Found,
        places: &BTreeMap<Lsn, Position>,
        done: &mut Compacted,
    ) -> Result<(), StorageError> {
        for (queue, entries) in found.entries {
            let moves: Vec<Move> = entries
                .iter()
                .filter_map(|entry| {
                    Some(Move {
                        seq: entry.seq,
                        from: entry.position,
                        to: *places.get(&entry.position.lsn)?,
                    })
                })
                .collect();
            done.moved_count += moves.len() as u64;
            source.relocate(queue, &moves);
        }
        for wanted in found.runs {
            done.moved_count += self.refile(source, wanted, places)?;
        }
        Ok(())
    }

    /// Writes a run anew, with the new places of its messages; gives their number.
    fn refile(
        &self,
        source: &dyn CheckpointSource,
        wanted: WantedRun,
        places: &BTreeMap<Lsn, Position>,
    ) -> Result<u64, StorageError> {
        let shared = self.shared();
        let mut entries = wanted.entries;
        let mut count = 0;
        for entry in &mut entries {
            if let Some(place) = places.get(&entry.position.lsn) {
                entry.position = *place;
                count += 1;
            }
        }
        let encoded = block::encode(shared.store, wanted.queue, &entries).filter(|_| count > 0);
        let Some((block, run)) = encoded else {
            return Ok(0);
        };
        let run = FiledRun {
            content_bytes: wanted.run.content_bytes,
            ..run
        };
        let mut blocks = [(block, run)];
        shared.index.write_new(wanted.queue, &mut blocks)?;
        let [(_, run)] = blocks;
        source.refile(wanted.queue, &wanted.run, run);
        Ok(count)
    }
}

/// Copies records into cold segments; gives their new places once these are durable.
fn copy_all(
    shared: &Shared,
    cold: &mut Option<Cold>,
    records: &BTreeMap<Lsn, Wanted>,
    done: &mut Compacted,
) -> Result<BTreeMap<Lsn, Position>, StorageError> {
    let mut places = BTreeMap::new();
    for wanted in records.values() {
        let Some(record) = read_record(shared, wanted) else {
            done.damaged_count += 1;
            continue;
        };
        let lsn = wanted.position.lsn;
        let Ok(Record::Publish(publish)) = decode(&record, lsn) else {
            continue;
        };
        let refs: Vec<Ref> = publish.refs.iter().collect();
        let payload = Bytes::copy_from_slice(publish.payload);
        let request = Request::Publish {
            refs: &refs,
            priority: publish.priority,
            time_ms: publish.time_ms,
            payload: (&payload).into(),
            payload_crc: publish.payload_crc,
        };
        let entry = Entry::Request(&request);
        if cold
            .as_ref()
            .is_some_and(|cold| !cold.has_room(shared, &entry))
            && let Some(mut full) = cold.take()
        {
            full.finish(shared)?;
        }
        let target = match cold {
            Some(target) => target,
            None => cold.insert(Cold::create(shared)?),
        };
        places.insert(lsn, target.push(shared, &entry)?);
        done.copied_bytes += u64::from(wanted.position.len_bytes);
    }
    if let Some(cold) = cold {
        cold.finish(shared)?;
    }
    Ok(places)
}

/// The record, if it verifies; keeps (1).
fn read_record(shared: &Shared, wanted: &Wanted) -> Option<Vec<u8>> {
    let Position { lsn, len_bytes } = wanted.position;
    let mut record = vec![0; usize::try_from(len_bytes).ok()?];
    let file = shared.files.get(lsn.segment());
    let read = file.and_then(|file| file.read_at(&mut record, u64::from(lsn.offset())));
    let (queue, seq) = wanted.named;
    let verified = read.map_err(|error| error.to_string()).and_then(|count| {
        record.truncate(count);
        check_record(&record, queue, seq, wanted.position).map(drop)
    });
    if let Err(reason) = &verified {
        tracing::error!(%queue, %seq, %lsn, reason, "a damaged message cannot be moved; it keeps its segment");
    }
    verified.is_ok().then_some(record)
}
