//! Positions from the log: what a block said, read again from the PUBLISH records it was made of.
//!
//! ```text
//!   lost runs --> segments they lie in, ascending --> every PUBLISH ref of a live message of a lost run --> blocks
//! ```
//! Each segment is read once, whatever the number of runs. A run is finished behind its last segment, so that memory
//! holds the positions of the runs that span two segments, not of the backlog; beyond
//! [`FOUND_MAX`] positions they go to their blocks half done.
//!
//! Rot costs no more than it hits: a message whose payload is wrong has a place all the same, and behind a batch that
//! does not verify the search goes on at the next one that does. A message that is nowhere stays in its queue, with the
//! start of a segment of its run for a place: no record lies there, so whoever reads it is told, and the segment stays.
//!
//! Of two copies of a message the one in the later segment counts: copies are made in rising segments, and a message
//! is never moved back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use super::block;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::storage::error::StorageError;
use crate::storage::file::io_error;
use crate::storage::format::{StoreId, segment_path};
use crate::storage::record::{Publish, Record};
use crate::storage::run::FiledRun;
use crate::storage::scan::{SegmentScan, first_signed_header};
use crate::storage::segment::{self, FIRST_BATCH_OFFSET, SegmentHeader};
use crate::storage::types::{ImageEntry, Lsn, Position, QueueId, SegmentId};

/// Positions held in memory at once: 24 MiB or so.
pub(crate) const FOUND_MAX: usize = 1 << 19;
/// Length of a record that is nowhere, if nothing better is known.
const VOID_MIN_BYTES: u32 = 64;
/// The same at most: what an index entry holds.
const VOID_MAX_BYTES: u32 = 1 << 20;

/// A run whose block is lost.
#[derive(Clone, Debug)]
struct Lost {
    run: FiledRun,
    found: BTreeMap<u8, ImageEntry>,
}

/// Where finished runs go.
pub(crate) trait Sink {
    /// All unsettled messages of a run, ascending, without marks.
    fn finished(
        &mut self,
        queue: QueueId,
        run: &FiledRun,
        entries: Vec<ImageEntry>,
    ) -> Result<(), StorageError>;
    /// Takes some messages of an unfinished run out of memory; false when it cannot.
    fn park(&mut self, queue: QueueId, run: &FiledRun, entries: Vec<ImageEntry>) -> bool;
    /// Gives back what was parked of a run.
    fn unpark(&mut self, queue: QueueId, run: &FiledRun) -> Result<Vec<ImageEntry>, StorageError>;
    /// Another segment was read, of `segment_count`; and `done_bytes` of the `total_bytes` of all.
    fn progress(
        &mut self,
        segments_done: usize,
        segment_count: usize,
        done_bytes: u64,
        total_bytes: u64,
    );
}

/// What a rebuild took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rebuilt {
    /// Bytes of the log that were read.
    pub(crate) read_bytes: u64,
    /// Most positions that were in memory at once.
    pub(crate) found_peak: usize,
    /// Messages that are nowhere, by queue: they have a place where nothing is.
    pub(crate) missing: BTreeMap<QueueId, u64>,
}

/// A rebuild under way.
pub(crate) struct Rebuild<'a> {
    disk: &'a dyn Disk,
    store: StoreId,
    lost: HashMap<QueueId, BTreeMap<u64, Lost>>,
    /// Runs by the last segment they lie in.
    last: BTreeMap<SegmentId, Vec<(QueueId, u64)>>,
    segments: BTreeSet<SegmentId>,
    found_count: usize,
    found_max: usize,
    can_park: bool,
    is_forgiving: bool,
    missing: BTreeMap<QueueId, u64>,
    /// Where the first batch of a segment is that does not verify.
    doubts: BTreeMap<SegmentId, u32>,
}

