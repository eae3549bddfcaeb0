//! Fuzz targets as plain functions for the bytes the domain keeps in the log: any bytes may be given, none may
//! panic. For a long run: `STRATAMQ_FUZZ_CASES=1000000 cargo test --lib broker::fuzz`.

use bytes::Bytes;

use super::message::Message;
use super::meta::{Change, MetaState};

/// The payload of a PUBLISH record: what is decoded has properties and a body that can be looked at.
pub fn fuzz_payload(data: &[u8]) {
    if let Ok(message) = Message::decode_payload(Bytes::copy_from_slice(data)) {
        let _ = message.properties().headers();
        let _ = (message.body_len(), message.size_bytes(), message.ttl_ms());
    }
}

/// The body of a META record; the first two bytes choose its kind.
pub fn fuzz_meta(data: &[u8]) {
    let Some((kind, body)) = data.split_first_chunk::<2>() else {
        return;
    };
    let mut state = MetaState::new();
    if let Ok(change) = Change::decode(u16::from_le_bytes(*kind) % 16, 1, body) {
        assert_eq!(change.encode(), body, "what decodes is what was encoded");
        state.apply(change);
    }
}

/// The META snapshot of a checkpoint.
pub fn fuzz_snapshot(data: &[u8]) {
    let _ = MetaState::decode(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cases() -> u32 {
        std::env::var("STRATAMQ_FUZZ_CASES").map_or(2000, |text| text.parse().expect("a number"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(cases()))]

        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_payload(&data);
            fuzz_meta(&data);
            fuzz_snapshot(&data);
        }

        #[test]
        fn small_numbers_look_like_lengths(data in proptest::collection::vec(0u8..9, 0..200)) {
            fuzz_payload(&data);
            fuzz_meta(&data);
            fuzz_snapshot(&data);
        }
    }
}
