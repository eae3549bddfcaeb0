//! Field tables: tags as RabbitMQ has them, limits of depth and names, typed look-ups, equivalence.

use super::*;
use proptest::prelude::*;

/// The value, its bytes with the tag, and RabbitMQ's name of its type.
fn one_of_each() -> Vec<(FieldValue, &'static [u8], &'static str)> {
    let inner = FieldTable::new().with("k", true);
    vec![
        (FieldValue::Bool(true), b"t\x01", "bool"),
        (FieldValue::Byte(-2), b"b\xfe", "byte"),
        (FieldValue::UnsignedByte(254), b"B\xfe", "unsignedbyte"),
        (FieldValue::Short(-2), b"s\xff\xfe", "short"),
        (
            FieldValue::UnsignedShort(65_534),
            b"u\xff\xfe",
            "unsignedshort",
        ),
        (FieldValue::SignedInt(-2), b"I\xff\xff\xff\xfe", "signedint"),
        (
            FieldValue::UnsignedInt(4_294_967_294),
            b"i\xff\xff\xff\xfe",
            "unsignedint",
        ),
        (
            FieldValue::Long(-2),
            b"l\xff\xff\xff\xff\xff\xff\xff\xfe",
            "long",
        ),
        (FieldValue::Float(1.0), b"f\x3f\x80\x00\x00", "float"),
        (
            FieldValue::Double(1.0),
            b"d\x3f\xf0\x00\x00\x00\x00\x00\x00",
            "double",
        ),
        (
            FieldValue::Decimal {
                scale: 2,
                value: 4_000_000_000,
            },
            b"D\x02\xee\x6b\x28\x00",
            "decimal",
        ),
        (FieldValue::text("hi"), b"S\x00\x00\x00\x02hi", "longstr"),
        (
            FieldValue::Binary(Bytes::from_static(b"\xff")),
            b"x\x00\x00\x00\x01\xff",
            "binary",
        ),
        (
            FieldValue::Array(vec![FieldValue::Void, FieldValue::Bool(false)]),
            b"A\x00\x00\x00\x03Vt\x00",
            "array",
        ),
        (
            FieldValue::Timestamp(1),
            b"T\x00\x00\x00\x00\x00\x00\x00\x01",
            "timestamp",
        ),
        (
            FieldValue::Table(inner),
            b"F\x00\x00\x00\x04\x01kt\x01",
            "table",
        ),
        (FieldValue::Void, b"V", "void"),
    ]
}

fn table_bytes(entries: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_long(&mut out, entries);
    out.freeze()
}

#[test]
fn every_tag_is_written_and_read_as_rabbitmq_does() {
    for (value, expected, type_name) in one_of_each() {
        let mut out = BytesMut::new();
        value.encode(&mut out);
        assert_eq!(out, expected, "{value:?}");
        assert_eq!(value.type_name(), type_name);
        let bytes = table_bytes(&[b"\x01n", expected].concat());
        let table = FieldTable::decode(&bytes).unwrap();
        assert_eq!(table.get("n"), Some(&value));
        assert_eq!(table.to_bytes(), bytes);
    }
}

#[test]
fn both_tags_of_a_long_are_signed_and_only_one_is_written() {
    let bytes = table_bytes(b"\x01nL\xff\xff\xff\xff\xff\xff\xff\xff");
    let table = FieldTable::decode(&bytes).unwrap();
    assert_eq!(table.get_integer("n"), Some(-1));
    assert_eq!(table.to_bytes()[6], b'l');
}

#[track_caller]
fn check_refused(bytes: impl Into<Bytes>, expected: DecodeError) {
    let bytes = bytes.into();
    assert_eq!(FieldTable::decode(&bytes), Err(expected));
    // The check that allocates nothing finds the same.
    if let Some(entries) = bytes.get(4..).filter(|_| table_bytes(&bytes[4..]) == bytes) {
        assert_eq!(check_table(entries, |_| {}), Err(expected));
    }
}

#[test]
fn malformed_tables_are_refused() {
    check_refused(&b"\x00\x00\x00"[..], DecodeError::Truncated);
    check_refused(&b"\x00\x00\x00\x01"[..], DecodeError::Truncated);
    check_refused(&b"\xff\xff\xff\xff"[..], DecodeError::Truncated);
    check_refused(
        &b"\x00\x00\x00\x00\x00"[..],
        DecodeError::TrailingBytes { count: 1 },
    );
    check_refused(
        table_bytes(b"\x01nU\x00\x01"),
        DecodeError::UnknownTag { tag: b'U' },
    );
    check_refused(
        table_bytes(b"\x01nS\x00\x00\x00\x02a"),
        DecodeError::Truncated,
    );
    check_refused(
        table_bytes(b"\x01nA\x00\x00\x00\x01t"),
        DecodeError::Truncated,
    );
    check_refused(
        table_bytes(b"\x01nf\x7f\x80\x00\x00"),
        DecodeError::NotFinite,
    );
    check_refused(
        table_bytes(b"\x01nd\x7f\xf8\x00\x00\x00\x00\x00\x00"),
        DecodeError::NotFinite,
    );
}

/// `depth` tables or arrays inside one another, inside a table.
fn nested(depth: usize, wrap: fn(FieldValue) -> FieldValue) -> Bytes {
    let value = (0..depth).fold(FieldValue::Void, |inner, _| wrap(inner));
    FieldTable::new().with("n", value).to_bytes()
}

