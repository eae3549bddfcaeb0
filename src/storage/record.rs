//! Records: one event each, from a [`Request`] to bytes and back.
//!
//! ```text
//! PUBLISH  | header | ref .. | payload | zeros |      the batch's CRC covers header and refs,
//! others   | header | fixed part | body | zeros |     or all of it when there is no payload
//! ```
//! A payload is checked by its own CRC, which stands in the header: so its bytes are hashed once, by the
//! thread that published it, and a single record can be verified when it is read alone.

use super::format::{
    Field, align_up, is_crc_right, meta_effect, meta_prefix, narrow_ref, range, record_flag,
    record_header, record_type, single, wide_ref,
};
use super::types::{Lsn, MetaEffect, QueueId, Ref, Request, Seq, SeqRange, SettleCause};

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The length is too short, not a multiple of 8, or beyond the end of what holds the record.
    #[error("record length {0} does not fit")]
    Length(u64),
    /// It says that it belongs to another place.
    #[error("record belongs to place ..{found:08x}, not ..{expected:08x}")]
    Place {
        /// Low bits of where it was read.
        expected: u32,
        /// What it says.
        found: u32,
    },
    /// A field has a value that no writer of this version produces.
    #[error("record field `{0}` is invalid")]
    Field(&'static str),
    /// A kind of record this version does not know.
    #[error("record type {0} is unknown")]
    UnknownType(u8),
    /// The payload does not match its CRC.
    #[error("payload crc is {computed:08x}, expected {stored:08x}")]
    PayloadCrc {
        /// In the header.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
}

/// The fixed head of every record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) len_bytes: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) argument: u8,
    pub(crate) body_len: u32,
    pub(crate) payload_crc: u32,
    pub(crate) count: u32,
    pub(crate) lsn_low: u32,
    pub(crate) subject: u64,
}

impl Header {
    /// Word by word, which is a fifth of the cost of field by field; a test compares the two.
    #[inline]
    pub(crate) fn encode(self) -> [u8; record_header::SIZE] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let kind = u32::from_le_bytes([self.kind, self.flags, self.argument, 0]);
        let words = [
            pair(self.len_bytes, kind),
            pair(self.body_len, self.payload_crc),
            pair(self.count, self.lsn_low),
            self.subject,
        ];
        let mut bytes = [0; record_header::SIZE];
        for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }

    /// Word by word, as it is encoded.
    #[inline]
    pub(crate) fn decode(bytes: &[u8; record_header::SIZE]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word));
        let [kind, flags, argument, _reserved] = word(1).to_le_bytes();
        Self {
            len_bytes: word(0),
            kind,
            flags,
            argument,
            body_len: word(2),
            payload_crc: word(3),
            count: word(4),
            lsn_low: word(5),
            subject: u64::from(word(6)) | u64::from(word(7)) << 32,
        }
    }

    /// Bytes that the batch's CRC covers, given that the record is `len_bytes` long.
    fn covered_bytes(&self) -> u64 {
        if self.kind != record_type::PUBLISH {
            return u64::from(self.len_bytes);
        }
        record_header::SIZE as u64 + u64::from(self.count) * ref_size(self.flags) as u64
    }
}

fn ref_size(flags: u8) -> usize {
    if flags & record_flag::WIDE_REFS == 0 {
        narrow_ref::SIZE
    } else {
        wide_ref::SIZE
    }
}

/// The low bits of an LSN, as kept in a record.
#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
pub(crate) fn lsn_low(lsn: Lsn) -> u32 {
    lsn.0 as u32
}

/// What is written: a request, or one of the engine's own records.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry<'a> {
    Request(&'a Request<'a>),
    Open { predecessor_end: Lsn, epoch: u64 },
    Mark,
}

