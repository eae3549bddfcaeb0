//! Runs as a checkpoint stores them: a fixed head, and what a full run without deliveries has no need of.
//!
//! ```text
//! | head: first segment, all live | further segments .. | live set | marks |       40 bytes for most runs
//! ```

use super::format::{live_set, run as head, run_flag, run_marks, run_use};
use super::long_run_codec as long;
use super::run::{FiledRun, LiveSet, RUN_LEN, RUN_SEQS, RunMarks, RunSet, RunUse, RunUses};
use super::types::SegmentId;

/// The largest sum of sizes that its field holds; more than 256 bodies of 4 GiB have.
const CONTENT_BYTES_MAX: u64 = (1 << (8 * head::CONTENT_BYTES.size)) - 1;

/// Length of a run in bytes.
pub(crate) fn len_bytes(run: &FiledRun) -> usize {
    let more = run.segments.len().saturating_sub(1) * run_use::SIZE;
    let live = if run.live.is_all() { 0 } else { live_set::SIZE };
    let marks = if run.marks.is_some() {
        run_marks::SIZE
    } else {
        0
    };
    head::SIZE + more + live + marks
}

/// Appends a run.
///
/// # Panics
/// When the run has no message: a run without any is forgotten.
pub(crate) fn encode(run: &FiledRun, out: &mut Vec<u8>) {
    let (first, more) = run
        .segments
        .split_first()
        .expect("a run has a message, which lies somewhere");
    let more_count = u8::try_from(more.len()).expect("a run has at most 256 messages");
    let mut flags = 0;
    if !run.live.is_all() {
        flags |= run_flag::PARTIAL;
    }
    if run.marks.is_some() {
        flags |= run_flag::MARKS;
    }
    let mut bytes = [0; head::SIZE];
    head::NUMBER.put(&mut bytes, run.number);
    head::BLOCK.put(&mut bytes, run.block);
    head::CRC.put(&mut bytes, run.crc);
    head::EXPIRY_BASE.put(&mut bytes, run.expiry_base_ms);
    head::CONTENT_BYTES.put(&mut bytes, run.content_bytes.min(CONTENT_BYTES_MAX));
    head::SEGMENT.put(&mut bytes, first.segment.0);
    head::LIVE_WORDS.put(&mut bytes, first.live_words);
    head::MORE_SEGMENTS.put(&mut bytes, more_count);
    head::FLAGS.put(&mut bytes, flags);
    out.extend_from_slice(&bytes);
    for used in more {
        let mut bytes = [0; run_use::SIZE];
        run_use::SEGMENT.put(&mut bytes, used.segment.0);
        run_use::LIVE_WORDS.put(&mut bytes, used.live_words);
        run_use::LIVE_REFS.put(&mut bytes, used.live_refs);
        out.extend_from_slice(&bytes);
    }
    if !run.live.is_all() {
        out.extend_from_slice(&set_bytes(&run.live.set()));
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

/// The set that 32 bytes spell.
pub(super) fn set_of(bytes: &[u8]) -> RunSet {
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.try_into().expect("a chunk of 8"));
    }
    RunSet::from_words(words)
}

/// The marks that `bytes` spell; `None` when there are too few.
pub(super) fn marks_of(bytes: &[u8]) -> Option<Box<RunMarks>> {
    let (redelivered, counts) = bytes.split_at_checked(run_marks::DELIVERY_COUNTS.offset)?;
    Some(Box::new(RunMarks {
        redelivered: set_of(redelivered),
        delivery_counts: counts.try_into().ok()?,
    }))
}

/// Adds what a run has in a segment; `None` when it has nothing there, or the segment is not behind the last one or
/// none that can be.
pub(super) fn add_use(uses: &mut RunUses, used: RunUse) -> Option<()> {
    let is_behind = uses.last().is_none_or(|last| last.segment < used.segment);
    if !is_behind || used.live_refs == 0 || used.segment > SegmentId::MAX {
        return None;
    }
    uses.push(used);
    Some(())
}

/// True when every seq of a run with this number is a seq.
pub(super) fn is_number(number: u64) -> bool {
    number < u64::MAX / RUN_SEQS
}

/// How the runs of a section are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As described here.
    Short,
    /// As version 2 wrote them.
    Long,
}

impl Form {
    /// Length of what a run begins with.
    pub(crate) const fn head_len(self) -> usize {
        match self {
            Self::Short => head::SIZE,
            Self::Long => super::format::long_run::SIZE,
        }
    }

    /// Reads what a run begins with; `None` when a field is impossible.
    pub(crate) fn decode_head(self, bytes: &[u8]) -> Option<Head> {
        match self {
            Self::Short => ShortHead::decode(bytes).map(Head::Short),
            Self::Long => long::Head::decode(bytes).map(Head::Long),
        }
    }
}

/// The head of a run, and how many bytes follow.
pub(crate) enum Head {
    Short(ShortHead),
    Long(long::Head),
}

impl Head {
    /// Bytes that follow.
    pub(crate) fn rest_len(&self) -> usize {
        match self {
            Self::Short(head) => head.rest_len(),
            Self::Long(head) => head.rest_len(),
        }
    }

    /// The run with the `rest_len` bytes that follow; `None` when they contradict its head.
    pub(crate) fn finish(self, rest: &[u8]) -> Option<FiledRun> {
        match self {
            Self::Short(head) => head.finish(rest),
            Self::Long(head) => head.finish(rest),
        }
    }
}

/// See [`Head`].
pub(crate) struct ShortHead {
    run: FiledRun,
    more_count: usize,
    flags: u8,
}

