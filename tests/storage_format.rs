//! Keeps storage-format.md true: its tables are compared with the code, field by field and in both directions.
//!
//! Structures of fixed size are compared with the constants of `storage::format`. Payloads and META bodies have no
//! fixed offsets: there the page's tables are used to take apart what the code has encoded, and the values must be
//! those that went in.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use stratamq::amqp::properties::PropertiesBuilder;
use stratamq::amqp::short_string::ShortString;
use stratamq::broker::message::{FLAG_HAS_DEATHS, FLAG_IS_REKEYED, Message, MessageParts};
use stratamq::broker::meta::{
    BindingV1, Change, ExchangeNameV1, ExchangeV1, LimitNameV1, LimitV1, MetaState,
    PermissionsNameV1, PermissionsV1, PolicyNameV1, PolicyV1, QueueIdV1, QueueV1, SNAPSHOT_KIND,
    SNAPSHOT_VERSION, TopicPermissionsNameV1, TopicPermissionsV1, UserNameV1, UserV1,
    VhostSettingsV1, VhostV1,
};
use stratamq::storage::format::{self, Field, STRUCTURES};
use stratamq::storage::types::SettleCause;

const PAGE: &str = include_str!("../storage-format.md");

/// Cells of the table rows of `text`, rules left out.
fn rows(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|---"))
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect()
}

/// Rows of the first table under a heading, without the table's head.
#[track_caller]
fn table_under(heading: &str) -> Vec<Vec<String>> {
    let (_, behind) = PAGE
        .split_once(&format!("\n### {heading}\n"))
        .unwrap_or_else(|| panic!("the page has no heading {heading}"));
    let table: Vec<&str> = behind
        .lines()
        .take_while(|line| !line.starts_with('#'))
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .collect();
    rows(&table.join("\n")).into_iter().skip(1).collect()
}

/// Structure name -> (size, fields) as the page lists them.
fn structures_of_page() -> BTreeMap<String, (usize, Vec<(String, Field)>)> {
    let parts = PAGE.split("### Structure: ").skip(1);
    parts.map(structure_of_part).collect()
}

fn structure_of_part(part: &str) -> (String, (usize, Vec<(String, Field)>)) {
    let (title, body) = part.split_once('\n').expect("a heading ends");
    let (name, size) = title.split_once(" (").expect("a heading names the size");
    let size = size
        .trim_end_matches(" bytes)")
        .parse()
        .expect("a size is a number");
    let table = body
        .trim_start()
        .split("\n\n")
        .nth(1)
        .expect("a description, then a table");
    let field = |row: Vec<String>| {
        let offset = row[0].parse().expect("an offset is a number");
        let size = row[1].parse().expect("a size is a number");
        (row[2].clone(), Field { offset, size })
    };
    (
        name.to_owned(),
        (size, rows(table).into_iter().skip(1).map(field).collect()),
    )
}

/// The cell at `value_at` of the one row that has `name` at `name_at` (and `context.1` at `context.0`).
#[track_caller]
fn value_of(name: &str, name_at: usize, value_at: usize, context: Option<(usize, &str)>) -> String {
    let found: Vec<_> = rows(PAGE)
        .into_iter()
        .filter(|row| row.get(name_at).is_some_and(|cell| cell == name))
        .filter(|row| context.is_none_or(|(at, text)| row.get(at).is_some_and(|cell| cell == text)))
        .filter_map(|row| row.get(value_at).cloned())
        .collect();
    assert_eq!(
        found.len(),
        1,
        "{name} stands in one row of the page, found {found:?}"
    );
    found[0].clone()
}

#[test]
fn every_structure_of_the_code_stands_in_the_page_and_the_other_way_round() {
    let page = structures_of_page();
    let mut code = BTreeMap::new();
    for (name, size, fields) in STRUCTURES {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, field)| ((*name).to_owned(), *field))
            .collect();
        code.insert((*name).to_owned(), (*size, fields));
    }
    assert_eq!(
        page.keys().collect::<Vec<_>>(),
        code.keys().collect::<Vec<_>>()
    );
    for (name, expected) in &code {
        assert_eq!(&page[name], expected, "structure {name}");
    }
}

#[test]
fn record_types_and_section_kinds_are_those_of_the_code() {
    for (name, value) in format::record_type::ALL {
        assert_eq!(
            value_of(&value.to_string(), 0, 1, Some((1, name))),
            *name,
            "record type {name}"
        );
    }
    for (name, value) in format::section_kind::ALL {
        assert_eq!(
            value_of(name, 0, 1, Some((1, &value.to_string()))),
            value.to_string(),
            "section {name}"
        );
    }
}

