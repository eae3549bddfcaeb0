//! `superblock` and `checkpoint`: the two places recovery begins with.

use stratamq::storage::QueueImage;
use stratamq::storage::checkpoint;
use stratamq::storage::format::{SUPERBLOCK_FILES, checkpoint_path};
use stratamq::storage::superblock::{Copy, Superblock};

use crate::error::DumpError;
use crate::print::{Printer, Row};
use crate::store::Store;

pub(crate) fn superblock(store: &Store, printer: &mut Printer<'_>) -> Result<(), DumpError> {
    let (copies, chosen) = store.look(|copies, superblock| Ok((*copies, superblock)))?;
    for (copy, name) in copies.iter().zip(SUPERBLOCK_FILES) {
        printer.title(name)?;
        let row = Row::new()
            .json("file", name)
            .text("state", state(copy, &chosen));
        printer.list(if let Copy::Valid(superblock) = copy {
            superblock_cells(row, superblock)
        } else {
            row
        })?;
    }
    Ok(())
}

/// What is in index files, block by block.
fn runs(queues: &[QueueImage], printer: &mut Printer<'_>) -> Result<(), DumpError> {
    if queues.iter().all(|queue| queue.runs.is_empty()) {
        return Ok(());
    }
    printer.title("runs in index files")?;
    for queue in queues {
        for run in &queue.runs {
            let segments: Vec<String> = run
                .segments
                .iter()
                .map(|used| used.segment.to_string())
                .collect();
            let row = Row::new()
                .number("queue", queue.id.0)
                .seq("first_seq", run.seq_at(0))
                .number("block", run.block)
                .text("crc", format!("{:08x}", run.crc))
                .number("live", run.live.len())
                .flag("marks", run.marks.is_some())
                .number("live_bytes", run.live_bytes())
                .text("segments", segments.join(" "));
            printer.row(row)?;
        }
    }
    printer.end()
}

fn state(copy: &Copy, chosen: &Superblock) -> String {
    match copy {
        Copy::Missing => "missing".into(),
        Copy::Invalid => {
            "not whole: torn by a crash, or damaged; the next start writes it again".into()
        }
        Copy::Newer(version) => format!("needs a reader of format version {version}"),
        Copy::Valid(superblock) if superblock == chosen => "valid".into(),
        Copy::Valid(_) => "valid, older".into(),
    }
}

fn superblock_cells(row: Row, superblock: &Superblock) -> Row {
    row.text("store_id", superblock.store)
        .number("sequence", superblock.sequence)
        .number("epoch", superblock.epoch)
        .number("checkpoint", superblock.checkpoint_generation)
        .text("begin", superblock.begin)
        .text("synced", superblock.synced)
        .time("created_at_ms", "created_at", superblock.created_at_ms)
}

pub(crate) fn checkpoint(store: &Store, printer: &mut Printer<'_>) -> Result<(), DumpError> {
    let loaded = store.look(|_, superblock| {
        let generation = superblock.checkpoint_generation;
        if generation == 0 {
            return Ok(None);
        }
        Ok(Some(checkpoint::read(
            &store.view,
            superblock.store,
            generation,
        )?))
    })?;
    let Some(checkpoint) = loaded else {
        return printer.title("no checkpoint was made yet: replay begins at the first segment");
    };
    let path = checkpoint_path(checkpoint.header.generation);
    printer.title(&path.display().to_string())?;
    let row = Row::new()
        .json("file", path.display().to_string())
        .number("generation", checkpoint.header.generation)
        .number("epoch", checkpoint.header.epoch)
        .time(
            "created_at_ms",
            "created_at",
            checkpoint.header.created_at_ms,
        )
        .text("begin", checkpoint.header.begin)
        .text("end", checkpoint.end)
        .number("file_bytes", checkpoint.len_bytes)
        .number("topology_bytes", checkpoint.meta.len() as u64)
        .text("topology_lsn", checkpoint.meta_lsn)
        .number("queues", checkpoint.queues.len() as u64)
        .number(
            "messages",
            checkpoint
                .queues
                .iter()
                .map(QueueImage::message_count)
                .sum::<u64>(),
        )
        .number(
            "index_runs",
            checkpoint
                .queues
                .iter()
                .map(|queue| queue.runs.len() as u64)
                .sum::<u64>(),
        );
    printer.list(row)?;
    runs(&checkpoint.queues, printer)?;
    printer.title("live refs by segment")?;
    for (segment, used) in &checkpoint.segments {
        let row = Row::new()
            .text("segment", segment)
            .number("live_refs", used.live_refs)
            .number("live_bytes", used.live_bytes);
        printer.row(row)?;
    }
    printer.end()
}
