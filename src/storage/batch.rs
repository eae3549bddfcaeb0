//! Batches: what one commit writes, valid as a whole or not at all.
//!
//! [`BatchBody`] is a batch that is being filled; its place is fixed when it is opened, so every record knows
//! its LSN when it is pushed. The header is built by the commit thread, just before the batch is written,
//! because it carries the newest watermark and the CRC of the header before it.

use bytes::Bytes;

use super::block_buffer::BlockBuffer;
use super::format::{BATCH_MAGIC, Seed, batch_header, is_crc_right};
use super::record::{self, Entry, Record, RecordError, padding_len};
use super::types::{Lsn, Payload, Position, Request};

/// Payload parts up to this length are copied into the batch's buffer, longer ones are kept by reference.
const COPY_MAX_BYTES: u64 = 4096;
/// Parts from this length on are large: a batch grows beyond its cap by them.
const LARGE_BYTES: u64 = 64 * 1024;
/// Parts a batch takes by reference. With the buffer's pieces between them that is at most 512 buffers a
/// write, half of what one `pwritev` takes.
pub(crate) const EXTERNAL_MAX_COUNT: usize = 254;

/// Why bytes are no batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The place does not begin like a batch: zeros, or the end of the file.
    #[error("no batch begins here")]
    Absent,
    /// The header is wrong.
    #[error("batch header has a wrong {0}")]
    Header(&'static str),
    /// The batch ends beyond the file.
    #[error("batch of {0} bytes ends behind the end of the file")]
    Truncated(u64),
    /// Records do not match their CRC.
    #[error("records do not match the batch's crc")]
    RecordsCrc,
    /// A record is wrong.
    #[error("{error} at offset {offset}")]
    Record {
        /// Offset of the record in the file.
        offset: u32,
        /// What is wrong.
        error: RecordError,
    },
    /// The batch does not continue the one before it.
    #[error("batch follows a header with crc {found:08x}, not {expected:08x}")]
    Chain {
        /// CRC of the header before it.
        expected: u32,
        /// What it says.
        found: u32,
    },
}

impl Invalid {
    /// True when every checksum is right but the content is of a kind that only a later release writes.
    #[must_use]
    pub fn is_newer(&self) -> bool {
        matches!(
            self,
            Self::Record {
                error: RecordError::UnknownType(_),
                ..
            }
        )
    }
}

/// The header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Length with header.
    pub len_bytes: u32,
    /// Number of records.
    pub record_count: u32,
    /// Its place.
    pub lsn: Lsn,
    /// Incarnation that wrote it.
    pub epoch: u64,
    /// Everything below had been synced when it was built.
    pub synced: Lsn,
    /// CRC of the header before it; 0 for the first of an incarnation.
    pub previous_crc: u32,
    /// CRC of records without payloads.
    pub records_crc: u32,
    /// CRC of this header.
    pub crc: u32,
}

impl BatchHeader {
    /// The header's bytes; fills in the CRC.
    pub(crate) fn encode(&mut self, seed: Seed) -> [u8; batch_header::SIZE] {
        use batch_header as at;
        let mut bytes = [0; at::SIZE];
        at::MAGIC.put(&mut bytes, BATCH_MAGIC);
        at::HEADER_LEN.put(&mut bytes, at::SIZE as u64);
        at::LEN.put(&mut bytes, self.len_bytes);
        at::RECORD_COUNT.put(&mut bytes, self.record_count);
        at::LSN.put(&mut bytes, self.lsn.0);
        at::EPOCH.put(&mut bytes, self.epoch);
        at::SYNCED.put(&mut bytes, self.synced.0);
        at::PREVIOUS_CRC.put(&mut bytes, self.previous_crc);
        at::RECORDS_CRC.put(&mut bytes, self.records_crc);
        self.crc = seed.crc(&bytes[..at::CRC.offset]);
        at::CRC.put(&mut bytes, self.crc);
        bytes
    }

