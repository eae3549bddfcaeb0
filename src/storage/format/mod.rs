//! Every byte of every file, as named constants.
//!
//! `storage-format.md` lists the same offsets for people; a test compares the two. All integers are little
//! endian and of fixed width; every structure is a multiple of 8 bytes long and starts at a multiple of 8.
//!
//! ```text
//! log/<12 hex>.segment
//!   +-- 4096 ---------+-----------------------------------+-----------------------------+
//!   | segment header  | batch header | record | record .. | batch header | record ..    | ..
//!   +-----------------+-----------------------------------+-----------------------------+
//!                       the first record of a segment is OPEN: predecessor, its end, epoch
//! checkpoint/<16 hex>.checkpoint
//!   | file header | META section | QUEUE section .. | SEGMENTS section | END section |
//! index/<16 hex>.index
//!   | block | block | ..       256 entries of 16 bytes each; which block is whose stands in the checkpoint
//! superblock.0, superblock.1: one block each, same content
//! ```
//!
//! Checksums are CRC-32/IEEE (reflected polynomial 0xEDB88320). Those of a segment continue the CRC of the 32
//! bytes *store id, segment number, epoch*, so bytes of another store, segment or incarnation never validate.

mod field;
mod names;
mod seed;

pub use field::Field;
use field::{is_tiled, layout};
pub use names::*;
pub use seed::{Seed, StoreId, is_crc_right};

/// Version of the format this program writes.
///
/// 1: the log, packed checkpoints. 2: index files, and the runs in checkpoints that name them. 3: shorter runs.
pub const FORMAT_VERSION: u32 = 3;
/// Oldest reader that understands the superblocks and segments that this program writes. A file that names a later
/// one is refused.
pub const MIN_READER_VERSION: u32 = 1;
/// The same for checkpoints: whether one has runs is known only when all of it is written.
pub const CHECKPOINT_MIN_READER_VERSION: u32 = 3;

/// Everything is written in whole blocks of this size.
pub const BLOCK_BYTES: u64 = 4096;
/// Structures start at multiples of this.
pub const ALIGN_BYTES: u64 = 8;
/// No segment grows beyond this: an LSN has 30 bits for an offset, and the end needs one too.
pub const SEGMENT_END_MAX: u64 = (1 << 30) - BLOCK_BYTES;

/// First bytes of a superblock.
pub const SUPERBLOCK_MAGIC: u64 = u64::from_le_bytes(*b"STRASUPR");
/// First bytes of a segment.
pub const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"STRASEGM");
/// First bytes of a checkpoint.
pub const CHECKPOINT_MAGIC: u64 = u64::from_le_bytes(*b"STRACKPT");
/// First bytes of a batch.
pub const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"SMQb");

layout!(
    /// A superblock: who the store is, where recovery begins. Zeros follow up to the end of the block.
    superblock, 128, {
    /// [`SUPERBLOCK_MAGIC`](super::SUPERBLOCK_MAGIC).
    MAGIC 0 + 8 "magic"
    VERSION 8 + 4 "version"
    /// Oldest reader that may open the directory.
    MIN_READER 12 + 4 "min reader"
    /// Random name of this store.
    STORE_ID 16 + 16 "store id"
    /// Rises with every write; the valid copy with the higher one counts.
    SEQUENCE 32 + 8 "sequence"
    /// Incarnations so far.
    EPOCH 40 + 8 "epoch"
    /// Generation of the newest checkpoint; 0 for none.
    CHECKPOINT 48 + 8 "checkpoint"
    /// LSN where replay begins.
    BEGIN 56 + 8 "begin"
    /// LSN below which everything was synced when this was written.
    SYNCED 64 + 8 "synced"
    /// Unix milliseconds.
    CREATED_AT 72 + 8 "created at"
    RESERVED 80 + 44 "reserved"
    /// CRC of the bytes before it.
    CRC 124 + 4 "crc"
});

layout!(
    /// The header of a segment. Zeros follow up to the end of the block.
    segment_header, 80, {
    /// [`SEGMENT_MAGIC`](super::SEGMENT_MAGIC).
    MAGIC 0 + 8 "magic"
    VERSION 8 + 4 "version"
    MIN_READER 12 + 4 "min reader"
    STORE_ID 16 + 16 "store id"
    /// Its number, as in its name.
    SEGMENT 32 + 8 "segment"
    /// Incarnation that made and alone writes it.
    EPOCH 40 + 8 "epoch"
    /// Unix milliseconds.
    CREATED_AT 48 + 8 "created at"
    /// Bits of [`segment_flag`](super::segment_flag).
    FLAGS 56 + 4 "flags"
    RESERVED 60 + 16 "reserved"
    /// CRC of the bytes before it.
    CRC 76 + 4 "crc"
});

