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

use super::types::{QueueId, SegmentId};

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

/// The lock of the data directory.
pub const LOCK_FILE: &str = "LOCK";
/// The two copies of the superblock, in the order in which they are written.
pub const SUPERBLOCK_FILES: [&str; 2] = ["superblock.0", "superblock.1"];
/// Space put aside for a full disk.
pub const RESERVE_FILE: &str = "reserve";
/// Directory of segments.
pub const LOG_DIR: &str = "log";
/// Extension of segments.
pub const SEGMENT_EXTENSION: &str = "segment";
/// Extension of segments of messages that were moved out of the log.
pub const COLD_EXTENSION: &str = "cold";
/// Extension of files that may become segments.
pub const SPARE_EXTENSION: &str = "spare";
/// Directory of checkpoints.
pub const CHECKPOINT_DIR: &str = "checkpoint";
/// Extension of checkpoints.
pub const CHECKPOINT_EXTENSION: &str = "checkpoint";
/// Directory of index files.
pub const INDEX_DIR: &str = "index";
/// Extension of index files.
pub const INDEX_EXTENSION: &str = "index";
/// Extension of files that are being written; leftovers are replaced or removed by the next attempt.
pub const TEMP_EXTENSION: &str = "tmp";
/// Directory of copies of cut tails.
pub const QUARANTINE_DIR: &str = "quarantine";

/// Place of a little endian integer, or of a run of bytes, in a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// Length in bytes.
    pub size: usize,
}

impl Field {
    /// First byte behind the field.
    #[must_use]
    pub const fn end(self) -> usize {
        self.offset + self.size
    }

    /// Writes `value`.
    ///
    /// # Panics
    /// When the value does not fit or the structure is too short: both are programmer errors.
    pub fn put(self, structure: &mut [u8], value: impl Into<u64>) {
        let bytes = value.into().to_le_bytes();
        let (low, high) = bytes.split_at(self.size.min(8));
        assert!(
            high.iter().all(|byte| *byte == 0),
            "the value fits the field"
        );
        structure[self.offset..self.end()].copy_from_slice(low);
    }

    /// Reads the value of a field of at most 8 bytes.
    ///
    /// # Panics
    /// When the structure is too short: decoders split off the whole structure first.
    #[inline]
    #[must_use]
    pub fn get(self, structure: &[u8]) -> u64 {
        let mut bytes = [0; 8];
        bytes[..self.size].copy_from_slice(&structure[self.offset..self.end()]);
        u64::from_le_bytes(bytes)
    }

    /// Reads a field of at most 4 bytes.
    ///
    /// # Panics
    /// As [`Field::get`], and when the field is longer.
    #[inline]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the field has at most 4 bytes"
    )]
    pub fn get_u32(self, structure: &[u8]) -> u32 {
        assert!(self.size <= 4, "the field fits 32 bits");
        self.get(structure) as u32
    }
}

