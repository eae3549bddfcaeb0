//! `batches` and `records`: the log as it is written.

use bytes::Bytes;
use serde_json::{Value, json};
use stratamq::broker::message::Message;
use stratamq::broker::meta::Change;
use stratamq::storage::batch::Batch;
use stratamq::storage::record::{Publish, Record};
use stratamq::storage::types::{Lsn, MetaEffect, Position, QueueId, SeqRange, SettleCause};

use crate::args::{LogRange, RecordKind, Selection};
use crate::error::DumpError;
use crate::log::Log;
use crate::print::{Printer, Row, seq_value};
use crate::snapshot::{Snapshot, full_name};
use crate::store::Store;
use crate::tables;
use crate::topology;

/// What the log is read with.
struct Reading {
    log: Log,
    /// `None`: damaged.
    snapshot: Option<Snapshot>,
    /// Everything below is known to be durable.
    synced: Lsn,
}

impl Reading {
    /// Opens the log; of a damaged one what can still be read, beside the damage.
    fn open(store: &Store) -> Result<(Self, Option<DumpError>), DumpError> {
        Snapshot::look(store, |snapshot, superblock| {
            let synced = snapshot
                .as_ref()
                .map_or(superblock.synced, |snapshot| snapshot.synced);
            Ok(Self {
                log: Log::read(store, superblock)?,
                snapshot,
                synced,
            })
        })
    }

    /// Shows each batch of the log that may be in `range` to `visit`.
    fn scan(
        &self,
        store: &Store,
        range: &LogRange,
        mut visit: impl FnMut(&Batch<'_>) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        for file in self
            .log
            .in_order()
            .filter(|file| range.has_segment(file.segment))
        {
            match file.scan(store, None, &mut visit) {
                // The broker freed it meanwhile: everything in it is settled.
                Err(error) if error.is_missing_file() && store.view.is_running() => {}
                scanned => drop(scanned?),
            }
        }
        Ok(())
    }

    /// A queue with its name, if it has one still.
    fn queue_text(&self, id: QueueId) -> String {
        let queue = self
            .snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.topology.queues.get(&id.0));
        queue.map_or_else(
            || format!("queue {id}"),
            |queue| format!("queue {id} ({})", full_name(&queue.vhost, &queue.name)),
        )
    }

    fn find_queue(&self, text: &str) -> Result<QueueId, DumpError> {
        // Queues that are gone still have records, and a damaged directory has no names.
        let by_id = || text.parse().ok().map(QueueId);
        match &self.snapshot {
            Some(snapshot) => snapshot
                .find_queue(text)
                .or_else(|error| by_id().ok_or(error)),
            None => by_id().ok_or_else(|| DumpError::NoNames(text.to_owned())),
        }
    }
}

pub(crate) fn batches(
    store: &Store,
    range: &LogRange,
    printer: &mut Printer<'_>,
) -> Result<(), DumpError> {
    let (reading, damage) = Reading::open(store)?;
    reading.scan(store, range, |batch| {
        let header = &batch.header;
        if !range.has(header.lsn) {
            return Ok(());
        }
        let row = Row::new()
            .text("lsn", header.lsn)
            .number("length", header.len_bytes)
            .number("records", header.record_count)
            .number("epoch", header.epoch)
            .text("synced", header.synced)
            .text("previous_crc", format_args!("{:08x}", header.previous_crc))
            .text("crc", format_args!("{:08x}", header.crc))
            .flag("durable", header.end() <= reading.synced);
        printer.row(row)
    })?;
    printer.end()?;
    damage.map_or(Ok(()), Err)
}

pub(crate) fn records(
    store: &Store,
    range: &LogRange,
    selection: &Selection,
    printer: &mut Printer<'_>,
) -> Result<(), DumpError> {
    let (reading, damage) = Reading::open(store)?;
    let queue = selection
        .queue
        .as_deref()
        .map(|text| reading.find_queue(text))
        .transpose()?;
    reading.scan(store, range, |batch| {
        for (position, record) in batch.records() {
            let is_chosen = range.has(position.lsn)
                && selection.kind.is_none_or(|kind| kind == kind_of(&record))
                && queue.is_none_or(|queue| touches(&record, queue));
            if is_chosen {
                printer.row(row(&reading, position, &record, selection.bodies))?;
            }
        }
        Ok(())
    })?;
    printer.end()?;
    damage.map_or(Ok(()), Err)
}

fn kind_of(record: &Record<'_>) -> RecordKind {
    match record {
        Record::Publish(_) => RecordKind::Publish,
        Record::Settle { .. } => RecordKind::Settle,
        Record::Requeue { .. } => RecordKind::Requeue,
        Record::Reserve { .. } => RecordKind::Reserve,
        Record::Meta { .. } => RecordKind::Meta,
        Record::Open { .. } => RecordKind::Open,
        Record::Mark => RecordKind::Mark,
    }
}

fn touches(record: &Record<'_>, wanted: QueueId) -> bool {
    match *record {
        Record::Publish(publish) => publish.refs.iter().any(|r| r.queue == wanted),
        Record::Settle { queue, .. }
        | Record::Requeue { queue, .. }
        | Record::Reserve { queue, .. } => queue == wanted,
        Record::Meta {
            effect: MetaEffect::QueueCreated(queue) | MetaEffect::QueueDeleted(queue),
            ..
        } => queue == wanted,
        Record::Meta { .. } | Record::Open { .. } | Record::Mark => false,
    }
}

