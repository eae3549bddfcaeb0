//! Fuzz targets as plain functions: any bytes may stand in the files, none may panic, and nothing is allocated by
//! a length that was not compared with the file.
//!
//! Random damage alone would stop at the first checksum, so the targets put the given bytes *behind* right
//! checksums as well. A test drives them from a seed; for a long run:
//! `STRATAMQ_FUZZ_CASES=1000000 cargo test --lib storage::fuzz`.

use std::path::Path;
use std::sync::Arc;

use super::batch::{self, BatchHeader};
use super::checkpoint;
use super::format::{StoreId, batch_header, checkpoint_header, checkpoint_path};
use super::index;
use super::replay::Replay;
use super::run::{FiledRun, RunSet};
use super::scan::SegmentScan;
use super::segment::{FIRST_BATCH_OFFSET, SegmentHeader};
use super::superblock::Superblock;
use super::types::{Lsn, QueueId, SegmentId};
use crate::disk::Disk;
use crate::disk::OpenMode;
use crate::disk::sim::SimDisk;

const STORE: StoreId = StoreId([7; 16]);
const SEGMENT: SegmentId = SegmentId(1);

/// The file of a superblock.
pub fn fuzz_superblock(data: &[u8]) {
    let _ = Superblock::decode(data);
}

/// The bytes behind the header of a segment.
pub fn fuzz_segment(data: &[u8]) {
    replay(data);
}

/// Records of a batch whose checksums are all right: what a hostile hand could have written.
pub fn fuzz_records(data: &[u8]) {
    let header = segment_header();
    let Ok(len_bytes) = u32::try_from(batch_header::SIZE + data.len().next_multiple_of(8)) else {
        return;
    };
    let mut records = data.to_vec();
    records.resize(data.len().next_multiple_of(8), 0);
    let Ok((records_crc, record_count)) = batch::records_crc(&records, header.seed()) else {
        return;
    };
    let mut batch = BatchHeader {
        len_bytes,
        record_count,
        lsn: header.first_batch(),
        epoch: header.epoch,
        synced: Lsn(0),
        previous_crc: 0,
        records_crc,
        crc: 0,
    };
    let mut bytes = batch.encode(header.seed()).to_vec();
    bytes.extend_from_slice(&records);
    replay(&bytes);
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        store: STORE,
        segment: SEGMENT,
        epoch: 1,
        is_recycled: false,
        created_at_ms: 0,
    }
}

/// Scans and replays `data` as the batches of a segment.
fn replay(data: &[u8]) {
    let mut file = vec![0; FIRST_BATCH_OFFSET as usize];
    file.extend_from_slice(data);
    let disk = SimDisk::new(0);
    let Some(file) = put(&disk, Path::new("segment"), &file) else {
        return;
    };
    let mut replay = Replay::default();
    let Ok(mut scan) = SegmentScan::new(file, segment_header(), FIRST_BATCH_OFFSET) else {
        return;
    };
    while let Ok(Ok(batch)) = scan.next_batch() {
        replay.apply_batch(&batch);
    }
    let _ = replay.finish();
}

/// A checkpoint: as given, and behind a right header.
pub fn fuzz_checkpoint(data: &[u8]) {
    read_checkpoint(data);
    use checkpoint_header as at;
    let mut headed = data.to_vec();
    if headed.len() < at::SIZE {
        return;
    }
    headed[at::STORE_ID.offset..at::STORE_ID.end()].copy_from_slice(&STORE.0);
    at::MAGIC.put(&mut headed, super::format::CHECKPOINT_MAGIC);
    at::MIN_READER.put(&mut headed, 1u32);
    at::GENERATION.put(&mut headed, 1u64);
    let crc = crc32fast::hash(&headed[..at::CRC.offset]);
    at::CRC.put(&mut headed, crc);
    // The END section closes with the CRC of everything before it.
    let at_crc = headed.len() - 4;
    let crc = crc32fast::hash(&headed[..at_crc]).to_le_bytes();
    headed[at_crc..].copy_from_slice(&crc);
    read_checkpoint(&headed);
}

fn read_checkpoint(data: &[u8]) {
    let disk = SimDisk::new(0);
    if disk
        .create_dir(Path::new(super::format::CHECKPOINT_DIR))
        .is_err()
    {
        return;
    }
    if put(&disk, &checkpoint_path(1), data).is_some() {
        let _ = checkpoint::read(&disk, STORE, 1);
    }
}