/// True when the fields tile `[0, size)` without hole or overlap.
const fn is_tiled(fields: &[(&str, Field)], size: usize) -> bool {
    let mut at = 0;
    let mut index = 0;
    while index < fields.len() {
        if fields[index].1.offset != at {
            return false;
        }
        at = fields[index].1.end();
        index += 1;
    }
    at == size
}

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $size:expr, { $($(#[$fdoc:meta])* $field:ident $offset:literal + $len:literal $text:literal)+ }) => {
        $(#[$doc])*
        pub mod $name {
            use super::Field;
            /// Length of the structure in bytes.
            pub const SIZE: usize = $size;
            $($(#[$fdoc])* #[doc = concat!("Field `", $text, "`.")]
            pub const $field: Field = Field { offset: $offset, size: $len };)+
            /// All fields with their names, in order.
            pub const FIELDS: &[(&str, Field)] = &[$(($text, $field)),+];
            const _: () = assert!(super::is_tiled(FIELDS, SIZE));
            const _: () = assert!(SIZE.is_multiple_of(8));
        }
    };
}

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

/// Random name of a store; part of every checksum seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub [u8; 16]);

impl std::fmt::Display for StoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The value that the checksums of one segment, written by one incarnation, continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u32);

impl Seed {
    /// The seed of `segment` as written by incarnation `epoch` of `store`.
    #[must_use]
    pub fn new(store: StoreId, segment: SegmentId, epoch: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&store.0);
        hasher.update(&segment.0.to_le_bytes());
        hasher.update(&epoch.to_le_bytes());
        Self(hasher.finalize())
    }

    /// A checksum that continues this seed.
    #[must_use]
    pub fn hasher(self) -> crc32fast::Hasher {
        crc32fast::Hasher::new_with_initial(self.0)
    }

    /// The seeded checksum of `bytes`.
    #[must_use]
    pub fn crc(self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// True when a checksum read from disk agrees with the one computed.
///
/// Every check of a checksum in the engine goes through here, so that a build can remove them all and the
/// suite can be shown to notice.
#[must_use]
pub fn is_crc_right(stored: u32, computed: u32) -> bool {
    stored == computed || crate::disk::fault::is_active(crate::disk::fault::Fault::SkipCrc)
}

/// `len` rounded up to the next multiple of 8.
#[must_use]
pub const fn align_up(len: u64) -> u64 {
    len.next_multiple_of(ALIGN_BYTES)
}

/// Path of a segment below the data directory.
#[must_use]
pub fn segment_path(segment: SegmentId) -> std::path::PathBuf {
    let extension = if segment.is_cold() {
        COLD_EXTENSION
    } else {
        SEGMENT_EXTENSION
    };
    format!("{LOG_DIR}/{segment}.{extension}").into()
}

/// Path of a spare, a file that may become a segment. The number says which segment it was, or was made for.
#[must_use]
pub fn spare_path(segment: SegmentId) -> std::path::PathBuf {
    format!("{LOG_DIR}/{segment}.{SPARE_EXTENSION}").into()
}

/// Path of a checkpoint below the data directory.
#[must_use]
pub fn checkpoint_path(generation: u64) -> std::path::PathBuf {
    format!("{CHECKPOINT_DIR}/{generation:016x}.{CHECKPOINT_EXTENSION}").into()
}

/// Path of the index file of a queue below the data directory.
#[must_use]
pub fn index_path(queue: QueueId) -> std::path::PathBuf {
    format!("{INDEX_DIR}/{:016x}.{INDEX_EXTENSION}", queue.0).into()
}

/// Number in a file name of `digits` lower-case hexadecimal digits and `extension`; `None` for other names.
#[must_use]
pub fn number_in_name(name: &std::path::Path, digits: usize, extension: &str) -> Option<u64> {
    let stem = name.to_str()?.strip_suffix(extension)?.strip_suffix('.')?;
    let is_canonical = stem.len() == digits
        && stem
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_canonical {
        u64::from_str_radix(stem, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn names_round_trip_and_strangers_are_no_segments() {
        let path = segment_path(SegmentId(0x2a));
        assert_eq!(path, Path::new("log/00000000002a.segment"));
        let name = Path::new(path.file_name().expect("it has a name"));
        assert_eq!(number_in_name(name, 12, SEGMENT_EXTENSION), Some(0x2a));
        for stranger in [
            "2a.segment",
            "00000000002A.segment",
            "00000000002a.segment.tmp",
            "x",
        ] {
            assert_eq!(
                number_in_name(Path::new(stranger), 12, SEGMENT_EXTENSION),
                None
            );
        }
        assert_eq!(
            checkpoint_path(7),
            Path::new("checkpoint/0000000000000007.checkpoint")
        );
    }

    #[test]
    fn seed_is_the_crc_of_what_precedes() {
        let seed = Seed::new(StoreId([7; 16]), SegmentId(3), 9);
        let mut whole = vec![7; 16];
        whole.extend(3u64.to_le_bytes());
        whole.extend(9u64.to_le_bytes());
        whole.extend(b"bytes");
        assert_eq!(seed.crc(b"bytes"), crc32fast::hash(&whole));
        assert_ne!(seed, Seed::new(StoreId([7; 16]), SegmentId(3), 10));
    }

    #[test]
    fn fields_keep_their_neighbours() {
        let mut header = [0xff; record_header::SIZE];
        record_header::COUNT.put(&mut header, 0x0102_0304u32);
        assert_eq!(record_header::COUNT.get_u32(&header), 0x0102_0304);
        assert_eq!(header.iter().filter(|byte| **byte == 0xff).count(), 28);
        assert_eq!(header.get(16), Some(&4), "little endian");
    }
}