impl ShortHead {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let flags = u8::try_from(head::FLAGS.get(bytes)).ok()?;
        let number = head::NUMBER.get(bytes);
        let mut segments = RunUses::new();
        let first = RunUse {
            segment: SegmentId(head::SEGMENT.get(bytes)),
            // All of it, less what the others have.
            live_refs: u32::try_from(RUN_LEN).ok()?,
            live_words: head::LIVE_WORDS.get_u32(bytes),
        };
        add_use(&mut segments, first)?;
        (flags & !run_flag::KNOWN == 0 && is_number(number)).then(|| Self {
            run: FiledRun {
                number,
                block: head::BLOCK.get_u32(bytes),
                crc: head::CRC.get_u32(bytes),
                expiry_base_ms: head::EXPIRY_BASE.get(bytes),
                live: LiveSet::ALL,
                marks: None,
                segments,
                content_bytes: head::CONTENT_BYTES.get(bytes),
            },
            more_count: usize::try_from(head::MORE_SEGMENTS.get(bytes)).unwrap_or(0),
            flags,
        })
    }

    fn rest_len(&self) -> usize {
        let part = |flag: u8, len: usize| if self.flags & flag != 0 { len } else { 0 };
        self.more_count * run_use::SIZE
            + part(run_flag::PARTIAL, live_set::SIZE)
            + part(run_flag::MARKS, run_marks::SIZE)
    }

    fn finish(mut self, rest: &[u8]) -> Option<FiledRun> {
        let (uses, mut rest) = rest.split_at_checked(self.more_count * run_use::SIZE)?;
        let mut run = self.run;
        if self.flags & run_flag::PARTIAL != 0 {
            let (live, behind) = rest.split_at_checked(live_set::SIZE)?;
            run.live = set_of(live).into();
            rest = behind;
        }
        let is_said = run.live.is_all() == (self.flags & run_flag::PARTIAL == 0);
        if !is_said || run.live.is_empty() {
            return None;
        }
        let mut first_refs = run.live.len();
        for bytes in uses.chunks_exact(run_use::SIZE) {
            let used = RunUse {
                segment: SegmentId(run_use::SEGMENT.get(bytes)),
                live_refs: run_use::LIVE_REFS.get_u32(bytes),
                live_words: run_use::LIVE_WORDS.get_u32(bytes),
            };
            first_refs = first_refs.checked_sub(used.live_refs)?;
            add_use(&mut run.segments, used)?;
        }
        if first_refs == 0 {
            return None;
        }
        run.segments.first_mut()?.live_refs = first_refs;
        if self.flags & run_flag::MARKS != 0 {
            run.marks = Some(marks_of(rest)?);
        }
        self.more_count = 0;
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(segment: u64, live_refs: u32) -> RunUse {
        RunUse {
            segment: SegmentId(segment),
            live_refs,
            live_words: live_refs * 10,
        }
    }

    fn full() -> FiledRun {
        FiledRun {
            number: 7,
            block: 3,
            crc: 0xdead_beef,
            expiry_base_ms: 9,
            live: LiveSet::ALL,
            marks: None,
            segments: std::iter::once(used(5, 256)).collect(),
            content_bytes: 11,
        }
    }

    fn partial() -> FiledRun {
        let mut live = RunSet::default();
        let mut marks = RunMarks::default();
        for index in [0, 63, 64, 255] {
            live.insert(index);
            marks.set_delivery_count(index, index);
        }
        marks.redelivered.insert(63);
        FiledRun {
            live: live.into(),
            marks: Some(Box::new(marks)),
            segments: [used(1, 2), used(5, 1), used(1 << 33, 1)]
                .into_iter()
                .collect(),
            ..full()
        }
    }

    fn encoded(run: &FiledRun) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(run, &mut bytes);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<FiledRun> {
        let (fixed, rest) = bytes.split_at_checked(Form::Short.head_len())?;
        let head = Form::Short.decode_head(fixed)?;
        assert!(head.rest_len() <= rest.len());
        let len = head.rest_len();
        head.finish(&rest[..len])
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let marked = FiledRun {
            marks: partial().marks,
            ..full()
        };
        let unmarked = FiledRun {
            marks: None,
            ..partial()
        };
        let spread = FiledRun {
            segments: (1..=256).map(|segment| used(segment, 1)).collect(),
            ..full()
        };
        for run in [full(), partial(), marked, unmarked, spread] {
            let bytes = encoded(&run);
            assert_eq!(bytes.len(), len_bytes(&run));
            assert_eq!(decode(&bytes), Some(run));
        }
    }

    #[test]
    fn full_run_is_short() {
        assert_eq!(len_bytes(&full()), 40);
    }

    #[test]
    fn contradictions_are_refused() {
        let wrong = |offset: usize, value: u8| {
            let mut bytes = encoded(&partial());
            bytes[offset] = value;
            decode(&bytes)
        };
        let second = head::SIZE;
        let live = head::SIZE + 2 * run_use::SIZE;
        for (offset, value, what) in [
            (head::FLAGS.offset, 7, "an unknown flag"),
            (head::NUMBER.offset + 7, 255, "a seq beyond all"),
            (head::SEGMENT.offset + 4, 9, "a segment beyond all"),
            (head::SEGMENT.offset, 5, "segments not in order"),
            (second, 1, "segments not in order"),
            (second + run_use::LIVE_REFS.offset, 0, "nothing there"),
            (
                second + run_use::LIVE_REFS.offset,
                3,
                "nothing in the first",
            ),
            (second + run_use::LIVE_REFS.offset, 9, "more than live"),
        ] {
            assert_eq!(wrong(offset, value), None, "{what}");
        }
        for (value, what) in [(0, "no message is live"), (255, "all are, and it says not")] {
            let mut bytes = encoded(&partial());
            bytes[live..live + live_set::SIZE].fill(value);
            assert_eq!(decode(&bytes), None, "{what}");
        }
    }
}