impl Entry<'_> {
    /// Length of the record in bytes, header and padding included.
    pub(crate) fn len_bytes(&self) -> u64 {
        align_up(self.head_len() + self.payload_len())
    }

    /// Bytes of payload that follow the head.
    pub(crate) fn payload_len(&self) -> u64 {
        match self {
            Self::Request(Request::Publish { payload, .. }) => payload.len() as u64,
            _ => 0,
        }
    }

    /// Bytes before the payload; without a payload the record but for its padding.
    fn head_len(&self) -> u64 {
        let behind_header = match self {
            Self::Request(Request::Publish { refs, .. }) => {
                refs.len() * ref_size(Self::publish_flags(refs))
            }
            Self::Request(Request::Settle { ranges, .. }) => ranges.len() * range::SIZE,
            Self::Request(Request::Requeue { .. } | Request::Reserve { .. })
            | Self::Open { .. } => single::SIZE,
            Self::Request(Request::Meta { body, .. }) => meta_prefix::SIZE + body.len(),
            Self::Mark => 0,
        };
        (record_header::SIZE + behind_header) as u64
    }

    fn publish_flags(refs: &[Ref]) -> u8 {
        let is_wide = refs.iter().any(|r| r.expires_at_ms != 0);
        if is_wide { record_flag::WIDE_REFS } else { 0 }
    }

    /// Appends everything but payload and the padding behind it. Without a payload that is the whole record, `len_bytes`
    /// ([`Entry::len_bytes`]) long.
    ///
    /// # Panics
    /// When a count does not fit 32 bits: the group limit keeps records far below.
    pub(crate) fn encode_head(&self, lsn: Lsn, len_bytes: u64, out: &mut Vec<u8>) {
        debug_assert_eq!(len_bytes, self.len_bytes());
        let fits = |value: u64| u32::try_from(value).expect("a record is shorter than a segment");
        let mut header = Header {
            len_bytes: fits(len_bytes),
            lsn_low: lsn_low(lsn),
            ..Header::default()
        };
        match *self {
            Self::Request(Request::Publish {
                refs,
                priority,
                time_ms,
                payload_crc,
                ..
            }) => {
                header.kind = record_type::PUBLISH;
                header.flags = Self::publish_flags(refs);
                header.argument = *priority;
                header.body_len = fits(self.payload_len());
                header.payload_crc = *payload_crc;
                header.count = fits(refs.len() as u64);
                header.subject = *time_ms;
                out.extend_from_slice(&header.encode());
                encode_refs(refs, header.flags, out);
            }
            Self::Request(Request::Settle {
                queue,
                cause,
                ranges,
            }) => {
                header.kind = record_type::SETTLE;
                header.argument = *cause as u8;
                header.count = fits(ranges.len() as u64);
                header.subject = queue.0;
                out.extend_from_slice(&header.encode());
                for run in *ranges {
                    out.extend_from_slice(&run.first.0.to_le_bytes());
                    out.extend_from_slice(&run.last.0.to_le_bytes());
                }
            }
            Self::Request(Request::Requeue {
                queue,
                seq,
                delivery_count,
            }) => {
                header.kind = record_type::REQUEUE;
                header.count = *delivery_count;
                header.subject = queue.0;
                out.extend_from_slice(&header.encode());
                out.extend_from_slice(&seq.0.to_le_bytes());
            }
            Self::Request(Request::Reserve { queue, upto }) => {
                header.kind = record_type::RESERVE;
                header.subject = queue.0;
                out.extend_from_slice(&header.encode());
                out.extend_from_slice(&upto.0.to_le_bytes());
            }
            Self::Request(Request::Meta {
                kind,
                version,
                effect,
                body,
            }) => {
                header.kind = record_type::META;
                header.body_len = fits(body.len() as u64);
                (header.argument, header.subject) = encode_effect(*effect);
                out.extend_from_slice(&header.encode());
                let mut prefix = [0; meta_prefix::SIZE];
                meta_prefix::KIND.put(&mut prefix, *kind);
                meta_prefix::VERSION.put(&mut prefix, *version);
                out.extend_from_slice(&prefix);
                out.extend_from_slice(body);
                out.resize(out.len() + padding_len(body.len()), 0);
            }
            Self::Open {
                predecessor_end,
                epoch,
            } => {
                header.kind = record_type::OPEN;
                header.subject = predecessor_end.0;
                out.extend_from_slice(&header.encode());
                out.extend_from_slice(&epoch.to_le_bytes());
            }
            Self::Mark => {
                header.kind = record_type::MARK;
                out.extend_from_slice(&header.encode());
            }
        }
    }
}