#[test]
fn flags_causes_and_effects_are_those_of_the_code() {
    assert_eq!(
        value_of("WIDE_REFS", 0, 1, None),
        format::record_flag::WIDE_REFS.to_string()
    );
    for (name, value) in [
        ("RECYCLED", format::segment_flag::RECYCLED),
        ("WIDE_ENTRIES", format::queue_flag::WIDE_ENTRIES),
        ("LONG_RUNS", format::queue_flag::LONG_RUNS),
        ("RUNS", format::queue_flag::RUNS),
        ("MARKS", u32::from(format::run_flag::MARKS)),
        ("PARTIAL", u32::from(format::run_flag::PARTIAL)),
        ("REDELIVERED", u32::from(format::entry_flag::REDELIVERED)),
        ("HAS_DEATHS", u32::from(FLAG_HAS_DEATHS)),
        ("IS_REKEYED", u32::from(FLAG_IS_REKEYED)),
    ] {
        assert_eq!(value_of(name, 0, 1, None), value.to_string(), "{name}");
    }
    for cause in [
        SettleCause::Acked,
        SettleCause::Expired,
        SettleCause::MaxLength,
        SettleCause::Purged,
        SettleCause::Rejected,
        SettleCause::DeadLettered,
    ] {
        assert_eq!(
            value_of(&format!("{cause:?}"), 0, 1, Some((2, "SETTLE"))),
            (cause as u8).to_string()
        );
    }
    for (name, value) in [
        ("NONE", format::meta_effect::NONE),
        ("QUEUE_CREATED", format::meta_effect::QUEUE_CREATED),
        ("QUEUE_DELETED", format::meta_effect::QUEUE_DELETED),
    ] {
        assert_eq!(value_of(name, 0, 1, Some((2, "META"))), value.to_string());
    }
}

#[test]
fn constants_are_those_of_the_code() {
    for (name, value) in [
        ("FORMAT_VERSION", u64::from(format::FORMAT_VERSION)),
        ("MIN_READER_VERSION", u64::from(format::MIN_READER_VERSION)),
        (
            "CHECKPOINT_MIN_READER_VERSION",
            u64::from(format::CHECKPOINT_MIN_READER_VERSION),
        ),
        ("RUN_SEQS", stratamq::storage::run::RUN_SEQS),
        ("BLOCK_BYTES", format::BLOCK_BYTES),
        ("ALIGN_BYTES", format::ALIGN_BYTES),
        (
            "FIRST_BATCH_OFFSET",
            u64::from(stratamq::storage::segment::FIRST_BATCH_OFFSET),
        ),
    ] {
        assert_eq!(value_of(name, 0, 1, None), value.to_string(), "{name}");
    }
    for (name, value) in [
        ("SUPERBLOCK_MAGIC", format::SUPERBLOCK_MAGIC),
        ("SEGMENT_MAGIC", format::SEGMENT_MAGIC),
        ("CHECKPOINT_MAGIC", format::CHECKPOINT_MAGIC),
        ("BATCH_MAGIC", u64::from(format::BATCH_MAGIC)),
    ] {
        let text = value_of(name, 0, 1, None);
        let text = text.trim_matches('`').as_bytes();
        let mut bytes = [0; 8];
        bytes[..text.len()].copy_from_slice(text);
        assert_eq!(u64::from_le_bytes(bytes), value, "{name}");
    }
}

#[test]
fn files_are_named_as_the_code_names_them() {
    let paths: Vec<String> = rows(PAGE).into_iter().map(|row| row[0].clone()).collect();
    let [first, second] = format::SUPERBLOCK_FILES;
    for path in [
        format!("`{}`", format::LOCK_FILE),
        format!("`{first}`, `{second}`"),
        format!(
            "`{}/<12 hex>.{}`",
            format::LOG_DIR,
            format::SEGMENT_EXTENSION
        ),
        format!(
            "`{}/<16 hex>.{}`",
            format::CHECKPOINT_DIR,
            format::CHECKPOINT_EXTENSION
        ),
        format!(
            "`{}/<16 hex>.{}`",
            format::INDEX_DIR,
            format::INDEX_EXTENSION
        ),
        format!("`{}/<12 hex>-<8 hex>.torn`", format::QUARANTINE_DIR),
        format!("`*.{}`", format::TEMP_EXTENSION),
    ] {
        assert!(paths.contains(&path), "{path} stands in the page");
    }
}

/// Takes the first `len` bytes off.
#[track_caller]
fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = bytes
        .split_at_checked(len)
        .expect("the page asks for no more bytes than there are");
    *bytes = rest;
    taken
}

fn number(bytes: &[u8]) -> usize {
    let number = bytes
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    usize::try_from(number).expect("a small number")
}

