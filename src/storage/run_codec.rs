//! Runs as a checkpoint stores them: a fixed head, what they have in each segment, and marks if there are any.

use smallvec::SmallVec;

use super::format::{run as head, run_flag, run_marks, run_use};
use super::run::{FiledRun, RUN_LEN, RunMarks, RunSet, RunUse};
use super::types::SegmentId;

/// Length of a run in bytes.
pub(crate) fn len_bytes(run: &FiledRun) -> usize {
    let marks = if run.marks.is_some() {
        run_marks::SIZE
    } else {
        0
    };
    head::SIZE + run.segments.len() * run_use::SIZE + marks
}

/// Appends a run.
pub(crate) fn encode(run: &FiledRun, out: &mut Vec<u8>) {
    let mut bytes = [0; head::SIZE];
    let segment_count = u16::try_from(run.segments.len()).expect("a run has at most 256 messages");
    head::NUMBER.put(&mut bytes, run.number);
    head::BLOCK.put(&mut bytes, run.block);
    head::CRC.put(&mut bytes, run.crc);
    head::EXPIRY_BASE.put(&mut bytes, run.expiry_base_ms);
    head::CONTENT_BYTES.put(&mut bytes, run.content_bytes);
    bytes[head::LIVE.offset..head::LIVE.end()].copy_from_slice(&set_bytes(&run.live));
    head::SEGMENT_COUNT.put(&mut bytes, segment_count);
    head::FLAGS.put(
        &mut bytes,
        if run.marks.is_some() {
            run_flag::MARKS
        } else {
            0
        },
    );
    out.extend_from_slice(&bytes);
    for used in &run.segments {
        let mut bytes = [0; run_use::SIZE];
        run_use::SEGMENT.put(&mut bytes, used.segment.0);
        run_use::LIVE_REFS.put(&mut bytes, used.live_refs);
        run_use::LIVE_BYTES.put(&mut bytes, used.live_bytes);
        out.extend_from_slice(&bytes);
    }
    if let Some(marks) = &run.marks {
        out.extend_from_slice(&set_bytes(&marks.redelivered));
        out.extend_from_slice(&marks.delivery_counts);
    }
}

fn set_bytes(set: &RunSet) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(set.words()) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn set_of(bytes: &[u8]) -> RunSet {
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.try_into().expect("a chunk of 8"));
    }
    RunSet::from_words(words)
}

/// The head of a run, and how many bytes follow.
pub(crate) struct Head {
    run: FiledRun,
    segment_count: usize,
    has_marks: bool,
}

impl Head {
    /// Reads [`format::run`](super::format::run); `None` when a field is impossible.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let flags = u8::try_from(head::FLAGS.get(bytes)).ok()?;
        let live = set_of(bytes.get(head::LIVE.offset..head::LIVE.end())?);
        let segment_count = usize::try_from(head::SEGMENT_COUNT.get(bytes)).ok()?;
        let number = head::NUMBER.get(bytes);
        let is_possible = flags & !run_flag::KNOWN == 0
            && !live.is_empty()
            && (1..=RUN_LEN).contains(&segment_count)
            && number < u64::MAX / super::run::RUN_SEQS;
        is_possible.then(|| Self {
            run: FiledRun {
                number,
                block: head::BLOCK.get_u32(bytes),
                crc: head::CRC.get_u32(bytes),
                expiry_base_ms: head::EXPIRY_BASE.get(bytes),
                live,
                marks: None,
                segments: SmallVec::new(),
                content_bytes: head::CONTENT_BYTES.get(bytes),
            },
            segment_count,
            has_marks: flags & run_flag::MARKS != 0,
        })
    }

    /// Bytes that follow.
    pub(crate) fn rest_len(&self) -> usize {
        let marks = if self.has_marks { run_marks::SIZE } else { 0 };
        self.segment_count * run_use::SIZE + marks
    }

    /// The run with the `rest_len` bytes that follow; `None` when they contradict its head.
    pub(crate) fn finish(mut self, rest: &[u8]) -> Option<FiledRun> {
        let (uses, marks) = rest.split_at_checked(self.segment_count * run_use::SIZE)?;
        for bytes in uses.chunks_exact(run_use::SIZE) {
            let used = RunUse {
                segment: SegmentId(run_use::SEGMENT.get(bytes)),
                live_refs: run_use::LIVE_REFS.get_u32(bytes),
                live_bytes: run_use::LIVE_BYTES.get(bytes),
            };
            let is_behind = self
                .run
                .segments
                .last()
                .is_none_or(|last| last.segment < used.segment);
            if !is_behind || used.live_refs == 0 {
                return None;
            }
            self.run.segments.push(used);
        }
        if self.has_marks {
            let (redelivered, counts) =
                marks.split_at_checked(run_marks::DELIVERY_COUNTS.offset)?;
            self.run.marks = Some(Box::new(RunMarks {
                redelivered: set_of(redelivered),
                delivery_counts: counts.try_into().ok()?,
            }));
        }
        (!self.run.is_touched()).then_some(self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> FiledRun {
        let mut live = RunSet::default();
        let mut marks = RunMarks::default();
        for index in [0, 63, 64, 255] {
            live.insert(index);
            marks.set_delivery_count(index, index);
        }
        marks.redelivered.insert(63);
        let used = |segment, live_refs| RunUse {
            segment: SegmentId(segment),
            live_refs,
            live_bytes: 80,
        };
        FiledRun {
            number: 7,
            block: 3,
            crc: 0xdead_beef,
            expiry_base_ms: 9,
            live,
            marks: Some(Box::new(marks)),
            segments: [used(1, 3), used(5, 1)].into_iter().collect(),
            content_bytes: 11,
        }
    }

    fn decode(bytes: &[u8]) -> Option<FiledRun> {
        let (fixed, rest) = bytes.split_at_checked(head::SIZE)?;
        let head = Head::decode(fixed)?;
        assert!(head.rest_len() <= rest.len());
        let len = head.rest_len();
        head.finish(&rest[..len])
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for run in [
            run(),
            FiledRun {
                marks: None,
                ..run()
            },
        ] {
            let mut bytes = Vec::new();
            encode(&run, &mut bytes);
            assert_eq!(bytes.len(), len_bytes(&run));
            assert_eq!(decode(&bytes), Some(run));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let mut bytes = Vec::new();
        encode(&run(), &mut bytes);
        let wrong = |offset: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[offset] = value;
            decode(&bytes)
        };
        assert_eq!(wrong(head::LIVE.offset, 3), None, "more live than counted");
        assert_eq!(wrong(head::FLAGS.offset, 3), None, "an unknown flag");
        assert_eq!(wrong(head::SEGMENT_COUNT.offset, 0), None, "in no segment");
        assert_eq!(wrong(head::SIZE, 5), None, "segments not in order");
        assert_eq!(
            wrong(head::SIZE + run_use::LIVE_REFS.offset, 0),
            None,
            "nothing in a segment"
        );
        assert_eq!(
            wrong(head::NUMBER.offset + 7, 255),
            None,
            "a seq beyond all"
        );
    }
}