/// Zeros behind `len` bytes up to the next multiple of 8.
pub(crate) fn padding_len(len: usize) -> usize {
    len.next_multiple_of(8) - len
}

fn encode_refs(refs: &[Ref], flags: u8, out: &mut Vec<u8>) {
    let is_wide = flags & record_flag::WIDE_REFS != 0;
    for r in refs {
        out.extend_from_slice(&r.queue.0.to_le_bytes());
        out.extend_from_slice(&r.seq.0.to_le_bytes());
        if is_wide {
            out.extend_from_slice(&r.expires_at_ms.to_le_bytes());
        }
    }
}

fn encode_effect(effect: MetaEffect) -> (u8, u64) {
    match effect {
        MetaEffect::None => (meta_effect::NONE, 0),
        MetaEffect::QueueCreated(queue) => (meta_effect::QUEUE_CREATED, queue.0),
        MetaEffect::QueueDeleted(queue) => (meta_effect::QUEUE_DELETED, queue.0),
    }
}

/// A record as it was read; borrows the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A message.
    Publish(Publish<'a>),
    /// Messages that left a queue.
    Settle {
        /// The queue.
        queue: QueueId,
        /// Why.
        cause: SettleCause,
        /// Which.
        ranges: Ranges<'a>,
    },
    /// A message that went back to its place.
    Requeue {
        /// The queue.
        queue: QueueId,
        /// The message.
        seq: Seq,
        /// Failed deliveries so far.
        delivery_count: u32,
    },
    /// A delivery reservation.
    Reserve {
        /// The queue.
        queue: QueueId,
        /// First seq not covered.
        upto: Seq,
    },
    /// A change of topology or users.
    Meta {
        /// The owner's number of the kind.
        kind: u16,
        /// Version of the kind's encoding.
        version: u16,
        /// Effect on queues.
        effect: MetaEffect,
        /// The encoded change.
        body: &'a [u8],
    },
    /// First record of a segment.
    Open {
        /// End of the log before it; `Lsn(0)` for the first segment of a store.
        predecessor_end: Lsn,
        /// Incarnation.
        epoch: u64,
    },
    /// Nothing; see the batch header.
    Mark,
}

/// A PUBLISH record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Target queues.
    pub refs: Refs<'a>,
    /// Priority level.
    pub priority: u8,
    /// Unix milliseconds of its publishing.
    pub time_ms: u64,
    /// The payload.
    pub payload: &'a [u8],
    /// Its plain CRC, checked.
    pub payload_crc: u32,
}

/// The refs of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refs<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl<'a> Refs<'a> {
    /// All refs in the order of the record.
    pub fn iter(self) -> impl Iterator<Item = Ref> + 'a {
        self.bytes.chunks_exact(self.size).map(|bytes| Ref {
            queue: QueueId(wide_ref::QUEUE.get(bytes)),
            seq: Seq(wide_ref::SEQ.get(bytes)),
            expires_at_ms: match bytes.len() {
                wide_ref::SIZE => wide_ref::EXPIRES_AT.get(bytes),
                _ => 0,
            },
        })
    }
    /// Number of refs.
    #[must_use]
    pub fn count(self) -> usize {
        self.bytes.len() / self.size
    }
}

/// The ranges of a SETTLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges<'a> {
    bytes: &'a [u8],
}

impl<'a> Ranges<'a> {
    /// All ranges in the order of the record.
    pub fn iter(self) -> impl Iterator<Item = SeqRange> + 'a {
        self.bytes.chunks_exact(range::SIZE).map(|bytes| SeqRange {
            first: Seq(range::FIRST.get(bytes)),
            last: Seq(range::LAST.get(bytes)),
        })
    }
}

