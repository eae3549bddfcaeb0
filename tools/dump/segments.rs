//! `segments`: what each file of the log holds and why it is still there.

use stratamq::disk::{Disk, OpenMode};
use stratamq::storage::format::spare_path;
use stratamq::storage::pool;
use stratamq::storage::superblock::Superblock;
use stratamq::storage::types::{Lsn, SegmentId};

use crate::error::DumpError;
use crate::log::{Log, SegmentFile};
use crate::print::{Printer, Row};
use crate::snapshot::{Live, Snapshot};
use crate::store::Store;

/// What is in a segment.
#[derive(Clone, Copy)]
struct Content {
    /// Behind its part of the log.
    end: Lsn,
    batch_count: u64,
    record_count: u64,
}

pub(crate) fn run(store: &Store, printer: &mut Printer<'_>) -> Result<(), DumpError> {
    let (rows, damage) = Snapshot::look(store, |snapshot, superblock| {
        let live = snapshot.as_ref().map(|snapshot| snapshot.live(store));
        let live = live.transpose()?;
        let log = Log::read(store, superblock)?;
        let mut rows = Vec::new();
        for file in log.files.values() {
            let content = if file.is_void {
                None
            } else {
                Some(read_content(store, file)?)
            };
            let alive = live
                .as_ref()
                .map(|live| live.get(&file.segment).copied().unwrap_or_default());
            let reason = why_kept(
                store,
                file,
                snapshot.as_ref(),
                superblock,
                alive.is_some_and(|alive| alive.refs > 0),
            );
            rows.push(row(file, content, alive, reason));
        }
        for spare in pool::list(&store.view)? {
            // Gone again when a broker made a segment of it meanwhile.
            let file = store.view.open(&spare_path(spare), OpenMode::Read);
            if let Ok(len_bytes) = file.and_then(|file| file.len()) {
                rows.push(spare_row(spare, len_bytes));
            }
        }
        Ok(rows)
    })?;
    rows.into_iter().try_for_each(|row| printer.row(row))?;
    printer.end()?;
    damage.map_or(Ok(()), Err)
}

fn read_content(store: &Store, file: &SegmentFile) -> Result<Content, DumpError> {
    let mut content = Content {
        end: file.first_batch(),
        batch_count: 0,
        record_count: 0,
    };
    let scanned = file.scan(store, None, |batch| {
        content.batch_count += 1;
        content.record_count += u64::from(batch.header.record_count);
        Ok(())
    })?;
    content.end = scanned.end;
    Ok(content)
}

fn row(file: &SegmentFile, content: Option<Content>, alive: Option<Live>, reason: &str) -> Row {
    let log_bytes = content.map(|content| content.end.0 - file.first_batch().0);
    let live_bytes = alive.map(|alive| alive.record_bytes);
    // Headers of batches, acks and topology count as dead: nobody will read them again once a checkpoint is made.
    let dead_bytes = log_bytes
        .zip(live_bytes)
        .map(|(all, live)| all.saturating_sub(live));
    Row::new()
        .text("segment", file.segment)
        .maybe_text("first_lsn", content.map(|_| file.first_batch()))
        .maybe_text("end_lsn", content.map(|content| content.end))
        .maybe_number("epoch", file.header.ok().map(|header| header.epoch))
        .maybe_number("batches", content.map(|content| content.batch_count))
        .maybe_number("records", content.map(|content| content.record_count))
        .maybe_number("live_refs", alive.map(|alive| alive.refs))
        .maybe_number("live_bytes", live_bytes)
        .maybe_number("dead_bytes", dead_bytes)
        .number("file_bytes", file.len_bytes)
        .text("kept", reason)
}

fn spare_row(spare: SegmentId, len_bytes: u64) -> Row {
    Row::new()
        .text("segment", spare)
        .maybe_text("first_lsn", None::<Lsn>)
        .maybe_text("end_lsn", None::<Lsn>)
        .maybe_number("epoch", None)
        .maybe_number("batches", None)
        .maybe_number("records", None)
        .maybe_number("live_refs", None)
        .maybe_number("live_bytes", None)
        .maybe_number("dead_bytes", None)
        .number("file_bytes", len_bytes)
        .text("kept", "spare: becomes a segment when the log needs one")
}

/// The first reason of those there may be. A segment is freed when the newest checkpoint counts no live ref in it and
/// replay does not begin in or before it.
fn why_kept(
    store: &Store,
    file: &SegmentFile,
    snapshot: Option<&Snapshot>,
    superblock: &Superblock,
    has_live: bool,
) -> &'static str {
    if file.is_void {
        return "void: no part of the log, freed with its neighbours";
    }
    if file.is_cold {
        return if has_live {
            "cold: messages moved out of nearly empty segments"
        } else {
            "cold, and empty: freed by a checkpoint"
        };
    }
    let is_last = snapshot.is_some_and(|snapshot| snapshot.end.segment() == file.segment);
    if is_last && store.view.is_running() {
        return "open: written to";
    }
    if file.segment >= superblock.begin.segment() {
        return "at or above the checkpoint's begin";
    }
    let checkpoint = snapshot.and_then(|snapshot| snapshot.checkpoint.as_ref());
    match checkpoint.map(|checkpoint| checkpoint.segments.contains_key(&file.segment)) {
        Some(true) if has_live => "live refs",
        Some(true) => "live refs in the newest checkpoint",
        Some(false) => "nothing: freed by the next checkpoint",
        None => "unknown: the state cannot be read",
    }
}