/// Takes `bytes` apart as a table with sizes says. A size is a number of bytes, the name of a field that holds it,
/// `COUNT × (1 + key)` with the name of a field, or the rest.
#[track_caller]
fn fields_by_size(heading: &str, mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut fields = BTreeMap::<String, Vec<u8>>::new();
    for row in table_under(heading) {
        let value = match row[1].split_once(" × ") {
            Some((count, _)) => {
                let all = bytes;
                for _ in 0..number(&fields[count]) {
                    let len = number(take(&mut bytes, 1));
                    take(&mut bytes, len);
                }
                &all[..all.len() - bytes.len()]
            }
            None if row[1] == "the rest" => std::mem::take(&mut bytes),
            None => {
                let len = row[1].parse().unwrap_or_else(|_| number(&fields[&row[1]]));
                take(&mut bytes, len)
            }
        };
        fields.insert(row[0].clone(), value.to_owned());
    }
    assert!(bytes.is_empty(), "{heading}: {} bytes left", bytes.len());
    fields
}

#[test]
fn message_payload_is_what_the_page_says() {
    let mut properties = PropertiesBuilder::new();
    properties.set_delivery_mode(Some(2)).set_header("a", 1);
    let properties = properties.build();
    let message = Message::from_parts(&MessageParts {
        exchange: ShortString::from_static("exchange"),
        routing_key: ShortString::from_static("routing key"),
        bcc: vec![
            ShortString::from_static("one"),
            ShortString::from_static("other"),
        ],
        properties: properties.clone(),
        body: vec![Bytes::from_static(b"the body")],
        has_deaths: true,
        is_rekeyed: true,
    });
    let fields = fields_by_size("Message payload", &message.payload().concat());
    for (name, expected) in [
        ("flags", &[FLAG_HAS_DEATHS | FLAG_IS_REKEYED][..]),
        ("exchange", b"exchange"),
        ("routing key", b"routing key"),
        ("bcc count", &[2, 0]),
        ("bcc keys", b"\x03one\x05other"),
        ("properties", properties.raw()),
        ("body", b"the body"),
    ] {
        assert_eq!(fields[name], expected, "{name}");
    }
}

/// Reads a value of a type of the page's, as serde would show it.
#[track_caller]
fn read_value(kind: &str, bytes: &mut &[u8]) -> Value {
    let length = |bytes: &mut &[u8]| number(take(bytes, 8));
    match kind {
        "u64" => json!(length(bytes)),
        "i64" => {
            let bytes: [u8; 8] = take(bytes, 8).try_into().expect("eight bytes");
            json!(i64::from_le_bytes(bytes))
        }
        "bool" => json!(take(bytes, 1) == [1]),
        "text" => {
            let len = length(bytes);
            json!(std::str::from_utf8(take(bytes, len)).expect("texts are UTF-8"))
        }
        "bytes" => {
            let len = length(bytes);
            json!(take(bytes, len))
        }
        _ => match kind.strip_prefix("list of ") {
            Some(kind) => (0..length(bytes))
                .map(|_| read_value(kind, bytes))
                .collect(),
            None => read_struct(kind, bytes),
        },
    }
}

#[track_caller]
fn read_struct(name: &str, bytes: &mut &[u8]) -> Value {
    let fields = table_under(&format!("Body: {name}")).into_iter();
    Value::Object(
        fields
            .map(|row| (row[0].clone(), read_value(&row[1], bytes)))
            .collect::<Map<_, _>>(),
    )
}

#[track_caller]
fn read_body(name: &str, mut bytes: &[u8]) -> Value {
    let value = read_struct(name, &mut bytes);
    assert!(bytes.is_empty(), "{name}: {} bytes left", bytes.len());
    value
}

/// A change with the fields of its body.
fn change<T: Serialize>(change: fn(T) -> Change, body: T) -> (Change, Value) {
    let value = serde_json::to_value(&body).expect("structs of texts and numbers");
    (change(body), value)
}