/// Splits the record at the start of `bytes` off: its whole bytes, and how many of them the batch's CRC covers.
pub(crate) fn split(bytes: &[u8]) -> Result<(&[u8], usize), RecordError> {
    let remaining = bytes.len() as u64;
    let (head, _) = bytes
        .split_first_chunk()
        .ok_or(RecordError::Length(remaining))?;
    let header = Header::decode(head);
    let len = u64::from(header.len_bytes);
    let covered = header.covered_bytes();
    let is_sound = len >= record_header::SIZE as u64
        && len.is_multiple_of(8)
        && len <= remaining
        && covered <= len;
    let sizes = usize::try_from(len).ok().zip(usize::try_from(covered).ok());
    match sizes {
        Some((len, covered)) if is_sound => bytes
            .get(..len)
            .map(|record| (record, covered))
            .ok_or(RecordError::Length(remaining)),
        _ => Err(RecordError::Length(len)),
    }
}

/// Decodes one whole record, as split off, that was read at `lsn`; checks the payload's CRC.
pub fn decode(record: &[u8], lsn: Lsn) -> Result<Record<'_>, RecordError> {
    let decoded = decode_unchecked(record, lsn)?;
    if let Record::Publish(publish) = &decoded {
        let padding = record.len() - padding_len(publish.payload.len());
        check_padding(record.get(padding..).unwrap_or_default())?;
        let (stored, computed) = (publish.payload_crc, crc32fast::hash(publish.payload));
        if !is_crc_right(stored, computed) {
            return Err(RecordError::PayloadCrc { stored, computed });
        }
    }
    Ok(decoded)
}

/// As [`decode`], for a record whose payload is known to be right, or of which only the rest matters: what the
/// batch's CRC does not cover, the payload and the padding behind it, is not looked at.
pub(crate) fn decode_unchecked(record: &[u8], lsn: Lsn) -> Result<Record<'_>, RecordError> {
    let too_short = || RecordError::Length(record.len() as u64);
    let (head, rest) = record.split_first_chunk().ok_or_else(too_short)?;
    let header = Header::decode(head);
    if header.len_bytes as usize != record.len() {
        return Err(RecordError::Length(u64::from(header.len_bytes)));
    }
    if header.lsn_low != lsn_low(lsn) {
        return Err(RecordError::Place {
            expected: lsn_low(lsn),
            found: header.lsn_low,
        });
    }
    if !(record_type::PUBLISH..=record_type::MARK).contains(&header.kind) {
        return Err(RecordError::UnknownType(header.kind));
    }
    check_unused(head, &header)?;
    decode_body(&header, rest)
}

/// Checks that fields a kind does not use are zero, so that every bit of a record has one meaning.
fn check_unused(head: &[u8; record_header::SIZE], header: &Header) -> Result<(), RecordError> {
    use record_type::{MARK, META, PUBLISH, REQUEUE, SETTLE};
    let check = |is_right: bool, name| {
        if is_right {
            Ok(())
        } else {
            Err(RecordError::Field(name))
        }
    };
    let kind = header.kind;
    check(record_header::RESERVED.get(head) == 0, "reserved")?;
    let flags_known = if kind == PUBLISH {
        record_flag::KNOWN
    } else {
        0
    };
    check(header.flags & !flags_known == 0, "flags")?;
    check(
        header.argument == 0 || matches!(kind, PUBLISH | SETTLE | META),
        "argument",
    )?;
    check(
        header.body_len == 0 || matches!(kind, PUBLISH | META),
        "body length",
    )?;
    check(header.payload_crc == 0 || kind == PUBLISH, "payload crc")?;
    check(
        header.count == 0 || matches!(kind, PUBLISH | SETTLE | REQUEUE),
        "count",
    )?;
    check(header.subject == 0 || kind != MARK, "subject")
}

fn decode_body<'a>(header: &Header, rest: &'a [u8]) -> Result<Record<'a>, RecordError> {
    let queue = QueueId(header.subject);
    Ok(match header.kind {
        record_type::PUBLISH => Record::Publish(decode_publish(header, rest)?),
        record_type::SETTLE => Record::Settle {
            queue,
            cause: decode_cause(header.argument)?,
            ranges: decode_ranges(header.count, rest)?,
        },
        record_type::REQUEUE => Record::Requeue {
            queue,
            seq: Seq(decode_single(rest)?),
            delivery_count: header.count,
        },
        record_type::RESERVE => Record::Reserve {
            queue,
            upto: Seq(decode_single(rest)?),
        },
        record_type::META => decode_meta(header, rest)?,
        record_type::OPEN => Record::Open {
            predecessor_end: Lsn(header.subject),
            epoch: decode_single(rest)?,
        },
        record_type::MARK if rest.is_empty() => Record::Mark,
        record_type::MARK => return Err(RecordError::Length(rest.len() as u64)),
        unknown => return Err(RecordError::UnknownType(unknown)),
    })
}