impl<'a> Rebuild<'a> {
    /// A rebuild that holds some `found_max` positions in memory.
    pub(crate) fn new(disk: &'a dyn Disk, store: StoreId, found_max: usize) -> Self {
        Self {
            disk,
            store,
            lost: HashMap::new(),
            last: BTreeMap::new(),
            segments: BTreeSet::new(),
            found_count: 0,
            found_max,
            can_park: true,
            is_forgiving: false,
            missing: BTreeMap::new(),
            doubts: BTreeMap::new(),
        }
    }

    /// Lets whole segments be missing: their messages are nowhere.
    pub(crate) fn forgive(mut self) -> Self {
        self.is_forgiving = true;
        self
    }

    /// Adds a run to look for.
    pub(crate) fn add(&mut self, queue: QueueId, run: &FiledRun) {
        self.segments
            .extend(run.segments.iter().map(|used| used.segment));
        if let Some(last) = run.segments.last() {
            self.last
                .entry(last.segment)
                .or_default()
                .push((queue, run.number));
        }
        let lost = Lost {
            run: run.clone(),
            found: BTreeMap::new(),
        };
        self.lost.entry(queue).or_default().insert(run.number, lost);
    }

    /// Reads the segments and hands the runs to `sink`.
    ///
    /// # Errors
    /// Those of the disk and of the sink.
    pub(crate) fn run(mut self, sink: &mut dyn Sink) -> Result<Rebuilt, StorageError> {
        let segments = std::mem::take(&mut self.segments);
        let mut lens = Vec::with_capacity(segments.len());
        for segment in &segments {
            lens.push(self.len_of(*segment)?);
        }
        let total_bytes = lens.iter().sum();
        let mut done_bytes = 0;
        let mut rebuilt = Rebuilt::default();
        for (index, (segment, len)) in segments.iter().zip(lens).enumerate() {
            done_bytes += len;
            rebuilt.read_bytes += self.read_segment(*segment)?;
            rebuilt.found_peak = rebuilt.found_peak.max(self.found_count);
            for (queue, number) in self.last.remove(segment).unwrap_or_default() {
                self.finish(queue, number, sink)?;
            }
            if self.found_count > self.found_max && self.can_park {
                self.park(sink);
            }
            sink.progress(index + 1, segments.len(), done_bytes, total_bytes);
        }
        rebuilt.missing = self.missing;
        Ok(rebuilt)
    }

    /// Reads the segments and gives the messages of all runs, with marks, in no order.
    ///
    /// # Errors
    /// As [`Rebuild::run`].
    pub(crate) fn run_to_list(self) -> Result<Vec<ImageEntry>, StorageError> {
        let mut kept = Kept::default();
        self.run(&mut kept)?;
        Ok(kept.0)
    }

    /// The file of a segment; `None` when it is missing and that is forgiven.
    fn open(&self, segment: SegmentId) -> Result<Option<Arc<dyn DiskFile>>, StorageError> {
        let path = segment_path(segment);
        match self.disk.open(&path, OpenMode::Read) {
            Err(error) if self.is_forgiving && error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => {
                let error = io_error(self.disk, "open a segment", &path);
                opened.map(Some).map_err(error)
            }
        }
    }

    fn len_of(&self, segment: SegmentId) -> Result<u64, StorageError> {
        let path = segment_path(segment);
        let len = self.open(segment)?.map_or(Ok(0), |file| file.len());
        len.map_err(io_error(self.disk, "read a segment", &path))
    }

    fn read_segment(&mut self, segment: SegmentId) -> Result<u64, StorageError> {
        let path = segment_path(segment);
        let Some(file) = self.open(segment)? else {
            self.doubts.insert(segment, 0);
            return Ok(0);
        };
        let (disk, store) = (self.disk, self.store);
        let error = io_error(disk, "read a segment", &path);
        let scanned = scan(file, store, segment, |position, publish| {
            self.note(position, &publish);
        });
        let scanned = scanned.map_err(error)?;
        if let Some(doubt) = scanned.doubt {
            self.doubts.insert(segment, doubt);
        }
        Ok(scanned.read_bytes)
    }

