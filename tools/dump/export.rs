//! `export`: readable live messages as JSON lines, also of a directory that no broker would start on.

use std::io::Write;

use serde_json::{Map, Value, json};
use stratamq::amqp::properties::Properties;
use stratamq::broker::message::Message;
use stratamq::disk::Disk;
use stratamq::storage::QueueImage;
use stratamq::storage::format::segment_path;
use stratamq::storage::types::ImageEntry;

use crate::error::DumpError;
use crate::live::{Live, Unreadable, confirm, read_message};
use crate::print::seq_value;
use crate::queues::is_delivered;
use crate::store::Store;
use crate::tables;

/// Unreadable messages that are listed on standard error; more are only counted.
const LISTED_MAX: usize = 100;

pub(crate) fn run(
    store: &Store,
    queue: Option<&str>,
    out: &mut dyn Write,
) -> Result<(), DumpError> {
    let live = Live::load(store)?;
    let only = queue.map(|text| live.find_queue(text)).transpose()?;
    if let Some(salvage) = &live.salvage {
        eprintln!(
            "strata-dump: the directory is damaged; exporting what can be verified: {salvage}"
        );
    }
    let (mut unreadable, mut exported_count, mut lost_count) = (Vec::new(), 0u64, 0u64);
    let images = live.snapshot.queues.iter();
    for image in images.filter(|image| only.is_none_or(|only| only == image.id)) {
        let (entries, lost) = live.messages(store, image)?;
        if let Some(lost) = lost {
            eprintln!("strata-dump: {}: {lost}", live.text_of(image.id));
            lost_count += 1;
        }
        for entry in entries {
            match read_message(store, image.id, &entry)? {
                Ok(message) => {
                    let line = Value::Object(line(&live, image, &entry, &message));
                    writeln!(out, "{line}").map_err(DumpError::Output)?;
                    exported_count += 1;
                }
                Err(reason) => unreadable.push(Unreadable {
                    queue: image.id,
                    entry,
                    reason,
                }),
            }
        }
    }
    out.flush().map_err(DumpError::Output)?;
    let unreadable = confirm(store, unreadable)?;
    for message in unreadable.iter().take(LISTED_MAX) {
        let position = message.entry.position;
        eprintln!(
            "strata-dump: message {} of {}: {} at offset {}: {}",
            message.entry.seq,
            live.text_of(message.queue),
            store.view.describe(&segment_path(position.lsn.segment())),
            position.lsn.offset(),
            message.reason
        );
    }
    let unreadable_count = unreadable.len() as u64;
    eprintln!("strata-dump: {exported_count} messages exported, {unreadable_count} unreadable");
    let salvaged = live.salvage.map_or(0, |salvage| salvage.place_count);
    match unreadable_count + lost_count + salvaged {
        0 => Ok(()),
        count => Err(DumpError::Damaged {
            path: store.name(),
            count,
        }),
    }
}

fn line(
    live: &Live,
    image: &QueueImage,
    entry: &ImageEntry,
    message: &Message,
) -> Map<String, Value> {
    let (vhost, name) = live.names_of(image.id);
    let body = message.body().concat();
    let expires_at = (entry.expires_at_ms != 0).then_some(entry.expires_at_ms);
    let bcc: Vec<String> = message
        .head_parts()
        .bcc
        .iter()
        .map(|key| text(key.as_bytes()))
        .collect();
    let mut line = Map::new();
    let mut put = |name: &str, value: Value| drop(line.insert(name.to_owned(), value));
    put("queue", json!(name));
    put("vhost", json!(vhost));
    put("queue_id", json!(image.id.0));
    put("seq", seq_value(entry.seq));
    put("exchange", json!(text(message.exchange().as_bytes())));
    put("routing_key", json!(text(message.routing_key().as_bytes())));
    if !bcc.is_empty() {
        put("bcc", json!(bcc));
    }
    put(
        "properties",
        Value::Object(properties(&message.properties())),
    );
    put("redelivered", json!(is_delivered(image, entry)));
    put("delivery_count", json!(entry.delivery_count));
    put("expires_at_ms", json!(expires_at));
    put("body_base64", json!(tables::base64(&body)));
    if let Ok(body) = std::str::from_utf8(&body) {
        put("body", json!(body));
    }
    line
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Those that are set, by their names in the protocol.
fn properties(properties: &Properties) -> Map<String, Value> {
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message_id", properties.message_id()),
        ("type", properties.message_type()),
        ("user_id", properties.user_id()),
        ("app_id", properties.app_id()),
        ("cluster_id", properties.cluster_id()),
    ];
    let mut set: Map<String, Value> = texts
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), json!(text(value?)))))
        .collect();
    let numbers = [
        ("delivery_mode", properties.delivery_mode().map(u64::from)),
        ("priority", properties.priority().map(u64::from)),
        ("timestamp", properties.timestamp()),
    ];
    set.extend(
        numbers
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))),
    );
    if let Some(headers) = properties.headers() {
        set.insert("headers".into(), tables::from_table(&headers));
    }
    set
}
