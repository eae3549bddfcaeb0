//! The bytes of a block: 256 entries of 16 bytes, the place of each given by its seq.
//!
//! ```text
//!   | lsn: 8 | length / 8: 3 | priority: 1 | expiry: 4 |  x 256       all zeros: no message
//! ```
//! A block has no header: its CRC stands in the checkpoint and in memory, seeded with store, queue and run, so a
//! block in the wrong place never validates.

use crate::storage::format::{BLOCK_BYTES, StoreId, index_entry as at, is_crc_right};
use crate::storage::run::{FiledRun, RUN_LEN, RunMarks, RunSet, RunUses, count_use};
use crate::storage::types::{ImageEntry, Lsn, Position, QueueId};

/// Length of a block in bytes.
pub const BLOCK_LEN: usize = RUN_LEN * at::SIZE;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_BYTES);

/// Words of 8 bytes that the longest record of a block has, and one.
const LEN_WORDS_END: u32 = 1 << 24;

/// What the messages of a block say; where they are in it is [`FiledRun`]'s matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    bytes: Box<[u8]>,
    expiry_base_ms: u64,
}

impl Block {
    /// A block without messages that counts expiry from `expiry_base_ms`.
    #[must_use]
    pub fn new(expiry_base_ms: u64) -> Self {
        Self {
            bytes: vec![0; BLOCK_LEN].into(),
            expiry_base_ms,
        }
    }