/// One change of every kind, in their order.
fn changes() -> Vec<(Change, Value)> {
    let text = String::from;
    let arguments = || vec![0, 0, 0, 2, 1, b'a'];
    let vhost = || VhostV1 { name: text("v") };
    let binding = || BindingV1 {
        vhost: text("v"),
        is_to_queue: true,
        destination: text("queue"),
        source: text("source"),
        routing_key: text("key"),
        arguments: arguments(),
    };
    let user = UserV1 {
        name: text("user"),
        password_hash: text("hash"),
        tags: vec![text("one"), text("other")],
    };
    let permissions = PermissionsV1 {
        vhost: text("v"),
        user: text("user"),
        configure: text("c"),
        write: text("w"),
        read: text("r"),
    };
    let of_user = PermissionsNameV1 {
        vhost: text("v"),
        user: text("user"),
    };
    let exchange = ExchangeV1 {
        vhost: text("v"),
        name: text("source"),
        kind: text("topic"),
        is_auto_delete: true,
        is_internal: false,
        arguments: arguments(),
    };
    let exchange_name = ExchangeNameV1 {
        vhost: text("v"),
        name: text("source"),
    };
    let queue = QueueV1 {
        id: 0x0102_0304,
        vhost: text("v"),
        name: text("queue"),
        is_auto_delete: true,
        arguments: arguments(),
    };
    let policy = PolicyV1 {
        vhost: text("v"),
        is_operator: true,
        name: text("policy"),
        pattern: text("^q"),
        apply_to: text("queues"),
        priority: -3,
        definition: text("{}"),
    };
    let policy_name = PolicyNameV1 {
        vhost: text("v"),
        is_operator: true,
        name: text("policy"),
    };
    let topic_permissions = TopicPermissionsV1 {
        vhost: text("v"),
        user: text("user"),
        exchange: text("source"),
        write: text("w"),
        read: text("r"),
    };
    let of_topic = TopicPermissionsNameV1 {
        vhost: text("v"),
        user: text("user"),
        exchange: text("source"),
    };
    let limit = LimitV1 {
        is_of_user: true,
        owner: text("user"),
        name: text("max-channels"),
        value: -1,
    };
    let limit_name = LimitNameV1 {
        is_of_user: true,
        owner: text("user"),
        name: text("max-channels"),
    };
    let vhost_settings = VhostSettingsV1 {
        name: text("v"),
        description: text("words"),
        tags: vec![text("one")],
        default_queue_type: text("classic"),
        is_protected: true,
    };
    vec![
        change(Change::VhostAdded, vhost()),
        change(Change::VhostDeleted, vhost()),
        change(Change::UserSet, user),
        change(Change::UserDeleted, UserNameV1 { name: text("user") }),
        change(Change::PermissionsSet, permissions),
        change(Change::PermissionsCleared, of_user),
        change(Change::ExchangeDeclared, exchange),
        change(Change::ExchangeDeleted, exchange_name),
        change(Change::QueueDeclared, queue),
        change(Change::QueueDeleted, QueueIdV1 { id: 0x0102_0304 }),
        change(Change::BindingAdded, binding()),
        change(Change::BindingRemoved, binding()),
        change(Change::PolicySet, policy),
        change(Change::PolicyCleared, policy_name),
        change(Change::TopicPermissionsSet, topic_permissions),
        change(Change::TopicPermissionsCleared, of_topic),
        change(Change::LimitSet, limit),
        change(Change::LimitCleared, limit_name),
        change(Change::VhostSettingsSet, vhost_settings),
    ]
}

#[test]
fn meta_kinds_are_those_of_the_code() {
    let code: Vec<Vec<String>> = Change::KINDS
        .iter()
        .map(|(name, kind, version, body)| {
            vec![
                kind.to_string(),
                version.to_string(),
                (*name).to_owned(),
                (*body).to_owned(),
            ]
        })
        .collect();
    assert_eq!(table_under("META kinds"), code);
}

#[test]
fn meta_bodies_are_what_the_page_says() {
    let changes = changes();
    assert_eq!(changes.len(), Change::KINDS.len(), "one of every kind");
    for ((change, expected), (name, kind, version, body)) in changes.iter().zip(Change::KINDS) {
        assert_eq!(change.kind_and_version(), (*kind, *version), "{name}");
        assert_eq!(&read_body(body, &change.encode()), expected, "{name}");
    }
}

#[test]
fn snapshot_is_what_the_page_says() {
    let mut state = MetaState::new();
    let mut expected = json!({ "next_queue_id": 0x0102_0305 });
    for (field, at) in [
        ("vhosts", 0),
        ("users", 2),
        ("permissions", 4),
        ("exchanges", 6),
        ("queues", 8),
        ("bindings", 10),
        ("policies", 12),
        ("topic_permissions", 14),
        ("limits", 16),
        ("vhost_settings", 18),
    ] {
        let (change, body) = changes().swap_remove(at);
        state.apply(change);
        expected[field] = json!([body]);
    }
    let envelope = fields_by_size("Snapshot envelope", &state.encode());
    assert_eq!(number(&envelope["kind"]), usize::from(SNAPSHOT_KIND));
    assert_eq!(number(&envelope["version"]), usize::from(SNAPSHOT_VERSION));
    assert_eq!(read_body("SnapshotV2", &envelope["body"]), expected);
    let values = table_under("Snapshot envelope");
    assert!(values[0][2].starts_with(&format!("{SNAPSHOT_KIND}:")));
    assert!(values[1][2].starts_with(&format!("{SNAPSHOT_VERSION}.")));
}
