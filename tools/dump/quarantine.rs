//! `quarantine`: live messages that cannot be read, and copies of bytes that recovery left out.

use std::path::Path;

use stratamq::disk::{Disk, OpenMode};
use stratamq::storage::format::{QUARANTINE_DIR, segment_path};

use crate::error::DumpError;
use crate::live::{Live, Unreadable, confirm, read_message};
use crate::log::io_error;
use crate::print::{Printer, Row};
use crate::store::Store;

pub(crate) fn run(store: &Store, printer: &mut Printer<'_>) -> Result<(), DumpError> {
    let live = Live::load(store)?;
    let (unreadable, mut lost_count) = find_unreadable(store, &live)?;
    let unreadable = confirm(store, unreadable)?;
    printer.title("live messages that cannot be read")?;
    for message in &unreadable {
        printer.row(row(store, &live, message))?;
    }
    printer.title("copies of bytes that were left out")?;
    for (name, len_bytes) in copies(store)? {
        let row = Row::new()
            .json("kind", "copy")
            .text("file", name)
            .number("bytes", len_bytes);
        printer.row(row)?;
    }
    printer.end()?;
    if let Some(salvage) = &live.salvage {
        lost_count += salvage.place_count;
        eprintln!(
            "strata-dump: the directory is damaged; this is what `--on-corruption quarantine` would start with: {salvage}"
        );
    }
    match unreadable.len() as u64 + lost_count {
        0 => Ok(()),
        count => Err(DumpError::Damaged {
            path: store.name(),
            count,
        }),
    }
}

/// In ascending queue and seq; and the number of queues of which not all messages are known.
fn find_unreadable(store: &Store, live: &Live) -> Result<(Vec<Unreadable>, u64), DumpError> {
    let (mut unreadable, mut lost_count) = (Vec::new(), 0);
    for image in &live.snapshot.queues {
        let (entries, lost) = live.messages(store, image)?;
        if let Some(lost) = lost {
            eprintln!("strata-dump: {}: {lost}", live.text_of(image.id));
            lost_count += 1;
        }
        for entry in entries {
            if let Err(reason) = read_message(store, image.id, &entry)? {
                unreadable.push(Unreadable {
                    queue: image.id,
                    entry,
                    reason,
                });
            }
        }
    }
    Ok((unreadable, lost_count))
}

fn row(store: &Store, live: &Live, message: &Unreadable) -> Row {
    let (vhost, name) = live.names_of(message.queue);
    let position = message.entry.position;
    Row::new()
        .json("kind", "message")
        .number("queue_id", message.queue.0)
        .maybe_text("vhost", vhost)
        .maybe_text("queue", name)
        .seq("seq", message.entry.seq)
        .text(
            "file",
            store.view.describe(&segment_path(position.lsn.segment())),
        )
        .number("offset", position.lsn.offset())
        .number("size", position.len_bytes)
        .text("reason", &message.reason)
}

fn copies(store: &Store) -> Result<Vec<(String, u64)>, DumpError> {
    let dir = Path::new(QUARANTINE_DIR);
    let error = |source| io_error(store, "read", dir, source);
    let names = match store.view.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(error)?,
    };
    let mut copies = Vec::new();
    for name in names {
        let path = dir.join(name);
        let file = store.view.open(&path, OpenMode::Read).map_err(error)?;
        copies.push((path.display().to_string(), file.len().map_err(error)?));
    }
    Ok(copies)
}