    /// The block of the given bytes, not verified.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>, expiry_base_ms: u64) -> Option<Self> {
        (bytes.len() == BLOCK_LEN).then(|| Self {
            bytes: bytes.into(),
            expiry_base_ms,
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its checksum as the run `number` of `queue`.
    #[must_use]
    pub fn crc(&self, store: StoreId, queue: QueueId, number: u64) -> u32 {
        crc(&self.bytes, store, queue, number)
    }

    /// Notes a message. False when it does not fit the fields: then the run cannot be filed.
    #[must_use]
    pub fn put(&mut self, entry: &ImageEntry) -> bool {
        let Some((words, expiry)) = self.fields(entry) else {
            return false;
        };
        let from = usize::from(FiledRun::index_of(entry.seq)) * at::SIZE;
        let Some(slot) = self.bytes.get_mut(from..from + at::SIZE) else {
            return false;
        };
        at::LSN.put(slot, entry.position.lsn.0);
        at::LEN_WORDS.put(slot, words);
        at::PRIORITY.put(slot, entry.priority);
        at::EXPIRY.put(slot, expiry);
        true
    }

    /// Length in words and expiry as the fields have them.
    fn fields(&self, entry: &ImageEntry) -> Option<(u32, u32)> {
        let len_bytes = entry.position.len_bytes;
        let words = len_bytes / 8;
        if words == 0 || words >= LEN_WORDS_END || !len_bytes.is_multiple_of(8) {
            return None;
        }
        let expiry = match entry.expires_at_ms {
            0 => 0,
            _ if self.expiry_base_ms == 0 => return None,
            at_ms => u32::try_from(at_ms.checked_sub(self.expiry_base_ms)?.checked_add(1)?).ok()?,
        };
        Some((words, expiry))
    }

    /// The message at `index` of the run, without marks; `None` when there is none, or none that could be.
    #[inline]
    #[must_use]
    pub fn entry(&self, run: &FiledRun, index: u8) -> Option<ImageEntry> {
        let (slots, _) = self.bytes.as_chunks::<{ at::SIZE }>();
        let slot = slots.get(usize::from(index))?;
        let words = at::LEN_WORDS.get_u32(slot);
        if words == 0 {
            return None;
        }
        let expires_at_ms = match at::EXPIRY.get(slot) {
            0 => 0,
            offset => self.expiry_base_ms.checked_add(offset - 1)?,
        };
        Some(ImageEntry {
            seq: run.seq_at(index),
            position: Position {
                lsn: Lsn(at::LSN.get(slot)),
                len_bytes: words * 8,
            },
            expires_at_ms,
            priority: u8::try_from(at::PRIORITY.get(slot)).expect("the field has one byte"),
            delivery_count: 0,
            is_redelivered: false,
        })
    }

    /// True when there is an [entry](Self::entry) at `index`.
    fn has_entry(&self, index: u8) -> bool {
        let (slots, _) = self.bytes.as_chunks::<{ at::SIZE }>();
        slots.get(usize::from(index)).is_some_and(|slot| {
            let expiry = at::EXPIRY.get(slot);
            at::LEN_WORDS.get_u32(slot) != 0
                && (expiry == 0 || self.expiry_base_ms.checked_add(expiry - 1).is_some())
        })
    }

    /// The unsettled messages of the run, ascending, with its marks. `None` when one of them has no entry.
    #[must_use]
    pub fn live_entries(&self, run: &FiledRun) -> Option<Vec<ImageEntry>> {
        let marks = run.marks.as_deref();
        // A sum of options does not say how many there are, and the list would grow.
        let mut entries = Vec::with_capacity(run.live.len() as usize);
        for index in run.live.iter() {
            let mut entry = self.entry(run, index)?;
            mark(&mut entry, index, marks);
            entries.push(entry);
        }
        Some(entries)
    }
}

/// The checksum of a block's bytes.
#[must_use]
pub fn crc(bytes: &[u8], store: StoreId, queue: QueueId, number: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&store.0);
    hasher.update(&queue.0.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Adds what a run knows about the deliveries of the message at `index`.
pub(crate) fn mark(entry: &mut ImageEntry, index: u8, marks: Option<&RunMarks>) {
    if let Some(marks) = marks {
        entry.is_redelivered = marks.redelivered.contains(index);
        entry.delivery_count = u32::from(marks.delivery_count(index));
    }
}

/// Encodes the unsettled messages of one run, in ascending seq. The block number is the caller's to fill in. `None`
/// when they do not fit a block: a record of 128 MiB, expiries 49 days apart, more than 255 failed deliveries.
#[must_use]
pub fn encode(store: StoreId, queue: QueueId, entries: &[ImageEntry]) -> Option<(Block, FiledRun)> {
    let number = FiledRun::number_of(entries.first()?.seq);
    let expiries = entries.iter().map(|entry| entry.expires_at_ms);
    let expiry_base_ms = expiries.filter(|at_ms| *at_ms != 0).min().unwrap_or(0);
    let mut block = Block::new(expiry_base_ms);
    let mut live = RunSet::default();
    let mut marks = RunMarks::default();
    for entry in entries {
        let index = FiledRun::index_of(entry.seq);
        if FiledRun::number_of(entry.seq) != number || !block.put(entry) {
            return None;
        }
        live.insert(index);
        if entry.is_redelivered {
            marks.redelivered.insert(index);
        }
        marks.set_delivery_count(index, u8::try_from(entry.delivery_count).ok()?);
    }
    let run = FiledRun {
        number,
        block: 0,
        crc: block.crc(store, queue, number),
        expiry_base_ms,
        live: live.into(),
        marks: (!marks.is_empty()).then(|| Box::new(marks)),
        segments: uses(entries),
        content_bytes: 0,
    };
    Some((block, run))
}

/// The block of `bytes`, if they are the ones that `run` names.
///
/// # Errors
/// What is wrong with them.
pub fn decode(
    bytes: Vec<u8>,
    store: StoreId,
    queue: QueueId,
    run: &FiledRun,
) -> Result<Block, String> {
    let len = bytes.len();
    let Some(block) = Block::from_bytes(bytes, run.expiry_base_ms) else {
        return Err(format!("the file ends {len} bytes into the block"));
    };
    let computed = block.crc(store, queue, run.number);
    if !is_crc_right(run.crc, computed) {
        return Err(format!(
            "the block of run {} has the checksum {computed:08x}, not {:08x}",
            run.number, run.crc
        ));
    }
    match run.live.iter().find(|index| !block.has_entry(*index)) {
        Some(index) => Err(format!(
            "the block has no entry of message {}",
            run.seq_at(index).0
        )),
        None => Ok(block),
    }
}

/// What messages have in each segment, ascending.
#[must_use]
pub fn uses(entries: &[ImageEntry]) -> RunUses {
    let mut uses = RunUses::new();
    for entry in entries {
        count_use(&mut uses, entry.position);
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::types::{SegmentId, Seq};
    use proptest::prelude::*;

    const STORE: StoreId = StoreId([3; 16]);
    const QUEUE: QueueId = QueueId(9);

    fn entry(seq: u64) -> ImageEntry {
        ImageEntry {
            seq: Seq(seq),
            position: Position {
                lsn: Lsn::new(SegmentId(1 + seq / 100), 4096),
                len_bytes: 64,
            },
            expires_at_ms: 0,
            priority: 0,
            delivery_count: 0,
            is_redelivered: false,
        }
    }

    proptest! {
        #[test]
        fn an_entry_is_there_when_it_can_be_had(bytes in prop::collection::vec(any::<u8>(), 16), base_ms: u64) {
            let (_, run) = encode(STORE, QUEUE, &[entry(256)]).expect("it fits");
            for zeroed in [0..0, 8..11, 12..16] {
                let mut bytes = bytes.clone();
                bytes[zeroed].fill(0);
                for expiry_base_ms in [0, base_ms, u64::MAX - 1000] {
                    let block = Block::from_bytes(bytes.repeat(RUN_LEN), expiry_base_ms).expect("a block");
                    prop_assert_eq!(block.has_entry(3), block.entry(&run, 3).is_some());
                }
            }
        }

        #[test]
        fn what_was_encoded_is_decoded(
            fields in prop::collection::btree_map(0u64..256, (1u64..1 << 40, 1u32..1 << 24, 0u64..1 << 31, 0u8..=255, 0u32..256, any::<bool>()), 1..256),
            number in 0u64..1 << 40,
        ) {
            let entries: Vec<ImageEntry> = fields.into_iter().map(|(index, (lsn, words, expiry, priority, count, is_redelivered))| ImageEntry {
                seq: Seq(number * 256 + index),
                position: Position { lsn: Lsn(lsn), len_bytes: words * 8 },
                expires_at_ms: if expiry % 2 == 0 { 0 } else { 1_700_000_000_000 + expiry },
                priority,
                delivery_count: count,
                is_redelivered,
            }).collect();
            let (block, run) = encode(STORE, QUEUE, &entries).expect("everything fits");
            let block = decode(block.bytes().to_vec(), STORE, QUEUE, &run).expect("it is whole");
            prop_assert_eq!(block.live_entries(&run), Some(entries.clone()));
            prop_assert_eq!(run.segments.iter().map(|used| u64::from(used.live_refs)).sum::<u64>(), entries.len() as u64);
        }
    }

    #[test]
    fn what_does_not_fit_is_not_filed() {
        let long = Position {
            lsn: Lsn(4096),
            len_bytes: 128 << 20,
        };
        let odd = Position {
            lsn: Lsn(4096),
            len_bytes: 65,
        };
        for wrong in [
            vec![ImageEntry {
                position: long,
                ..entry(1)
            }],
            vec![ImageEntry {
                position: odd,
                ..entry(1)
            }],
            vec![ImageEntry {
                delivery_count: 256,
                ..entry(1)
            }],
            vec![
                ImageEntry {
                    expires_at_ms: 5,
                    ..entry(1)
                },
                ImageEntry {
                    expires_at_ms: 5 + u64::from(u32::MAX),
                    ..entry(2)
                },
            ],
            vec![entry(1), entry(256)],
            vec![],
        ] {
            assert_eq!(encode(STORE, QUEUE, &wrong), None, "{wrong:?}");
        }
        let nearly = [
            ImageEntry {
                expires_at_ms: 5,
                ..entry(1)
            },
            ImageEntry {
                expires_at_ms: 4 + u64::from(u32::MAX),
                ..entry(2)
            },
        ];
        assert!(encode(STORE, QUEUE, &nearly).is_some());
    }

    #[test]
    fn a_block_in_the_wrong_place_is_refused() {
        let (block, run) = encode(STORE, QUEUE, &[entry(1), entry(200)]).expect("it fits");
        let bytes = || block.bytes().to_vec();
        assert!(decode(bytes(), STORE, QUEUE, &run).is_ok());
        assert!(decode(bytes(), StoreId([4; 16]), QUEUE, &run).is_err());
        assert!(decode(bytes(), STORE, QueueId(8), &run).is_err());
        let other = FiledRun {
            number: 1,
            ..run.clone()
        };
        assert!(decode(bytes(), STORE, QUEUE, &other).is_err());
        for place in [0, 17, 4095] {
            let mut flipped = bytes();
            flipped[place] ^= 1;
            assert!(decode(flipped, STORE, QUEUE, &run).is_err());
        }
        assert!(decode(bytes()[..4095].to_vec(), STORE, QUEUE, &run).is_err());
        let mut more = run.clone();
        let mut live = run.live.set();
        live.insert(7);
        more.live = live.into();
        assert!(
            decode(bytes(), STORE, QUEUE, &more).is_err(),
            "a live message has an entry"
        );
        assert_eq!(run.segments.len(), 2);
    }
}
