//! Records and batches as bytes: round trips, and any bytes at all.

use bytes::Bytes;
use proptest::prelude::*;

use crate::storage::batch::{Batch, BatchBody, BatchHeader, Invalid};
use crate::storage::format::{Seed, StoreId, batch_header, record_header};
use crate::storage::record::{self, Entry, Record};
use crate::storage::types::{
    Lsn, MetaEffect, Payload, QueueId, Ref, Request, SegmentId, Seq, SeqRange, SettleCause,
};

const BASE: Lsn = Lsn::new(SegmentId(5), 4096);

fn seed() -> Seed {
    Seed::new(StoreId([3; 16]), SegmentId(5), 2)
}

/// A whole batch of these requests, as it is written.
fn batch_of(requests: &[Request<'_>]) -> (BatchHeader, Vec<u8>) {
    let mut body = BatchBody::new(BASE);
    body.push(&Entry::Open {
        predecessor_end: Lsn::new(SegmentId(4), 9000),
        epoch: 2,
    });
    for request in requests {
        body.push(&Entry::Request(request));
    }
    body.push(&Entry::Mark);
    let mut header = BatchHeader {
        len_bytes: u32::try_from(body.len_bytes).unwrap(),
        record_count: body.record_count,
        lsn: BASE,
        epoch: 2,
        synced: Lsn::new(SegmentId(4), 9000),
        previous_crc: 77,
        records_crc: body.records_crc(seed()),
        crc: 0,
    };
    let mut bytes = header.encode(seed()).to_vec();
    body.pieces()
        .for_each(|piece| bytes.extend_from_slice(piece));
    assert_eq!(bytes.len() as u64, body.len_bytes);
    (header, bytes)
}

#[test]
fn header_written_in_words_has_its_fields_where_they_belong() {
    use record_header as at;
    let header = record::Header {
        len_bytes: 0x0403_0201,
        kind: 5,
        flags: 6,
        argument: 7,
        body_len: 0x0c0b_0a09,
        payload_crc: 0x100f_0e0d,
        count: 0x1413_1211,
        lsn_low: 0x1817_1615,
        subject: 0x201f_1e1d_1c1b_1a19,
    };
    let mut expected = [0; at::SIZE];
    at::LEN.put(&mut expected, header.len_bytes);
    at::TYPE.put(&mut expected, header.kind);
    at::FLAGS.put(&mut expected, header.flags);
    at::ARGUMENT.put(&mut expected, header.argument);
    at::BODY_LEN.put(&mut expected, header.body_len);
    at::PAYLOAD_CRC.put(&mut expected, header.payload_crc);
    at::COUNT.put(&mut expected, header.count);
    at::LSN_LOW.put(&mut expected, header.lsn_low);
    at::SUBJECT.put(&mut expected, header.subject);
    assert_eq!(header.encode(), expected);
    assert_eq!(record::Header::decode(&expected), header);
}

fn read(bytes: &[u8]) -> Result<Batch<'_>, Invalid> {
    let header = bytes.first_chunk().ok_or(Invalid::Absent)?;
    let header = BatchHeader::decode(header, BASE, 2, seed())?;
    let len = header.len_bytes as usize;
    Batch::verify(
        header,
        bytes.get(..len).ok_or(Invalid::Truncated(len as u64))?,
        seed(),
    )
}

#[track_caller]
fn check(record: &Record<'_>, request: &Request<'_>) {
    match (*record, *request) {
        (
            Record::Publish(found),
            Request::Publish {
                refs,
                priority,
                time_ms,
                payload,
                payload_crc,
            },
        ) => {
            assert!(found.refs.iter().eq(refs.iter().copied()));
            assert_eq!(found.refs.count(), refs.len());
            assert_eq!(
                (found.priority, found.time_ms, found.payload_crc),
                (priority, time_ms, payload_crc)
            );
            assert_eq!(found.payload, payload.concat());
        }
        (
            Record::Settle {
                queue,
                cause,
                ranges,
            },
            Request::Settle {
                queue: q,
                cause: c,
                ranges: r,
            },
        ) => {
            assert_eq!((queue, cause), (q, c));
            assert!(ranges.iter().eq(r.iter().copied()));
        }
        (
            Record::Requeue {
                queue,
                seq,
                delivery_count,
            },
            Request::Requeue {
                queue: q,
                seq: s,
                delivery_count: d,
            },
        ) => {
            assert_eq!((queue, seq, delivery_count), (q, s, d));
        }
        (Record::Reserve { queue, upto }, Request::Reserve { queue: q, upto: u }) => {
            assert_eq!((queue, upto), (q, u));
        }
        (
            Record::Meta {
                kind,
                version,
                effect,
                body,
            },
            Request::Meta {
                kind: k,
                version: v,
                effect: e,
                body: b,
            },
        ) => {
            assert_eq!((kind, version, effect, body), (k, v, e, b));
        }
        (found, wanted) => panic!("{found:?} is not {wanted:?}"),
    }
}

