//! Keeps storage-format.md true: its tables are compared with the code, field by field and in both directions.

use std::collections::BTreeMap;

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