fn row(reading: &Reading, position: Position, record: &Record<'_>, with_body: bool) -> Row {
    let row = Row::new()
        .text("lsn", position.lsn)
        .number("length", position.len_bytes)
        .text("type", format!("{:?}", kind_of(record)).to_uppercase());
    match *record {
        Record::Publish(publish) => publish_cells(row, reading, &publish, with_body),
        Record::Settle {
            queue,
            cause,
            ranges,
        } => {
            let text: Vec<String> = ranges.iter().map(range_text).collect();
            let ranges: Vec<Value> = ranges
                .iter()
                .map(|run| json!({"first": seq_value(run.first), "last": seq_value(run.last)}))
                .collect();
            row.json("queue", queue.0)
                .json("cause", cause_name(cause))
                .json("ranges", ranges)
                .people(
                    "what",
                    format!(
                        "{} {}: {}",
                        reading.queue_text(queue),
                        cause_name(cause),
                        text.join(", ")
                    ),
                )
        }
        Record::Requeue {
            queue,
            seq,
            delivery_count,
        } => row
            .json("queue", queue.0)
            .json("seq", seq_value(seq))
            .json("delivery_count", delivery_count)
            .people(
                "what",
                format!(
                    "{} seq {seq}, delivered {delivery_count} times",
                    reading.queue_text(queue)
                ),
            ),
        Record::Reserve { queue, upto } => row.json("queue", queue.0).json("upto", upto.0).people(
            "what",
            format!(
                "{}: seqs below {} may be delivered",
                reading.queue_text(queue),
                upto.0
            ),
        ),
        Record::Meta {
            kind,
            version,
            effect,
            body,
        } => meta_cells(row, kind, version, effect, body),
        Record::Open {
            predecessor_end,
            epoch,
        } => row
            .json("predecessor_end", predecessor_end.to_string())
            .json("epoch", epoch)
            .people("what", open_text(predecessor_end, epoch)),
        Record::Mark => row.people("what", "idle"),
    }
}

fn open_text(predecessor_end: Lsn, epoch: u64) -> String {
    if predecessor_end == Lsn(0) {
        return format!("epoch {epoch}, the log begins");
    }
    format!("epoch {epoch}, continues the log at {predecessor_end}")
}

fn publish_cells(row: Row, reading: &Reading, publish: &Publish<'_>, with_body: bool) -> Row {
    let refs: Vec<Value> = publish
        .refs
        .iter()
        .map(|r| {
            let expires_at = (r.expires_at_ms != 0).then_some(r.expires_at_ms);
            json!({"queue": r.queue.0, "seq": seq_value(r.seq), "expires_at_ms": expires_at})
        })
        .collect();
    let targets: Vec<String> = publish
        .refs
        .iter()
        .map(|r| format!("{} seq {}", reading.queue_text(r.queue), r.seq))
        .collect();
    let row = row
        .json("refs", refs)
        .json("priority", publish.priority)
        .json("time_ms", publish.time_ms)
        .json("payload_bytes", publish.payload.len());
    let targets = targets.join(", ");
    match Message::decode_payload(Bytes::copy_from_slice(publish.payload)) {
        Ok(message) => {
            let (exchange, key) = (
                name_text(&message.exchange()),
                name_text(&message.routing_key()),
            );
            let mut what = format!(
                "{targets}; exchange {exchange:?} key {key:?}, body {} bytes",
                message.body_len()
            );
            let mut row = row
                .json("exchange", exchange)
                .json("routing_key", key)
                .json("body_bytes", message.body_len());
            if with_body {
                let body = message.body().concat();
                what = format!("{what}: {}", body.escape_ascii());
                row = body_cells(row, &body);
            }
            row.people("what", what)
        }
        Err(error) => row
            .json("error", error.to_string())
            .people("what", format!("{targets}; {error}")),
    }
}

/// A body as text if it is text, else in base64.
fn body_cells(row: Row, body: &[u8]) -> Row {
    match std::str::from_utf8(body) {
        Ok(text) => row.json("body", text),
        Err(_) => row.json("body_base64", tables::base64(body)),
    }
}

fn meta_cells(row: Row, kind: u16, version: u16, effect: MetaEffect, body: &[u8]) -> Row {
    let queue = match effect {
        MetaEffect::QueueCreated(queue) | MetaEffect::QueueDeleted(queue) => Some(queue.0),
        MetaEffect::None => None,
    };
    let row = row
        .json("kind", kind)
        .json("version", version)
        .json("queue", queue);
    match Change::decode(kind, version, body) {
        Ok(change) => {
            let (name, value) = topology::describe(&change);
            row.json("change", name)
                .json("value", value.clone())
                .people("what", format!("{name} {}", tables::short(&value)))
        }
        Err(error) => row.json("error", error.to_string()).people("what", error),
    }
}

fn name_text(name: &stratamq::amqp::short_string::ShortString) -> String {
    String::from_utf8_lossy(name.as_bytes()).into_owned()
}

fn range_text(SeqRange { first, last }: SeqRange) -> String {
    if first == last {
        format!("seq {first}")
    } else {
        format!("seqs {first} to {last}")
    }
}

/// The cause as operators call it.
pub(crate) fn cause_name(cause: SettleCause) -> &'static str {
    match cause {
        SettleCause::Acked => "acked",
        SettleCause::Expired => "expired",
        SettleCause::MaxLength => "dropped by maxlen",
        SettleCause::Purged => "purged",
        SettleCause::Rejected => "rejected",
        SettleCause::DeadLettered => "dead-lettered",
    }
}