fn check_round_trip(requests: &[Request<'_>]) {
    let (header, bytes) = batch_of(requests);
    let batch = read(&bytes).expect("the batch is whole");
    assert_eq!(batch.header, header);
    let records: Vec<_> = batch.records().map(|(_, record)| record).collect();
    assert_eq!(records.len(), requests.len() + 2);
    assert_eq!(
        records.first(),
        Some(&Record::Open {
            predecessor_end: Lsn::new(SegmentId(4), 9000),
            epoch: 2
        })
    );
    assert_eq!(records.last(), Some(&Record::Mark));
    for (record, request) in records[1..].iter().zip(requests) {
        check(record, request);
    }
    for (position, record) in batch.records() {
        let start = usize::try_from(position.lsn.0 - BASE.0).unwrap();
        let alone = &bytes[start..start + position.len_bytes as usize];
        assert_eq!(
            record::decode(alone, position.lsn),
            Ok(record),
            "a record reads alone as in its batch"
        );
    }
}

#[test]
fn every_kind_of_record_round_trips() {
    let narrow = [Ref {
        queue: QueueId(1),
        seq: Seq(2),
        expires_at_ms: 0,
    }];
    let wide = [
        Ref {
            queue: QueueId(1),
            seq: Seq(2),
            expires_at_ms: 0,
        },
        Ref {
            queue: QueueId(u64::MAX),
            seq: Seq(u64::MAX),
            expires_at_ms: u64::MAX,
        },
    ];
    let ranges = [
        SeqRange {
            first: Seq(1),
            last: Seq(1),
        },
        SeqRange {
            first: Seq(5),
            last: Seq(u64::MAX),
        },
    ];
    let queue = QueueId(9);
    let mut requests = Vec::new();
    let payloads: Vec<Vec<Bytes>> = [
        vec![],
        vec![0],
        vec![1],
        vec![8],
        vec![4096],
        vec![4097],
        vec![3, 5000, 0, 9, 4097],
    ]
    .into_iter()
    .map(|lens: Vec<usize>| {
        lens.into_iter()
            .map(|len| Bytes::from(vec![7; len]))
            .collect()
    })
    .collect();
    for payload in &payloads {
        for refs in [&narrow[..], &wide[..]] {
            let payload_crc = crc32fast::hash(&payload.concat());
            requests.push(Request::Publish {
                refs,
                priority: 200,
                time_ms: u64::MAX,
                payload: (&payload[..]).into(),
                payload_crc,
            });
        }
    }
    for cause in [
        SettleCause::Acked,
        SettleCause::Expired,
        SettleCause::MaxLength,
        SettleCause::Purged,
        SettleCause::Rejected,
        SettleCause::DeadLettered,
    ] {
        requests.push(Request::Settle {
            queue,
            cause,
            ranges: &ranges,
        });
    }
    requests.push(Request::Settle {
        queue,
        cause: SettleCause::Acked,
        ranges: &[],
    });
    requests.push(Request::Requeue {
        queue,
        seq: Seq(4),
        delivery_count: u32::MAX,
    });
    requests.push(Request::Reserve {
        queue,
        upto: Seq(u64::MAX),
    });
    for effect in [
        MetaEffect::None,
        MetaEffect::QueueCreated(queue),
        MetaEffect::QueueDeleted(queue),
    ] {
        requests.push(Request::Meta {
            kind: u16::MAX,
            version: 3,
            effect,
            body: b"",
        });
        requests.push(Request::Meta {
            kind: 0,
            version: 0,
            effect,
            body: b"topology",
        });
    }
    check_round_trip(&requests);
}

#[test]
fn batch_takes_no_more_than_254_parts_by_reference() {
    let payload: Vec<Bytes> = (0..400u16)
        .map(|number| Bytes::from(vec![number.to_le_bytes()[0]; 4100]))
        .collect();
    let payload_crc = crc32fast::hash(&payload.concat());
    let refs = [Ref {
        queue: QueueId(1),
        seq: Seq(1),
        expires_at_ms: 0,
    }];
    let request = Request::Publish {
        refs: &refs,
        priority: 0,
        time_ms: 0,
        payload: (&payload[..]).into(),
        payload_crc,
    };
    let mut body = BatchBody::new(BASE);
    body.push(&Entry::Request(&request));
    assert!(body.pieces().count() <= 510);
    check_round_trip(&[request]);
}

#[test]
fn the_pieces_of_a_payload_do_not_show_in_a_batch() {
    let refs = [Ref {
        queue: QueueId(1),
        seq: Seq(1),
        expires_at_ms: 0,
    }];
    for len in [0, 1, 8, 4096, 4097, 9000] {
        let whole: Bytes = (0..=u8::MAX).cycle().take(len).collect();
        let front_len = len.min(62);
        let parts = [whole.slice(front_len..)];
        let payloads = [
            Payload::from(&whole),
            Payload {
                front: &whole[..front_len],
                parts: &parts,
            },
            Payload {
                front: &whole,
                parts: &[],
            },
        ];
        let batches = payloads.map(|payload| {
            assert_eq!((payload.len(), payload.concat()), (len, whole.to_vec()));
            let request = Request::Publish {
                refs: &refs,
                priority: 0,
                time_ms: 0,
                payload,
                payload_crc: crc32fast::hash(&whole),
            };
            check_round_trip(&[request]);
            batch_of(&[request]).1
        });
        assert!(batches.iter().all(|batch| *batch == batches[0]));
    }
}

#[test]
fn any_flipped_bit_makes_a_batch_invalid() {
    let refs = [Ref {
        queue: QueueId(1),
        seq: Seq(2),
        expires_at_ms: 5,
    }];
    let payload = [Bytes::from_static(b"payload")];
    let payload_crc = crc32fast::hash(b"payload");
    let ranges = [SeqRange {
        first: Seq(1),
        last: Seq(2),
    }];
    let (_, bytes) = batch_of(&[
        Request::Publish {
            refs: &refs,
            priority: 1,
            time_ms: 2,
            payload: (&payload[..]).into(),
            payload_crc,
        },
        Request::Settle {
            queue: QueueId(1),
            cause: SettleCause::Acked,
            ranges: &ranges,
        },
        Request::Meta {
            kind: 1,
            version: 1,
            effect: MetaEffect::None,
            body: b"abc",
        },
    ]);
    for offset in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[offset] ^= 1 << bit;
            assert!(
                read(&flipped).is_err(),
                "flip at {offset}.{bit} of {}",
                bytes.len()
            );
        }
    }
}

