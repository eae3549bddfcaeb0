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
    let head = image.first_seq().unwrap_or(image.next_seq);
    let (delivered, redelivered) = deliveries(image);
    Row::new()
        .number("id", image.id.0)
        .maybe_text("vhost", queue.map(|queue| &queue.vhost))
        .maybe_text("name", queue.map(|queue| &queue.name))
        .seq("head", head)
        .number("tail", image.next_seq.0)
        .number("unsettled", image.message_count())
        .number("delivered_upto", image.reserved_upto.0)
        .number("delivered", delivered)
        .number("redelivered", redelivered)
        .text("last_lsn", image.last_lsn)
}

/// Messages that may have been delivered, and those of them that came back.
fn deliveries(image: &QueueImage) -> (u64, u64) {
    let (mut delivered, mut redelivered) = (0, 0);
    for entry in image.entries.iter() {
        delivered += u64::from(is_delivered(image, entry));
        redelivered += u64::from(entry.is_redelivered);
    }
    for run in &image.runs {
        let came_back = |index| {
            let marks = run.marks.as_ref();
            marks.is_some_and(|marks| marks.redelivered.contains(index))
        };
        for index in run.live.iter() {
            let is_back = came_back(index);
            delivered += u64::from(is_back || run.seq_at(index).is_within(image.reserved_upto));
            redelivered += u64::from(is_back);
        }
    }
    (delivered, redelivered)
}

/// It may have been delivered: a reservation covers it, or it came back.
pub(crate) fn is_delivered(image: &QueueImage, entry: &ImageEntry) -> bool {
    entry.seq.is_within(image.reserved_upto) || entry.is_redelivered
}