/// Bits of a segment header's flags. Readers ignore those they do not know.
pub mod segment_flag {
    /// The file was another segment before: bytes behind the end may be remains of it.
    pub const RECYCLED: u32 = 1;
}

layout!(
    /// The header of a batch: what one commit wrote, all or nothing.
    batch_header, 64, {
    /// [`BATCH_MAGIC`](super::BATCH_MAGIC).
    MAGIC 0 + 4 "magic"
    /// Length of this header; records begin behind it.
    HEADER_LEN 4 + 2 "header length"
    FLAGS 6 + 2 "flags"
    /// Length of the batch, this header included.
    LEN 8 + 4 "length"
    RECORD_COUNT 12 + 4 "record count"
    /// Its own place.
    LSN 16 + 8 "lsn"
    /// Incarnation that wrote it: that of the segment.
    EPOCH 24 + 8 "epoch"
    /// LSN below which everything had been synced when it was built.
    SYNCED 32 + 8 "synced"
    /// Header CRC of the batch before it in the log, also across segments; 0 for the first of an incarnation.
    PREVIOUS_CRC 40 + 4 "previous crc"
    /// CRC of all records but the payloads of PUBLISH and the padding behind them.
    RECORDS_CRC 44 + 4 "records crc"
    RESERVED 48 + 12 "reserved"
    /// CRC of the bytes before it.
    CRC 60 + 4 "crc"
});

layout!(
    /// The header of a record.
    record_header, 32, {
    /// Length of the record with header and padding.
    LEN 0 + 4 "length"
    /// One of [`record_type`](super::record_type).
    TYPE 4 + 1 "type"
    /// Bits of [`record_flag`](super::record_flag).
    FLAGS 5 + 1 "flags"
    /// PUBLISH: priority. SETTLE: cause. META: effect.
    ARGUMENT 6 + 1 "argument"
    RESERVED 7 + 1 "reserved"
    /// PUBLISH: payload bytes. META: body bytes behind its prefix. Else 0.
    BODY_LEN 8 + 4 "body length"
    /// PUBLISH: plain CRC of the payload. Else 0.
    PAYLOAD_CRC 12 + 4 "payload crc"
    /// PUBLISH: refs. SETTLE: ranges. REQUEUE: delivery count. Else 0.
    COUNT 16 + 4 "count"
    /// The low 32 bits of the record's LSN.
    LSN_LOW 20 + 4 "lsn low"
    /// PUBLISH: Unix milliseconds. SETTLE, REQUEUE, RESERVE, META: queue id. OPEN: predecessor's end. MARK: 0.
    SUBJECT 24 + 8 "subject"
});

/// Kinds of records.
pub mod record_type {
    /// A message: refs, payload, padding.
    pub const PUBLISH: u8 = 1;
    /// Messages that left a queue: ranges.
    pub const SETTLE: u8 = 2;
    /// A message that went back to its place: a seq.
    pub const REQUEUE: u8 = 3;
    /// A delivery reservation: the first seq that is not covered.
    pub const RESERVE: u8 = 4;
    /// A change of topology or users: prefix, body, padding.
    pub const META: u8 = 5;
    /// First record of a segment: the epoch.
    pub const OPEN: u8 = 6;
    /// Nothing; its batch carries the watermark when all is idle.
    pub const MARK: u8 = 7;
    /// All kinds with their names.
    pub const ALL: &[(&str, u8)] = &[
        ("PUBLISH", PUBLISH),
        ("SETTLE", SETTLE),
        ("REQUEUE", REQUEUE),
        ("RESERVE", RESERVE),
        ("META", META),
        ("OPEN", OPEN),
        ("MARK", MARK),
    ];
}

/// Bits of a record's flags.
pub mod record_flag {
    /// PUBLISH: refs are [`wide_ref`](super::wide_ref), because at least one expires.
    pub const WIDE_REFS: u8 = 1;
    /// All bits that have a meaning.
    pub const KNOWN: u8 = WIDE_REFS;
}