    fn note(&mut self, position: Position, publish: &Publish<'_>) {
        for r in publish.refs.iter() {
            let number = FiledRun::number_of(r.seq);
            let Some(lost) = self
                .lost
                .get_mut(&r.queue)
                .and_then(|runs| runs.get_mut(&number))
            else {
                continue;
            };
            let index = FiledRun::index_of(r.seq);
            let segment = position.lsn.segment();
            let lies_there = lost.run.segments.iter().any(|used| used.segment == segment);
            if !lies_there || !lost.run.live.contains(index) {
                continue;
            }
            let entry = ImageEntry::published(&r, position, publish.priority);
            self.found_count += usize::from(lost.found.insert(index, entry).is_none());
        }
    }

    fn finish(
        &mut self,
        queue: QueueId,
        number: u64,
        sink: &mut dyn Sink,
    ) -> Result<(), StorageError> {
        let lost = self
            .lost
            .get_mut(&queue)
            .and_then(|runs| runs.remove(&number));
        let Some(Lost { run, found }) = lost else {
            return Ok(());
        };
        self.found_count -= found.len();
        let mut all: BTreeMap<u8, ImageEntry> = sink
            .unpark(queue, &run)?
            .into_iter()
            .map(|entry| (FiledRun::index_of(entry.seq), entry))
            .collect();
        all.extend(found);
        self.fill_up(queue, &run, &mut all);
        sink.finished(queue, &run, all.into_values().collect())
    }

    /// Gives the messages of a run that neither index nor log know a place where nothing is.
    fn fill_up(&mut self, queue: QueueId, run: &FiledRun, all: &mut BTreeMap<u8, ImageEntry>) {
        let is_missing = |index: &u8| !all.contains_key(index);
        let missing: Vec<u8> = run.live.iter().filter(is_missing).collect();
        if missing.is_empty() {
            return;
        }
        *self.missing.entry(queue).or_default() += missing.len() as u64;
        let mut places = self.void_places(run, all);
        let mut last = None;
        for index in &missing {
            last = places.next().or(last);
            let entry = last.map(|position| ImageEntry {
                seq: run.seq_at(*index),
                position,
                expires_at_ms: 0,
                priority: 0,
                delivery_count: 0,
                is_redelivered: false,
            });
            all.extend(entry.map(|entry| (*index, entry)));
        }
        let at = last.map_or(Lsn(0), |position| position.lsn);
        let path = self.disk.describe(&segment_path(at.segment()));
        let offset = self.doubts.get(&at.segment()).copied().unwrap_or(0);
        let (count, first) = (missing.len(), missing.first().copied().unwrap_or(0));
        tracing::error!(
            path,
            offset,
            %queue,
            first_seq = run.seq_at(first).0,
            messages = count,
            "messages whose index is lost are in a batch that does not verify: they are kept and cannot be read"
        );
    }

    /// Places for what `found` lacks of a run: as many as each segment should have more, those in doubt first.
    fn void_places(
        &self,
        run: &FiledRun,
        found: &BTreeMap<u8, ImageEntry>,
    ) -> impl Iterator<Item = Position> + use<> {
        let found: Vec<ImageEntry> = found.values().copied().collect();
        let found = block::uses(&found);
        let mut places = Vec::new();
        for used in &run.segments {
            let there = found.iter().find(|one| one.segment == used.segment);
            let (refs, bytes) = there.map_or((0, 0), |one| (one.live_refs, one.live_bytes()));
            let count = used.live_refs.saturating_sub(refs);
            let each_bytes = used.live_bytes().saturating_sub(bytes) / u64::from(count.max(1));
            let len_bytes = u32::try_from(each_bytes & !7).unwrap_or(VOID_MIN_BYTES);
            let position = Position {
                lsn: Lsn::new(used.segment, 0),
                len_bytes: len_bytes.clamp(VOID_MIN_BYTES, VOID_MAX_BYTES),
            };
            places.extend(std::iter::repeat_n(position, count as usize));
        }
        places.sort_by_key(|position| !self.doubts.contains_key(&position.lsn.segment()));
        places.into_iter()
    }