/// A block of an index file behind its right checksum, as the block of a run whose unsettled messages and expiry base are
/// the first bytes.
pub fn fuzz_index_block(data: &[u8]) {
    const QUEUE: QueueId = QueueId(1);
    let Some((fields, block)) = data.split_at_checked(48) else {
        return;
    };
    let word = |index: usize| {
        let bytes = fields.get(index * 8..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let mut block = block.to_vec();
    if !data.len().is_multiple_of(3) {
        block.resize(index::BLOCK_LEN, 0);
    }
    let number = word(4) >> 9;
    let run = FiledRun {
        number,
        block: 0,
        crc: index::block::crc(&block, STORE, QUEUE, number),
        expiry_base_ms: word(5),
        live: RunSet::from_words([word(0), word(1), word(2), word(3)]).into(),
        marks: None,
        segments: smallvec::SmallVec::new(),
        content_bytes: 0,
    };
    if let Ok(block) = index::block::decode(block, STORE, QUEUE, &run) {
        let entries = block.live_entries(&run).unwrap_or_default();
        let again = index::block::encode(STORE, QUEUE, &entries);
        let is_same = again.and_then(|(block, run)| block.live_entries(&run)) == Some(entries);
        assert!(
            is_same || run.live.is_empty(),
            "a block says what it was told"
        );
    }
}

fn put(disk: &SimDisk, path: &Path, bytes: &[u8]) -> Option<Arc<dyn crate::disk::DiskFile>> {
    let file = disk.open(path, OpenMode::CreateNew).ok()?;
    file.write_at(&[std::io::IoSlice::new(bytes)], 0).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::{Random, SimClock};
    use crate::storage::Options;
    use crate::storage::testing::{LiveStore, numbered_payload};

    fn setting(name: &str, default: u64) -> u64 {
        std::env::var(name).map_or(default, |text| text.parse().expect(name))
    }

    /// Calls `target` with `corpus`, damaged anew for each seed. A failure names the seed of its case.
    fn drive(target: fn(&[u8]), corpus: &[Vec<u8>]) {
        let first = setting("STRATAMQ_FUZZ_SEED", 0);
        for seed in first..first + setting("STRATAMQ_FUZZ_CASES", 1000) {
            let mut random = Random::new(seed);
            let mut data = corpus[random.index(corpus.len())].clone();
            damage(&mut data, &mut random);
            let outcome = std::panic::catch_unwind(|| target(&data));
            assert!(outcome.is_ok(), "STRATAMQ_FUZZ_SEED={seed} gives {data:?}");
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low byte is meant")]
    fn damage(data: &mut Vec<u8>, random: &mut Random) {
        const TEMPTING: [u8; 6] = [0, 1, 0x7f, 0x80, 0xff, 8];
        for _ in 0..random.below(4) {
            if data.is_empty() {
                return;
            }
            let at = random.index(data.len());
            match random.below(4) {
                0 => data[at] = random.next_u64() as u8,
                1 => data[at] = TEMPTING[random.index(TEMPTING.len())],
                2 => data.truncate(at),
                _ => data.insert(at, random.next_u64() as u8),
            }
        }
    }

    /// Files that the engine itself wrote: superblocks, segments, checkpoints.
    fn files(prefix: &str) -> Vec<Vec<u8>> {
        let disk = written_disk();
        let files: Vec<_> = disk
            .files()
            .into_iter()
            .filter(|path| path.to_string_lossy().starts_with(prefix))
            .map(|path| disk.contents(&path).expect("a listed file has contents"))
            .collect();
        assert!(!files.is_empty(), "the engine wrote no {prefix}");
        files
    }

    /// A disk on which one of everything was logged, before and after a checkpoint.
    fn written_disk() -> SimDisk {
        let disk = SimDisk::new(1);
        let clock = Arc::new(SimClock::new(1_000));
        let options = Options {
            segment_size_bytes: 64 * 1024,
            index_min_messages: 0,
            ..Options::default()
        };
        let (store, _) = LiveStore::open_by_hand(Arc::new(disk.clone()), clock, options).unwrap();
        for round in 0..2 {
            store.create_queue(2 * round + 1);
            store.create_queue(2 * round + 2);
            let queues = [2 * round + 1, 2 * round + 2];
            for number in 0..6 {
                let payload = numbered_payload(number, 20 + 100 * usize::try_from(number).unwrap());
                store.publish(&queues, &payload, number % 2 * 5_000);
            }
            store.reserve(queues[0], 5);
            store.requeue(queues[0], 2, 3);
            store.settle(queues[0], 3, 4);
            store.commit().unwrap();
            if round == 0 {
                store.storage.checkpoint(&store).unwrap();
            }
        }
        disk
    }

    fn behind_the_header(file: &[u8]) -> Vec<u8> {
        file.get(FIRST_BATCH_OFFSET as usize..)
            .unwrap_or_default()
            .to_vec()
    }

    #[test]
    fn superblocks() {
        drive(fuzz_superblock, &files("superblock"));
    }

    #[test]
    fn segments() {
        let corpus: Vec<_> = files("log")
            .iter()
            .map(|file| behind_the_header(file))
            .collect();
        drive(fuzz_segment, &corpus);
    }

    #[test]
    fn records_behind_right_checksums() {
        let corpus: Vec<_> = files("log")
            .iter()
            .map(|file| behind_the_header(file)[batch_header::SIZE..].to_vec())
            .flat_map(|records| {
                // The first records of a segment, as many as fit a short batch.
                [40, 80, 160, 320].map(|len| records.get(..len).unwrap_or(&records).to_vec())
            })
            .collect();
        drive(fuzz_records, &corpus);
    }

    #[test]
    fn checkpoints() {
        drive(fuzz_checkpoint, &files("checkpoint"));
    }

    #[test]
    fn index_blocks() {
        let corpus: Vec<_> = files("index")
            .into_iter()
            .map(|block| [&[0x7e; 40][..], &1_000u64.to_le_bytes(), &block].concat())
            .collect();
        drive(fuzz_index_block, &corpus);
    }
}