/// Effect of a META record on queues, in its argument.
pub mod meta_effect {
    /// None.
    pub const NONE: u8 = 0;
    /// The queue of the subject field exists from here on.
    pub const QUEUE_CREATED: u8 = 1;
    /// The queue of the subject field is gone from here on.
    pub const QUEUE_DELETED: u8 = 2;
}

layout!(
    /// A ref of a PUBLISH none of whose refs expires.
    narrow_ref, 16, {
    QUEUE 0 + 8 "queue"
    SEQ 8 + 8 "seq"
});

layout!(
    /// A ref of a PUBLISH with at least one that expires.
    wide_ref, 24, {
    QUEUE 0 + 8 "queue"
    SEQ 8 + 8 "seq"
    /// Unix milliseconds; 0 for never.
    EXPIRES_AT 16 + 8 "expires at"
});

layout!(
    /// A run of seqs in a SETTLE, both ends included.
    range, 16, {
    FIRST 0 + 8 "first"
    LAST 8 + 8 "last"
});

layout!(
    /// What follows the header of REQUEUE (the seq), RESERVE (the first seq not covered) and OPEN (the epoch).
    single, 8, {
    VALUE 0 + 8 "value"
});

layout!(
    /// What follows the header of META; the body is behind it.
    meta_prefix, 8, {
    KIND 0 + 2 "kind"
    VERSION 2 + 2 "version"
    RESERVED 4 + 4 "reserved"
});

layout!(
    /// First bytes of a checkpoint.
    checkpoint_header, 80, {
    /// [`CHECKPOINT_MAGIC`](super::CHECKPOINT_MAGIC).
    MAGIC 0 + 8 "magic"
    VERSION 8 + 4 "version"
    MIN_READER 12 + 4 "min reader"
    STORE_ID 16 + 16 "store id"
    /// Its number, as in its name.
    GENERATION 32 + 8 "generation"
    /// Incarnation that wrote it.
    EPOCH 40 + 8 "epoch"
    /// LSN of a batch: replay begins here.
    BEGIN 48 + 8 "begin"
    /// Unix milliseconds.
    CREATED_AT 56 + 8 "created at"
    RESERVED 64 + 12 "reserved"
    /// CRC of the bytes before it.
    CRC 76 + 4 "crc"
});

layout!(
    /// What every section of a checkpoint begins with.
    section_header, 16, {
    /// One of [`section_kind`](super::section_kind).
    KIND 0 + 4 "kind"
    /// QUEUE: bits of [`queue_flag`](super::queue_flag). Else 0.
    FLAGS 4 + 4 "flags"
    /// Bytes behind this header that are not padding; the next section begins at the next multiple of 8.
    LEN 8 + 8 "length"
});

/// Kinds of sections.
pub mod section_kind {
    /// [`meta_section`](super::meta_section), then the owner's snapshot. First section, exactly one.
    pub const META: u32 = 1;
    /// [`queue_section`](super::queue_section), then entries, then runs. Ascending id.
    pub const QUEUE: u32 = 2;
    /// [`segment_entry`](super::segment_entry) for every segment with a live ref. Exactly one, behind the queues.
    pub const SEGMENTS: u32 = 3;
    /// [`end_section`](super::end_section). Last.
    pub const END: u32 = 4;
    /// All kinds with their names.
    pub const ALL: &[(&str, u32)] = &[
        ("META", META),
        ("QUEUE", QUEUE),
        ("SEGMENTS", SEGMENTS),
        ("END", END),
    ];
}

/// Bits of a QUEUE section's flags.
pub mod queue_flag {
    /// Entries are [`wide_entry`](super::wide_entry).
    pub const WIDE_ENTRIES: u32 = 1;
    /// [`run_counts`](super::run_counts) follow the head, and [`long_run`](super::long_run)s the entries: version 2.
    pub const LONG_RUNS: u32 = 2;
    /// The same with [`run`](super::run)s, never together with it.
    pub const RUNS: u32 = 4;
    /// All bits that have a meaning.
    pub const KNOWN: u32 = WIDE_ENTRIES | LONG_RUNS | RUNS;
}

layout!(
    /// Head of the META section.
    meta_section, 8, {
    /// LSN of the end of the last META record contained.
    LAST_LSN 0 + 8 "last lsn"
});

layout!(
    /// Head of a QUEUE section.
    queue_section, 32, {
    QUEUE 0 + 8 "queue"
    /// LSN of the end of the last record contained.
    LAST_LSN 8 + 8 "last lsn"
    NEXT_SEQ 16 + 8 "next seq"
    /// Any message below may have been delivered.
    RESERVED_UPTO 24 + 8 "reserved upto"
});

