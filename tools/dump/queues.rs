//! `queues`: the durable queues and the state of each at the end of the log.

use stratamq::storage::QueueImage;
use stratamq::storage::types::ImageEntry;

use crate::error::DumpError;
use crate::print::{Printer, Row};
use crate::snapshot::Snapshot;
use crate::store::Store;

pub(crate) fn run(store: &Store, printer: &mut Printer<'_>) -> Result<(), DumpError> {
    let snapshot = Snapshot::load(store)?;
    snapshot
        .queues
        .iter()
        .try_for_each(|image| printer.row(row(&snapshot, image)))?;
    printer.end()
}

fn row(snapshot: &Snapshot, image: &QueueImage) -> Row {
    let queue = snapshot.topology.queues.get(&image.id.0);
    let head = image
        .entries
        .iter()
        .next()
        .map_or(image.next_seq, |entry| entry.seq);
    let count = |predicate: &dyn Fn(&&ImageEntry) -> bool| {
        image.entries.iter().filter(predicate).count() as u64
    };
    Row::new()
        .number("id", image.id.0)
        .maybe_text("vhost", queue.map(|queue| &queue.vhost))
        .maybe_text("name", queue.map(|queue| &queue.name))
        .number("head", head.0)
        .number("tail", image.next_seq.0)
        .number("unsettled", image.entries.len() as u64)
        .number("delivered_upto", image.reserved_upto.0)
        .number("delivered", count(&|entry| is_delivered(image, entry)))
        .number("redelivered", count(&|entry| entry.is_redelivered))
        .text("last_lsn", image.last_lsn)
}

/// It may have been delivered: a reservation covers it, or it came back.
pub(crate) fn is_delivered(image: &QueueImage, entry: &ImageEntry) -> bool {
    entry.seq < image.reserved_upto || entry.is_redelivered
}