fn decode_publish<'a>(header: &Header, rest: &'a [u8]) -> Result<Publish<'a>, RecordError> {
    let size = ref_size(header.flags);
    let refs_len = (header.count as usize)
        .checked_mul(size)
        .ok_or(RecordError::Field("count"))?;
    let (refs, rest) = rest
        .split_at_checked(refs_len)
        .ok_or(RecordError::Field("count"))?;
    let (payload, _) = split_unpadded(rest, header.body_len)?;
    Ok(Publish {
        refs: Refs { bytes: refs, size },
        priority: header.argument,
        time_ms: header.subject,
        payload,
        payload_crc: header.payload_crc,
    })
}

fn decode_ranges(count: u32, rest: &[u8]) -> Result<Ranges<'_>, RecordError> {
    if (count as usize).checked_mul(range::SIZE) != Some(rest.len()) {
        return Err(RecordError::Field("count"));
    }
    Ok(Ranges { bytes: rest })
}

fn decode_single(rest: &[u8]) -> Result<u64, RecordError> {
    let Field { size, .. } = single::VALUE;
    if rest.len() != size {
        return Err(RecordError::Length(rest.len() as u64));
    }
    Ok(single::VALUE.get(rest))
}

#[expect(clippy::cast_possible_truncation, reason = "the fields have two bytes")]
fn decode_meta<'a>(header: &Header, rest: &'a [u8]) -> Result<Record<'a>, RecordError> {
    let too_short = RecordError::Field("body length");
    let (prefix, rest) = rest.split_at_checked(meta_prefix::SIZE).ok_or(too_short)?;
    if meta_prefix::RESERVED.get(prefix) != 0 {
        return Err(RecordError::Field("reserved"));
    }
    Ok(Record::Meta {
        kind: meta_prefix::KIND.get(prefix) as u16,
        version: meta_prefix::VERSION.get(prefix) as u16,
        effect: decode_effect(header.argument, header.subject)?,
        body: split_padded(rest, header.body_len)?,
    })
}

fn decode_effect(argument: u8, subject: u64) -> Result<MetaEffect, RecordError> {
    match (argument, subject) {
        (meta_effect::NONE, 0) => Ok(MetaEffect::None),
        (meta_effect::QUEUE_CREATED, queue) => Ok(MetaEffect::QueueCreated(QueueId(queue))),
        (meta_effect::QUEUE_DELETED, queue) => Ok(MetaEffect::QueueDeleted(QueueId(queue))),
        _ => Err(RecordError::Field("argument")),
    }
}

fn decode_cause(argument: u8) -> Result<SettleCause, RecordError> {
    use SettleCause as Cause;
    [
        Cause::Acked,
        Cause::Expired,
        Cause::MaxLength,
        Cause::Purged,
        Cause::Rejected,
        Cause::DeadLettered,
    ]
    .into_iter()
    .find(|cause| *cause as u8 == argument)
    .ok_or(RecordError::Field("argument"))
}

/// The first `len` bytes of what remains of a record; the rest must be the zeros that pad it.
fn split_padded(rest: &[u8], len: u32) -> Result<&[u8], RecordError> {
    let (body, padding) = split_unpadded(rest, len)?;
    check_padding(padding)?;
    Ok(body)
}

/// As [`split_padded`]; the padding, of the right length, is not looked at.
fn split_unpadded(rest: &[u8], len: u32) -> Result<(&[u8], &[u8]), RecordError> {
    let wrong = RecordError::Field("body length");
    let (body, padding) = rest.split_at_checked(len as usize).ok_or(wrong.clone())?;
    if padding.len() == padding_len(body.len()) {
        Ok((body, padding))
    } else {
        Err(wrong)
    }
}

fn check_padding(padding: &[u8]) -> Result<(), RecordError> {
    if padding.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(RecordError::Field("padding"))
    }
}
