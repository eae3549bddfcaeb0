//! Runs as checkpoints of version 2 store them. Only read: a checkpoint is written anew within minutes.

use super::format::{long_run as head, long_run_use as long_use, run_flag, run_marks};
use super::run::{FiledRun, RUN_LEN, RunUse, RunUses};
use super::run_codec::{add_use, is_number, marks_of, set_of};
use super::types::SegmentId;

/// The head of a run, and how many bytes follow.
pub(crate) struct Head {
    run: FiledRun,
    segment_count: usize,
    has_marks: bool,
}

impl Head {
    /// Reads [`format::long_run`](super::format::long_run); `None` when a field is impossible.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let flags = u8::try_from(head::FLAGS.get(bytes)).ok()?;
        let live = set_of(bytes.get(head::LIVE.offset..head::LIVE.end())?);
        let segment_count = usize::try_from(head::SEGMENT_COUNT.get(bytes)).ok()?;
        let number = head::NUMBER.get(bytes);
        let is_possible = flags & !run_flag::MARKS == 0
            && !live.is_empty()
            && (1..=RUN_LEN).contains(&segment_count)
            && is_number(number);
        is_possible.then(|| Self {
            run: FiledRun {
                number,
                block: head::BLOCK.get_u32(bytes),
                crc: head::CRC.get_u32(bytes),
                expiry_base_ms: head::EXPIRY_BASE.get(bytes),
                live: live.into(),
                marks: None,
                segments: RunUses::new(),
                content_bytes: head::CONTENT_BYTES.get(bytes),
            },
            segment_count,
            has_marks: flags & run_flag::MARKS != 0,
        })
    }

    /// Bytes that follow.
    pub(super) fn rest_len(&self) -> usize {
        let marks = if self.has_marks { run_marks::SIZE } else { 0 };
        self.segment_count * long_use::SIZE + marks
    }

    /// The run with the `rest_len` bytes that follow; `None` when they contradict its head.
    pub(super) fn finish(mut self, rest: &[u8]) -> Option<FiledRun> {
        let (uses, marks) = rest.split_at_checked(self.segment_count * long_use::SIZE)?;
        for bytes in uses.chunks_exact(long_use::SIZE) {
            let live_bytes = long_use::LIVE_BYTES.get(bytes);
            if !live_bytes.is_multiple_of(8) {
                return None;
            }
            let used = RunUse {
                segment: SegmentId(long_use::SEGMENT.get(bytes)),
                live_refs: long_use::LIVE_REFS.get_u32(bytes),
                live_words: u32::try_from(live_bytes / 8).ok()?,
            };
            add_use(&mut self.run.segments, used)?;
        }
        if self.has_marks {
            self.run.marks = Some(marks_of(marks)?);
        }
        (!self.run.is_touched()).then_some(self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages 0, 63, 64 and 255 of run 7: three in segment 1, one in segment 5; 63 was delivered.
    fn written() -> Vec<u8> {
        let mut bytes = vec![0; head::SIZE + 2 * long_use::SIZE + run_marks::SIZE];
        let (fixed, rest) = bytes.split_at_mut(head::SIZE);
        head::NUMBER.put(fixed, 7u64);
        head::BLOCK.put(fixed, 3u64);
        head::CRC.put(fixed, 0xdead_beefu64);
        head::EXPIRY_BASE.put(fixed, 9u64);
        head::CONTENT_BYTES.put(fixed, 11u64);
        for index in [0, 63, 64, 255] {
            fixed[head::LIVE.offset + index / 8] |= 1 << (index % 8);
        }
        head::SEGMENT_COUNT.put(fixed, 2u64);
        head::FLAGS.put(fixed, run_flag::MARKS);
        let (uses, marks) = rest.split_at_mut(2 * long_use::SIZE);
        for (bytes, (segment, refs)) in uses
            .chunks_exact_mut(long_use::SIZE)
            .zip([(1u64, 3u64), (5, 1)])
        {
            long_use::SEGMENT.put(bytes, segment);
            long_use::LIVE_REFS.put(bytes, refs);
            long_use::LIVE_BYTES.put(bytes, refs * 80);
        }
        marks[63 / 8] |= 1 << (63 % 8);
        marks[run_marks::DELIVERY_COUNTS.offset + 63] = 2;
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<FiledRun> {
        let (fixed, rest) = bytes.split_at_checked(head::SIZE)?;
        let head = Head::decode(fixed)?;
        assert!(head.rest_len() <= rest.len());
        let len = head.rest_len();
        head.finish(&rest[..len])
    }

    #[test]
    fn version_2_is_read() {
        let run = decode(&written()).expect("it is whole");
        assert_eq!((run.number, run.block, run.crc), (7, 3, 0xdead_beef));
        assert_eq!((run.expiry_base_ms, run.content_bytes), (9, 11));
        assert!(run.live.iter().eq([0, 63, 64, 255]));
        let uses = run.segments.iter();
        let uses: Vec<_> = uses
            .map(|used| (used.segment.0, used.live_refs, used.live_bytes()))
            .collect();
        assert_eq!(uses, [(1, 3, 240), (5, 1, 80)]);
        let marks = run.marks.expect("it was delivered");
        assert!(marks.redelivered.iter().eq([63]));
        assert_eq!(marks.delivery_count(63), 2);
    }

    #[test]
    fn contradictions_are_refused() {
        let wrong = |offset: usize, value: u8| {
            let mut bytes = written();
            bytes[offset] = value;
            decode(&bytes)
        };
        let first = head::SIZE;
        for (offset, value, what) in [
            (head::LIVE.offset, 3, "more live than counted"),
            (head::FLAGS.offset, 3, "an unknown flag"),
            (head::SEGMENT_COUNT.offset, 0, "in no segment"),
            (head::NUMBER.offset + 7, 255, "a seq beyond all"),
            (first, 5, "segments not in order"),
            (
                first + long_use::SEGMENT.offset + 5,
                1,
                "a segment beyond all",
            ),
            (
                first + long_use::LIVE_REFS.offset,
                0,
                "nothing in a segment",
            ),
            (first + long_use::LIVE_BYTES.offset, 1, "no whole words"),
            (
                first + long_use::LIVE_BYTES.offset + 6,
                1,
                "longer than records are",
            ),
        ] {
            assert_eq!(wrong(offset, value), None, "{what}");
        }
    }
}