    /// Moves the positions found so far out of memory.
    fn park(&mut self, sink: &mut dyn Sink) {
        for (queue, runs) in &mut self.lost {
            for lost in runs.values_mut().filter(|lost| !lost.found.is_empty()) {
                let entries: Vec<ImageEntry> = lost.found.values().copied().collect();
                if !sink.park(*queue, &lost.run, entries) {
                    self.can_park = false;
                    return;
                }
                self.found_count -= lost.found.len();
                lost.found.clear();
            }
        }
    }
}

/// What came of reading a segment.
struct Scanned {
    read_bytes: u64,
    /// Offset of the first batch that does not verify although another one follows.
    doubt: Option<u32>,
}

/// Calls `on_publish` for every PUBLISH record of a segment that can be read.
fn scan(
    file: Arc<dyn DiskFile>,
    store: StoreId,
    segment: SegmentId,
    mut on_publish: impl FnMut(Position, Publish<'_>),
) -> io::Result<Scanned> {
    let mut doubt = None;
    let Some(header) = header_of(&file, store, segment)? else {
        return Ok(Scanned {
            read_bytes: 0,
            doubt: Some(0),
        });
    };
    let mut scan = SegmentScan::new(file, header, FIRST_BATCH_OFFSET)?;
    loop {
        if let Ok((batch, _)) = scan.next_batch_without_payloads()? {
            for (position, record) in batch.records() {
                if let Record::Publish(publish) = record {
                    on_publish(position, publish);
                }
            }
            continue;
        }
        let place = scan.place().offset();
        if !scan.find_next_header(u64::MAX)? {
            return Ok(Scanned {
                read_bytes: scan.read_bytes(),
                doubt,
            });
        }
        doubt.get_or_insert(place);
    }
}

/// The header of a segment; where it is not whole, what a batch says about it.
fn header_of(
    file: &Arc<dyn DiskFile>,
    store: StoreId,
    segment: SegmentId,
) -> io::Result<Option<SegmentHeader>> {
    if let Ok(header) = segment::read_header(&**file, store, segment)? {
        return Ok(Some(header));
    }
    let batch = first_signed_header(Arc::clone(file), store, segment)?;
    Ok(batch.map(|batch| SegmentHeader {
        store,
        segment,
        epoch: batch.epoch,
        created_at_ms: 0,
        is_recycled: true,
    }))
}

/// A sink that keeps everything.
#[derive(Default)]
struct Kept(Vec<ImageEntry>);

impl Sink for Kept {
    fn finished(
        &mut self,
        _: QueueId,
        run: &FiledRun,
        entries: Vec<ImageEntry>,
    ) -> Result<(), StorageError> {
        let from = self.0.len();
        self.0.extend(entries);
        for entry in self.0.iter_mut().skip(from) {
            block::mark(entry, FiledRun::index_of(entry.seq), run.marks.as_deref());
        }
        Ok(())
    }
    fn park(&mut self, _: QueueId, _: &FiledRun, _: Vec<ImageEntry>) -> bool {
        false
    }
    fn unpark(&mut self, _: QueueId, _: &FiledRun) -> Result<Vec<ImageEntry>, StorageError> {
        Ok(Vec::new())
    }
    fn progress(&mut self, _: usize, _: usize, _: u64, _: u64) {}
}

/// The unsettled messages of one run, from the log, with the run's marks; those that the log does not have either get
/// a place where nothing is.
///
/// # Errors
/// Those of the disk.
pub fn read_run_from_log(
    disk: &dyn Disk,
    store: StoreId,
    queue: QueueId,
    run: &FiledRun,
) -> Result<Vec<ImageEntry>, StorageError> {
    let mut rebuild = Rebuild::new(disk, store, FOUND_MAX).forgive();
    rebuild.add(queue, run);
    rebuild.run_to_list()
}
