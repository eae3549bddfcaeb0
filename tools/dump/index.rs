//! `index`: the messages of one queue, where each lies and what became of it.
//!
//! Unsettled messages come from the queue's state: packed in the checkpoint, from the index file, or, where that is
//! missing or damaged, from the log. The rows are the same. Settled ones leave nothing there; they are shown while their
//! PUBLISH record is in a segment that is still kept, with the cause if that record is kept as well.

use std::collections::BTreeMap;

use stratamq::storage::QueueImage;
use stratamq::storage::format::index_path;
use stratamq::storage::index::look::Messages;
use stratamq::storage::record::Record;
use stratamq::storage::types::{ImageEntry, Position, Seq, SeqRange, SettleCause};

use crate::error::DumpError;
use crate::log::Log;
use crate::print::{Printer, Row};
use crate::queues::is_delivered;
use crate::records::cause_name;
use crate::snapshot::Snapshot;
use crate::store::Store;

/// What the kept segments say about one queue.
#[derive(Default)]
struct Found {
    /// Messages that are no longer in the queue.
    settled: BTreeMap<Seq, ImageEntry>,
    /// Why messages left.
    causes: Vec<(SeqRange, SettleCause)>,
}

pub(crate) fn run(store: &Store, queue: &str, printer: &mut Printer<'_>) -> Result<(), DumpError> {
    let (image, messages, found) = store.look(|_, superblock| {
        let snapshot = Snapshot::read(store, superblock)?;
        let id = snapshot.find_queue(queue)?;
        let image = snapshot.image(id).cloned();
        let image = image
            .ok_or_else(|| DumpError::Queue(format!("queue {id} has no messages in the log")))?;
        let found = read_settled(store, &Log::read(store, &superblock)?, &snapshot, &image)?;
        let messages = snapshot.messages(store, &image)?;
        Ok((image, messages, found))
    })?;
    tell_source(&image, &messages);
    let mut settled = found.settled.values().peekable();
    for entry in &messages.entries {
        while let Some(before) = settled.next_if(|before| before.seq < entry.seq) {
            printer.row(row(&image, before, Some(found.cause(before.seq))))?;
        }
        printer.row(row(&image, entry, None))?;
    }
    settled.try_for_each(|entry| printer.row(row(&image, entry, Some(found.cause(entry.seq)))))?;
    printer.end()
}

/// Says where places come from, if some come from the log: beside the rows, which are the same either way.
fn tell_source(image: &QueueImage, messages: &Messages) {
    if !messages.lost.is_empty() {
        eprintln!(
            "strata-dump: note: {} of {} blocks of {} are missing or damaged; the places of their messages were looked \
             up in the log",
            messages.lost.len(),
            image.runs.len(),
            index_path(image.id).display(),
        );
    }
}

fn read_settled(
    store: &Store,
    log: &Log,
    snapshot: &Snapshot,
    image: &QueueImage,
) -> Result<Found, DumpError> {
    let mut found = Found::default();
    for file in log.in_order() {
        file.scan(store, None, |batch| {
            // A running broker writes on: what the state does not contain yet is not shown.
            if batch.header.lsn < snapshot.end {
                batch
                    .records()
                    .for_each(|(position, record)| found.note(image, position, &record));
            }
            Ok(())
        })?;
    }
    Ok(found)
}

impl Found {
    fn note(&mut self, image: &QueueImage, position: Position, record: &Record<'_>) {
        match *record {
            Record::Publish(publish) => {
                for r in publish
                    .refs
                    .iter()
                    .filter(|r| r.queue == image.id && !image.contains(r.seq))
                {
                    let entry = ImageEntry::published(&r, position, publish.priority);
                    self.settled.insert(r.seq, entry);
                }
            }
            Record::Settle {
                queue,
                cause,
                ranges,
            } if queue == image.id => {
                self.causes
                    .extend(ranges.iter().map(|range| (range, cause)));
            }
            Record::Requeue {
                queue,
                seq,
                delivery_count,
            } if queue == image.id => {
                if let Some(entry) = self.settled.get_mut(&seq) {
                    entry.delivery_count = delivery_count;
                    entry.is_redelivered = true;
                }
            }
            _ => {}
        }
    }

    /// Why `seq` left, if that is known still. The first record that names it counts: it was gone afterwards.
    fn cause(&self, seq: Seq) -> Option<SettleCause> {
        let named = |(range, _): &&(SeqRange, SettleCause)| range.first <= seq && seq <= range.last;
        self.causes.iter().find(named).map(|(_, cause)| *cause)
    }
}

/// `settled`: the message is gone, and why if that is known.
fn row(image: &QueueImage, entry: &ImageEntry, settled: Option<Option<SettleCause>>) -> Row {
    let lsn = entry.position.lsn;
    Row::new()
        .seq("seq", entry.seq)
        .text("segment", lsn.segment())
        .number("offset", lsn.offset())
        .number("size", entry.position.len_bytes)
        .flag("delivered", is_delivered(image, entry))
        .flag("acked", settled.is_some())
        .maybe_text("settled_by", settled.flatten().map(cause_name))
        .flag("redelivered", entry.is_redelivered)
        .number("redelivery_count", entry.delivery_count)
        .number("priority", entry.priority)
        .time("expires_at_ms", "expires_at", entry.expires_at_ms)
}