layout!(
    /// An unsettled message that neither expires nor counts deliveries.
    narrow_entry, 24, {
    SEQ 0 + 8 "seq"
    LSN 8 + 8 "lsn"
    /// Length of its PUBLISH record.
    LEN 16 + 4 "length"
    PRIORITY 20 + 1 "priority"
    /// Bits of [`entry_flag`](super::entry_flag).
    FLAGS 21 + 1 "flags"
    RESERVED 22 + 2 "reserved"
});

layout!(
    /// Any unsettled message.
    wide_entry, 40, {
    SEQ 0 + 8 "seq"
    LSN 8 + 8 "lsn"
    LEN 16 + 4 "length"
    PRIORITY 20 + 1 "priority"
    /// Bits of [`entry_flag`](super::entry_flag).
    FLAGS 21 + 1 "flags"
    RESERVED 22 + 2 "reserved"
    /// Unix milliseconds; 0 for never.
    EXPIRES_AT 24 + 8 "expires at"
    DELIVERY_COUNT 32 + 4 "delivery count"
    RESERVED_2 36 + 4 "reserved 2"
});

/// Bits of an entry's flags.
pub mod entry_flag {
    /// It was delivered before.
    pub const REDELIVERED: u8 = 1;
    /// All bits that have a meaning.
    pub const KNOWN: u8 = REDELIVERED;
}

layout!(
    /// Behind the head of a QUEUE section with runs.
    run_counts, 16, {
    ENTRY_COUNT 0 + 8 "entry count"
    RUN_COUNT 8 + 8 "run count"
});

layout!(
    /// A run whose positions are in the index file. Its [`run_use`](super::run_use)s, its [`live_set`](super::live_set)
    /// and its [`run_marks`](super::run_marks) follow, as far as there are any.
    run, 40, {
    /// Seq of its messages / 256. Ascending.
    NUMBER 0 + 8 "number"
    /// Its block in the index file of the queue.
    BLOCK 8 + 4 "block"
    /// CRC of that block, seeded with store, queue and number.
    CRC 12 + 4 "crc"
    /// Unix milliseconds from which the block counts expiry; 0 when no message of it expires.
    EXPIRY_BASE 16 + 8 "expiry base"
    /// Sum of the live messages' sizes as the owner counts them; 0 when unknown.
    CONTENT_BYTES 24 + 5 "content bytes"
    /// The first segment it has unsettled messages in: all that the run uses do not name.
    SEGMENT 29 + 5 "segment"
    /// Length of their records there / 8.
    LIVE_WORDS 34 + 4 "live words"
    /// Run uses that follow: one for every further segment.
    MORE_SEGMENTS 38 + 1 "more segments"
    /// Bits of [`run_flag`](super::run_flag).
    FLAGS 39 + 1 "flags"
});

/// Bits of a run's flags.
pub mod run_flag {
    /// [`run_marks`](super::run_marks) follow.
    pub const MARKS: u8 = 1;
    /// A [`live_set`](super::live_set) follows; else every message is unsettled.
    pub const PARTIAL: u8 = 2;
    /// All bits that have a meaning.
    pub const KNOWN: u8 = MARKS | PARTIAL;
}

layout!(
    /// What a run has in a further segment. Ascending by segment.
    run_use, 16, {
    SEGMENT 0 + 8 "segment"
    /// Length of the records there / 8.
    LIVE_WORDS 8 + 4 "live words"
    /// Unsettled messages of the run in it.
    LIVE_REFS 12 + 4 "live refs"
});

layout!(
    /// Which messages of a run are unsettled.
    live_set, 32, {
    /// Bit set, lowest seq first.
    LIVE 0 + 32 "live"
});

layout!(
    /// A run as version 2 wrote it. Its [`long_run_use`](super::long_run_use)s and, if flagged, its
    /// [`run_marks`](super::run_marks) follow.
    long_run, 72, {
    NUMBER 0 + 8 "number"
    BLOCK 8 + 4 "block"
    CRC 12 + 4 "crc"
    EXPIRY_BASE 16 + 8 "expiry base"
    CONTENT_BYTES 24 + 8 "content bytes"
    /// Bit set of the unsettled messages, lowest seq first. Never empty.
    LIVE 32 + 32 "live"
    SEGMENT_COUNT 64 + 2 "segment count"
    /// [`run_flag::MARKS`](super::run_flag::MARKS) or 0.
    FLAGS 66 + 1 "flags"
    RESERVED 67 + 5 "reserved"
});