#[test]
fn bytes_of_another_place_store_or_incarnation_are_no_batch() {
    let (_, bytes) = batch_of(&[]);
    let header: &[u8; batch_header::SIZE] = bytes.first_chunk().unwrap();
    assert!(BatchHeader::decode(header, BASE, 2, seed()).is_ok());
    assert!(BatchHeader::decode(header, Lsn(BASE.0 + 8), 2, seed()).is_err());
    for (store, segment, epoch) in [(4, 5, 2), (3, 6, 2), (3, 5, 1)] {
        let other = Seed::new(StoreId([store; 16]), SegmentId(segment), epoch);
        assert!(BatchHeader::decode(header, BASE, 2, other).is_err());
    }
}

proptest! {
    #[test]
    fn decoding_any_bytes_neither_panics_nor_reads_beyond(bytes in prop::collection::vec(any::<u8>(), 0..300), len in 0u32..40) {
        let mut bytes = bytes;
        let _ = record::decode(&bytes, BASE);
        if bytes.len() >= record_header::SIZE {
            record_header::LEN.put(&mut bytes, len * 8);
            bytes[4] = u8::try_from(len % 9).unwrap();
            record_header::LSN_LOW.put(&mut bytes, record::lsn_low(BASE));
            bytes[7] = 0;
            if let Ok((record, _)) = record::split(&bytes) {
                let _ = record::decode(record, BASE);
            }
        }
        let _ = read(&bytes);
    }
}