    /// Decodes the header read at `place`, with the checksum seed of its segment and incarnation.
    pub(crate) fn decode(
        bytes: &[u8; batch_header::SIZE],
        place: Lsn,
        epoch: u64,
        seed: Seed,
    ) -> Result<Self, Invalid> {
        use batch_header as at;
        if at::MAGIC.get_u32(bytes) != BATCH_MAGIC {
            return Err(Invalid::Absent);
        }
        let header = Self::fields(bytes);
        if !is_crc_right(header.crc, seed.crc(&bytes[..at::CRC.offset])) {
            return Err(Invalid::Header("crc"));
        }
        let check = |is_right: bool, name| {
            if is_right {
                Ok(())
            } else {
                Err(Invalid::Header(name))
            }
        };
        check(
            at::HEADER_LEN.get(bytes) == at::SIZE as u64,
            "header length",
        )?;
        check(at::FLAGS.get(bytes) == 0, "flags")?;
        check(
            bytes[at::RESERVED.offset..at::RESERVED.end()]
                .iter()
                .all(|byte| *byte == 0),
            "reserved",
        )?;
        check(header.lsn == place, "lsn")?;
        check(header.epoch == epoch, "epoch")?;
        check(
            header.len_bytes as usize > at::SIZE && header.len_bytes.is_multiple_of(8),
            "length",
        )?;
        check(header.record_count > 0, "record count")?;
        check(header.synced <= place, "synced")?;
        Ok(header)
    }

    /// The fields of header bytes, unchecked.
    fn fields(bytes: &[u8; batch_header::SIZE]) -> Self {
        use batch_header as at;
        Self {
            len_bytes: at::LEN.get_u32(bytes),
            record_count: at::RECORD_COUNT.get_u32(bytes),
            lsn: Lsn(at::LSN.get(bytes)),
            epoch: at::EPOCH.get(bytes),
            synced: Lsn(at::SYNCED.get(bytes)),
            previous_crc: at::PREVIOUS_CRC.get_u32(bytes),
            records_crc: at::RECORDS_CRC.get_u32(bytes),
            crc: at::CRC.get_u32(bytes),
        }
    }

    /// The epoch header bytes claim, to find the seed they must be checked with.
    pub(crate) fn claimed_epoch(bytes: &[u8; batch_header::SIZE]) -> u64 {
        Self::fields(bytes).epoch
    }

    /// First place behind the batch.
    #[must_use]
    pub fn end(&self) -> Lsn {
        Lsn(self.lsn.0 + u64::from(self.len_bytes))
    }
}

/// A whole batch that was read and fully verified: header, records, payloads.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Its header.
    pub header: BatchHeader,
    /// The records, one after the other.
    records: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Verifies `bytes`, the whole batch that `header` announced.
    pub(crate) fn verify(
        header: BatchHeader,
        bytes: &'a [u8],
        seed: Seed,
    ) -> Result<Self, Invalid> {
        let records = bytes
            .get(batch_header::SIZE..)
            .ok_or(Invalid::Header("length"))?;
        check_records_crc(&header, records, seed)?;
        let batch = Self { header, records };
        for record in batch.raw_records() {
            let (record, lsn) = record?;
            record::decode(record, lsn).map_err(|error| Invalid::Record {
                offset: lsn.offset(),
                error,
            })?;
        }
        Ok(batch)
    }

    /// As [`Batch::verify`], but a message whose payload does not match its CRC is counted and let pass: which message
    /// it is, and where it belongs, is covered by the batch's own CRC.
    pub(crate) fn verify_without_payloads(
        header: BatchHeader,
        bytes: &'a [u8],
        seed: Seed,
    ) -> Result<(Self, u64), Invalid> {
        let records = bytes
            .get(batch_header::SIZE..)
            .ok_or(Invalid::Header("length"))?;
        check_records_crc(&header, records, seed)?;
        let batch = Self { header, records };
        let mut unreadable_count = 0;
        for record in batch.raw_records() {
            let (record, lsn) = record?;
            let decoded = record::decode_unchecked(record, lsn);
            decoded.map_err(|error| Invalid::Record {
                offset: lsn.offset(),
                error,
            })?;
            unreadable_count += u64::from(record::decode(record, lsn).is_err());
        }
        Ok((batch, unreadable_count))
    }

    /// Its records with their positions.
    ///
    /// # Panics
    /// Never: a batch exists only when all its records were decoded once.
    pub fn records(&self) -> impl Iterator<Item = (Position, Record<'a>)> + '_ {
        self.raw_records().map(|record| {
            let (record, lsn) = record.expect("split when the batch was verified");
            let len_bytes = u32::try_from(record.len()).expect("a record's length has 32 bits");
            let decoded =
                record::decode_unchecked(record, lsn).expect("decoded when the batch was verified");
            (Position { lsn, len_bytes }, decoded)
        })
    }

    fn raw_records(&self) -> impl Iterator<Item = Result<(&'a [u8], Lsn), Invalid>> + '_ {
        let mut rest = self.records;
        let mut lsn = Lsn(self.header.lsn.0 + batch_header::SIZE as u64);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let here = lsn;
            let record = match record::split(rest) {
                Ok((record, _)) => record,
                Err(error) => {
                    rest = &[];
                    return Some(Err(Invalid::Record {
                        offset: here.offset(),
                        error,
                    }));
                }
            };
            rest = rest.get(record.len()..).unwrap_or_default();
            lsn = Lsn(lsn.0 + record.len() as u64);
            Some(Ok((record, here)))
        })
    }
}