layout!(
    /// What a [`long_run`](super::long_run) has in one segment. Ascending by segment.
    long_run_use, 24, {
    SEGMENT 0 + 8 "segment"
    /// Unsettled messages of the run in it.
    LIVE_REFS 8 + 4 "live refs"
    RESERVED 12 + 4 "reserved"
    /// Record bytes of those.
    LIVE_BYTES 16 + 8 "live bytes"
});

layout!(
    /// What is known about the deliveries of a run's messages.
    run_marks, 288, {
    /// Bit set of those that may have been delivered before.
    REDELIVERED 0 + 32 "redelivered"
    /// Failed deliveries so far, a byte for each message.
    DELIVERY_COUNTS 32 + 256 "delivery counts"
});

layout!(
    /// A message in a block of an index file. All zeros: there is none.
    index_entry, 16, {
    LSN 0 + 8 "lsn"
    /// Length of its PUBLISH record / 8.
    LEN_WORDS 8 + 3 "length words"
    PRIORITY 11 + 1 "priority"
    /// Milliseconds from the run's expiry base, plus 1; 0 for never.
    EXPIRY 12 + 4 "expiry"
});

layout!(
    /// A segment with live refs.
    segment_entry, 24, {
    SEGMENT 0 + 8 "segment"
    /// Unsettled refs into it.
    LIVE_REFS 8 + 8 "live refs"
    /// Record bytes of these refs; a record with two live refs counts twice.
    LIVE_BYTES 16 + 8 "live bytes"
});

layout!(
    /// Body of the END section.
    end_section, 40, {
    /// LSN of the append position after the last snapshot; everything below was synced first.
    END 0 + 8 "end"
    QUEUE_COUNT 8 + 8 "queue count"
    ENTRY_COUNT 16 + 8 "entry count"
    /// Length of the file.
    FILE_LEN 24 + 8 "file length"
    RESERVED 32 + 4 "reserved"
    /// CRC of all bytes of the file before it.
    CRC 36 + 4 "crc"
});

/// Every structure with its name, length and fields.
#[expect(clippy::type_complexity, reason = "a table that is only walked")]
pub const STRUCTURES: &[(&str, usize, &[(&str, Field)])] = &[
    ("superblock", superblock::SIZE, superblock::FIELDS),
    (
        "segment header",
        segment_header::SIZE,
        segment_header::FIELDS,
    ),
    ("batch header", batch_header::SIZE, batch_header::FIELDS),
    ("record header", record_header::SIZE, record_header::FIELDS),
    ("narrow ref", narrow_ref::SIZE, narrow_ref::FIELDS),
    ("wide ref", wide_ref::SIZE, wide_ref::FIELDS),
    ("range", range::SIZE, range::FIELDS),
    ("single", single::SIZE, single::FIELDS),
    ("meta prefix", meta_prefix::SIZE, meta_prefix::FIELDS),
    (
        "checkpoint header",
        checkpoint_header::SIZE,
        checkpoint_header::FIELDS,
    ),
    (
        "section header",
        section_header::SIZE,
        section_header::FIELDS,
    ),
    ("meta section", meta_section::SIZE, meta_section::FIELDS),
    ("queue section", queue_section::SIZE, queue_section::FIELDS),
    ("narrow entry", narrow_entry::SIZE, narrow_entry::FIELDS),
    ("wide entry", wide_entry::SIZE, wide_entry::FIELDS),
    ("run counts", run_counts::SIZE, run_counts::FIELDS),
    ("run", run::SIZE, run::FIELDS),
    ("run use", run_use::SIZE, run_use::FIELDS),
    ("live set", live_set::SIZE, live_set::FIELDS),
    ("long run", long_run::SIZE, long_run::FIELDS),
    ("long run use", long_run_use::SIZE, long_run_use::FIELDS),
    ("run marks", run_marks::SIZE, run_marks::FIELDS),
    ("index entry", index_entry::SIZE, index_entry::FIELDS),
    ("segment entry", segment_entry::SIZE, segment_entry::FIELDS),
    ("end section", end_section::SIZE, end_section::FIELDS),
];

/// `len` rounded up to the next multiple of 8.
#[must_use]
pub const fn align_up(len: u64) -> u64 {
    len.next_multiple_of(ALIGN_BYTES)
}