#[test]
fn deep_tables_are_refused_before_they_exhaust_the_stack() {
    let in_table = |inner| FieldValue::Table(FieldTable::new().with("n", inner));
    let in_array = |inner| FieldValue::Array(vec![inner]);
    for wrap in [in_table, in_array] {
        assert!(FieldTable::decode(&nested(MAX_NESTING, wrap)).is_ok());
        check_refused(nested(MAX_NESTING + 1, wrap), DecodeError::TooDeep);
        check_refused(nested(1000, wrap), DecodeError::TooDeep);
    }
}

#[test]
fn the_first_of_equal_names_is_found() {
    let bytes = table_bytes(b"\x01at\x01\x01bV\x01at\x00");
    let mut table = FieldTable::decode(&bytes).unwrap();
    assert_eq!(table.get_bool("a"), Some(true));
    assert_eq!(table.to_bytes(), bytes);
    assert_eq!(table.len(), 3);
    assert_eq!(
        table.canonical().to_bytes(),
        table_bytes(b"\x01at\x01\x01bV")
    );
    assert!(table.remove("a"));
    assert_eq!(table.to_bytes(), table_bytes(b"\x01bV"));
    assert!(!table.remove("a"));
}

#[test]
fn set_keeps_the_place_of_a_present_name() {
    let mut table = FieldTable::new().with("a", 1).with("b", 2);
    table.set("a", "x");
    table.set("c", 3i64);
    assert_eq!(table.get_text("a"), Some("x"));
    let names: Vec<_> = table.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn typed_lookups_answer_only_their_type() {
    let inner = FieldTable::new().with("deep", true);
    let table = FieldTable::new()
        .with("text", "hi")
        .with("flag", true)
        .with("table", inner.clone())
        .with("list", vec![FieldValue::Void])
        .with(
            "broken",
            FieldValue::LongString(Bytes::from_static(b"\xff")),
        );
    assert_eq!(table.get_text("text"), Some("hi"));
    assert_eq!(table.get_text("flag"), None);
    assert_eq!(table.get_text("broken"), None);
    assert_eq!(table.get_integer("text"), None);
    assert_eq!(table.get_table("table"), Some(&inner));
    assert_eq!(table.get_array("list"), Some(&[FieldValue::Void][..]));
    assert_eq!(table.get_bool("missing"), None);
}

#[test]
fn arguments_are_equivalent_by_class_and_value() {
    #[track_caller]
    fn check(left: FieldValue, right: FieldValue, expected: bool) {
        assert_eq!(left.is_equivalent(&right), expected);
        assert_eq!(right.is_equivalent(&left), expected);
    }
    check(FieldValue::Byte(5), FieldValue::Long(5), true);
    check(FieldValue::UnsignedInt(5), FieldValue::SignedInt(5), true);
    check(FieldValue::UnsignedByte(255), FieldValue::Byte(-1), false);
    check(FieldValue::Float(0.5), FieldValue::Double(0.5), true);
    check(FieldValue::Double(1.0), FieldValue::SignedInt(1), false);
    check(FieldValue::text("1"), FieldValue::SignedInt(1), false);
    check(
        FieldValue::text("a"),
        FieldValue::Binary(Bytes::from_static(b"a")),
        false,
    );
    check(FieldValue::Timestamp(5), FieldValue::Long(5), false);
    check(FieldValue::Void, FieldValue::Void, true);
    check(FieldValue::Bool(true), FieldValue::UnsignedByte(1), false);
}

#[test]
fn a_long_name_is_refused_where_it_is_made() {
    let refused = std::panic::catch_unwind(|| FieldTable::new().with(&"n".repeat(256), 1));
    assert!(refused.is_err());
}

fn any_value() -> impl Strategy<Value = FieldValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(FieldValue::Bool),
        any::<i8>().prop_map(FieldValue::Byte),
        any::<i16>().prop_map(FieldValue::Short),
        any::<u16>().prop_map(FieldValue::UnsignedShort),
        any::<u32>().prop_map(FieldValue::UnsignedInt),
        any::<i64>().prop_map(FieldValue::Long),
        proptest::num::f64::NORMAL.prop_map(FieldValue::Double),
        any::<Vec<u8>>().prop_map(|octets| FieldValue::Binary(octets.into())),
        any::<String>().prop_map(|text| FieldValue::text(&text)),
        Just(FieldValue::Void),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(FieldValue::Array),
            any_entries(inner).prop_map(FieldValue::Table),
        ]
    })
}

fn any_entries(value: impl Strategy<Value = FieldValue>) -> impl Strategy<Value = FieldTable> {
    let name = prop::collection::vec(any::<u8>(), 0..8);
    prop::collection::vec((name, value), 0..6).prop_map(|entries| {
        let mut table = FieldTable::new();
        for (name, value) in entries {
            table.push(name.into(), value);
        }
        table
    })
}

proptest! {
    #[test]
    fn any_table_survives_encoding_and_decoding(table in any_entries(any_value())) {
        let bytes = table.to_bytes();
        prop_assert_eq!(FieldTable::decode(&bytes), Ok(table.clone()));
        prop_assert_eq!(FieldTable::decode_bare(&bytes.slice(4..)), Ok(table.clone()));
        for cut in 0..bytes.len() {
            prop_assert!(FieldTable::decode(&bytes.slice(..cut)).is_err());
        }
        for (name, _) in &table {
            let found = find_in_entries(&bytes, &bytes[4..], name);
            prop_assert_eq!(found.as_ref(), table.get_bytes(name));
        }
    }
}