fn check_records_crc(header: &BatchHeader, records: &[u8], seed: Seed) -> Result<(), Invalid> {
    let (crc, count) = records_crc(records, seed)?;
    if !is_crc_right(header.records_crc, crc) {
        return Err(Invalid::RecordsCrc);
    }
    if count != header.record_count {
        return Err(Invalid::Header("record count"));
    }
    Ok(())
}

/// The CRC of `records` as a batch header has it, and their number.
pub(crate) fn records_crc(mut records: &[u8], seed: Seed) -> Result<(u32, u32), Invalid> {
    let mut hasher = seed.hasher();
    let mut count = 0u32;
    while !records.is_empty() {
        // A wrong length is found here only when the CRC would be wrong as well.
        let (record, covered) = record::split(records).map_err(|_| Invalid::RecordsCrc)?;
        hasher.update(record.get(..covered).ok_or(Invalid::RecordsCrc)?);
        records = records.get(record.len()..).unwrap_or_default();
        count += 1;
    }
    Ok((hasher.finalize(), count))
}

/// Where the records of a batch at `base` begin in its file.
fn records_offset(base: Lsn) -> u64 {
    u64::from(base.offset()) + batch_header::SIZE as u64
}

/// A batch that is being filled.
#[derive(Debug)]
pub(crate) struct BatchBody {
    /// Its place.
    pub(crate) base: Lsn,
    /// Length so far, header included.
    pub(crate) len_bytes: u64,
    /// Records so far.
    pub(crate) record_count: u32,
    /// PUBLISH records so far.
    pub(crate) message_count: u32,
    /// True when somebody waits for one of its records.
    pub(crate) is_waited: bool,
    /// True when it holds something other than the engine's own records.
    pub(crate) has_data: bool,
    /// Of large parts.
    large_bytes: u64,
    /// Everything that is not kept by reference, in order, without the header.
    buffer: BlockBuffer,
    /// Parts kept by reference, each with the length of the buffer before it.
    externals: Vec<(usize, Bytes)>,
    /// What the header's CRC covers, in order: once more, so that it is one piece. A hash of many short ones takes several times
    /// as long.
    covered: Vec<u8>,
}

impl BatchBody {
    pub(crate) fn new(base: Lsn) -> Self {
        Self {
            base,
            len_bytes: batch_header::SIZE as u64,
            record_count: 0,
            message_count: 0,
            is_waited: false,
            has_data: false,
            large_bytes: 0,
            buffer: BlockBuffer::new(records_offset(base)),
            externals: Vec::new(),
            covered: Vec::new(),
        }
    }

    /// As [`BatchBody::new`], for one that never takes a large page.
    pub(crate) fn of_small_pages(base: Lsn) -> Self {
        let mut body = Self::new(base);
        body.buffer.leave_pages();
        body
    }

    /// False for one that never takes a large page.
    pub(crate) fn may_take_page(&self) -> bool {
        self.buffer.may_take_page()
    }

    #[cfg(test)]
    pub(crate) fn is_in_page(&self) -> bool {
        self.buffer.is_in_page()
    }

    /// Empties the batch for use at `base`; buffers keep their room.
    pub(crate) fn reset(&mut self, base: Lsn) {
        let mut fresh = Self::new(base);
        std::mem::swap(&mut fresh, self);
        let Self {
            mut buffer,
            mut externals,
            mut covered,
            ..
        } = fresh;
        buffer.reset(records_offset(base));
        externals.clear();
        covered.clear();
        (self.buffer, self.externals, self.covered) = (buffer, externals, covered);
    }

