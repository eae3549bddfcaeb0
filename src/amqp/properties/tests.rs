//! Properties: found, edited, forwarded as they came; malformed ones are refused.

use super::*;

fn short(text: &'static str) -> Option<ShortString> {
    Some(ShortString::from_static(text))
}

fn full() -> PropertiesBuilder {
    let mut builder = PropertiesBuilder::new();
    builder
        .set_content_type(short("text/plain"))
        .set_content_encoding(short("gzip"))
        .set_header("x", 1)
        .set_delivery_mode(Some(2))
        .set_priority(Some(9))
        .set_correlation_id(short("corr"))
        .set_reply_to(short("answers"))
        .set_expiration(short("60000"))
        .set_message_id(short("m-1"))
        .set_timestamp(Some(0))
        .set_message_type(short("order"))
        .set_user_id(short("guest"))
        .set_app_id(short("shop"))
        .set_cluster_id(short("c"));
    builder
}

#[test]
fn all_properties_are_found_where_they_were_put() {
    let properties = full().build();
    let again = Properties::decode(properties.raw().clone()).unwrap();
    assert_eq!(again.content_type(), Some(&b"text/plain"[..]));
    assert_eq!(again.content_encoding(), Some(&b"gzip"[..]));
    assert_eq!(again.headers(), Some(FieldTable::new().with("x", 1)));
    assert_eq!(again.delivery_mode(), Some(2));
    assert_eq!(again.priority(), Some(9));
    assert_eq!(again.correlation_id(), Some(&b"corr"[..]));
    assert_eq!(again.reply_to(), Some(&b"answers"[..]));
    assert_eq!(again.expiration(), Some(&b"60000"[..]));
    assert_eq!(again.message_id(), Some(&b"m-1"[..]));
    assert_eq!(again.timestamp(), Some(0));
    assert_eq!(again.message_type(), Some(&b"order"[..]));
    assert_eq!(again.user_id(), Some(&b"guest"[..]));
    assert_eq!(again.app_id(), Some(&b"shop"[..]));
    assert_eq!(again.cluster_id(), Some(&b"c"[..]));
    assert_eq!(again.detached(), again);
    assert_eq!(again.edit(), full());
}

#[test]
fn a_foreign_codec_reads_and_writes_the_same_bytes() {
    use lapin::protocol::basic::{gen_properties, parse_properties};
    use std::io::Cursor;

    for properties in [full().build(), Properties::default()] {
        let ours = properties.raw();
        let (rest, foreign) = parse_properties(&ours[..]).expect("properties lapin knows");
        assert!(rest.is_empty());
        let mut theirs = vec![0; ours.len()];
        gen_properties(&foreign)(Cursor::new(&mut theirs[..]).into()).unwrap();
        assert_eq!(ours, &theirs);
    }
}

#[test]
fn absent_properties_stay_absent() {
    let properties = Properties::decode(Bytes::from_static(b"\x00\x00")).unwrap();
    assert_eq!(properties, Properties::default());
    assert_eq!(properties, PropertiesBuilder::new().build());
    assert_eq!(properties.edit(), PropertiesBuilder::new());
    assert_eq!(properties.headers(), None);
    assert_eq!(properties.expiration(), None);
    assert_eq!(properties.timestamp(), None);
    assert!(!properties.is_persistent());
}

#[test]
fn an_empty_header_table_stays_present() {
    let raw = Bytes::from_static(b"\x20\x00\x00\x00\x00\x00");
    let properties = Properties::decode(raw.clone()).unwrap();
    assert_eq!(properties.headers(), Some(FieldTable::new()));
    assert_eq!(properties.edit().build().raw(), &raw);
}

#[test]
fn only_delivery_mode_2_is_persistent_and_others_are_kept() {
    let mut builder = PropertiesBuilder::new();
    assert!(builder.set_delivery_mode(Some(2)).build().is_persistent());
    let odd = builder.set_delivery_mode(Some(5)).build();
    assert!(!odd.is_persistent());
    assert_eq!(odd.delivery_mode(), Some(5));
}

#[test]
fn short_strings_need_not_be_utf8() {
    let properties = Properties::decode(Bytes::from_static(b"\x00\x10\x01\xff")).unwrap();
    assert_eq!(properties.user_id(), Some(&b"\xff"[..]));
}

#[test]
fn malformed_properties_are_refused() {
    #[track_caller]
    fn check(raw: &'static [u8], expected: DecodeError) {
        let refused = Properties::decode(Bytes::from_static(raw)).expect_err("bad properties");
        assert_eq!(refused, expected);
    }
    check(b"", DecodeError::Truncated);
    check(b"\x00", DecodeError::Truncated);
    check(b"\x00\x00\x00", DecodeError::TrailingBytes { count: 1 });
    check(b"\x10\x00", DecodeError::Truncated);
    check(b"\x00\x40\x00\x00\x00\x00", DecodeError::Truncated);
    check(b"\x80\x00\x02a", DecodeError::Truncated);
    check(b"\x00\x01", DecodeError::PropertyFlags { flags: 1 });
    check(b"\x00\x02", DecodeError::PropertyFlags { flags: 2 });
    let unknown = DecodeError::UnknownTag { tag: b'z' };
    check(b"\x20\x00\x00\x00\x00\x03\x01nz", unknown);
}

#[test]
fn cut_properties_are_refused() {
    let whole = full().build();
    for cut in 0..whole.raw().len() {
        assert!(
            Properties::decode(whole.raw().slice(..cut)).is_err(),
            "{cut}"
        );
    }
}

#[test]
fn cc_and_bcc_are_noticed_at_the_top_level_only() {
    #[track_caller]
    fn check(headers: FieldTable, expected: (bool, bool)) {
        let properties = PropertiesBuilder::new().set_headers(Some(headers)).build();
        assert_eq!((properties.has_cc(), properties.has_bcc()), expected);
    }
    check(FieldTable::new().with("CC", 1), (true, false));
    check(FieldTable::new().with("x", 1).with("BCC", 1), (false, true));
    check(
        FieldTable::new().with("cc", 1).with("Bcc", 1),
        (false, false),
    );
    let inner = FieldTable::new().with("CC", 1).with("BCC", 1);
    check(FieldTable::new().with("t", inner), (false, false));
}

#[test]
fn bcc_is_removed_and_nothing_else() {
    let mut builder = full();
    let plain = builder.build();
    let with_bcc = builder
        .set_header("BCC", vec![FieldValue::text("k")])
        .build();
    assert!(with_bcc.has_bcc());
    assert_eq!(with_bcc.without_bcc(), plain);
    assert_eq!(plain.without_bcc(), plain);
}

#[test]
fn properties_can_be_edited() {
    let mut builder = full();
    builder
        .set_expiration(None)
        .set_reply_to(short("elsewhere"))
        .set_header("x", "new")
        .set_header("y", true)
        .remove_header("missing");
    let edited = builder.build();
    assert_eq!(edited.expiration(), None);
    assert_eq!(edited.reply_to(), Some(&b"elsewhere"[..]));
    assert_eq!(edited.header("x"), Some(FieldValue::text("new")));
    assert_eq!(edited.header("y"), Some(FieldValue::Bool(true)));
    assert_eq!(edited.header("z"), None);
    assert_eq!(edited.user_id(), Some(&b"guest"[..]));
}