    /// Bytes its buffers can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity() + self.covered.capacity()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Its length without large parts.
    pub(crate) fn small_bytes(&self) -> u64 {
        self.len_bytes - self.large_bytes
    }

    /// True when a payload part is long enough to be kept by reference.
    #[inline]
    pub(crate) fn may_be_external(part: &Bytes) -> bool {
        part.len() as u64 > COPY_MAX_BYTES
    }

    /// First place behind the records so far. An empty batch takes no place.
    pub(crate) fn end(&self) -> Lsn {
        if self.is_empty() {
            self.base
        } else {
            Lsn(self.base.0 + self.len_bytes)
        }
    }

    pub(crate) fn has_room_for_externals(&self, count: usize) -> bool {
        self.externals.len() + count <= EXTERNAL_MAX_COUNT
    }

    /// Appends a record and says where it lies.
    pub(crate) fn push(&mut self, entry: &Entry<'_>) -> Position {
        self.push_of_len(entry, entry.len_bytes())
    }

    /// The same for whoever has its [length](Entry::len_bytes) already.
    pub(crate) fn push_of_len(&mut self, entry: &Entry<'_>, len_bytes: u64) -> Position {
        let lsn = Lsn(self.base.0 + self.len_bytes);
        let start = self.covered.len();
        entry.encode_head(lsn, len_bytes, &mut self.covered);
        self.buffer.append(&self.covered[start..]);
        if let Entry::Request(Request::Publish { payload, .. }) = entry {
            self.push_payload(*payload);
            self.message_count += 1;
        }
        self.has_data |= matches!(entry, Entry::Request(_));
        self.len_bytes += len_bytes;
        self.record_count += 1;
        debug_assert_eq!(
            self.len_bytes,
            self.stored_len() + batch_header::SIZE as u64
        );
        Position {
            lsn,
            len_bytes: u32::try_from(len_bytes).expect("a record is shorter than a segment"),
        }
    }

    fn push_payload(&mut self, payload: Payload<'_>) {
        if !payload.front.is_empty() {
            self.buffer.append(payload.front);
        }
        for part in payload.parts {
            if Self::may_be_external(part) && self.has_room_for_externals(1) {
                self.externals.push((self.buffer.len(), part.clone()));
                if part.len() as u64 >= LARGE_BYTES {
                    self.large_bytes += part.len() as u64;
                }
            } else {
                self.buffer.append(part);
            }
        }
        self.buffer.append(&[0; 8][..padding_len(payload.len())]);
    }

    fn stored_len(&self) -> u64 {
        (self.buffer.len()
            + self
                .externals
                .iter()
                .map(|(_, part)| part.len())
                .sum::<usize>()) as u64
    }

    /// CRC of everything but payloads.
    pub(crate) fn records_crc(&self, seed: Seed) -> u32 {
        let mut hasher = seed.hasher();
        hasher.update(&self.covered);
        hasher.finalize()
    }

    /// The bytes behind the header, as pieces in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = 0;
        let with_externals = self.externals.iter().flat_map(move |(before, part)| {
            let piece = &self.buffer.bytes()[at..*before];
            at = *before;
            [piece, part.as_ref()]
        });
        let tail = self.externals.last().map_or(0, |(before, _)| *before);
        with_externals
            .chain(std::iter::once(&self.buffer.bytes()[tail..]))
            .filter(|piece| !piece.is_empty())
    }

    /// Copies the `len` bytes at `lsn` out of the records; `None` when they are not (all) in this batch.
    pub(crate) fn copy_out(&self, lsn: Lsn, len: usize) -> Option<Vec<u8>> {
        let records_at = self.base.0 + batch_header::SIZE as u64;
        let mut skip = usize::try_from(lsn.0.checked_sub(records_at)?).ok()?;
        if lsn.0 + len as u64 > self.base.0 + self.len_bytes {
            return None;
        }
        let mut out = Vec::with_capacity(len);
        for piece in self.pieces() {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            let wanted = (len - out.len()).min(piece.len() - skipped);
            out.extend_from_slice(&piece[skipped..skipped + wanted]);
        }
        Some(out)
    }
}
