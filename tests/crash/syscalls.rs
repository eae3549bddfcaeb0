//! What a broker asks of the kernel, as strace saw it: the proof that confirms wait for the disk.
//!
//! ```text
//!  pwritev(../000000000001.segment, ..)     the log is written
//!  fdatasync(../000000000001.segment) = 0   what was written is synced
//!  writev(<socket>, "..\0<\0P..")           a confirm leaves: both must have been since the last one
//! ```
//! The rule holds as drawn when one message is under way at a time, which is how the checks publish.

use std::path::{Path, PathBuf};

/// The first bytes of basic.ack's payload (class 60, method 80), as strace prints them.
const BASIC_ACK: &str = r"\0<\0P";
/// Calls that are looked at.
const TRACED: &str = "trace=fdatasync,fsync,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,\
                      rename,renameat,renameat2";

/// A strace around a broker.
pub(crate) struct Trace {
    path: PathBuf,
}

impl Trace {
    /// Will write to a file in `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("strace.log"),
        }
    }

    /// The words before the broker's command line; `inject` in strace's syntax, empty for none.
    pub(crate) fn wrapper(&self, inject: &str) -> Vec<String> {
        let path = self.path.display().to_string();
        let mut words: Vec<String> = [
            "strace", "-f", "-qq", "-y", "-s", "64", "-o", &path, "-e", TRACED,
        ]
        .map(str::to_owned)
        .to_vec();
        if !inject.is_empty() {
            words.extend(["-e".to_owned(), format!("inject={inject}")]);
        }
        words
    }

    /// The finished calls, in the order they finished.
    pub(crate) fn calls(&self) -> Vec<Call> {
        parse(&self.text())
    }

    /// What was done to files, in the order it was finished.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let text = self.text();
        let lines = lines(&text).into_iter();
        lines.filter_map(|line| change(&line.whole()?)).collect()
    }

    fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).expect("strace has written its log");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A finished call that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// The log was written.
    Write,
    /// The log was synced.
    Sync,
    /// A sync failed.
    SyncFailed,
    /// A directory was synced.
    DirectorySync,
    /// A confirm was sent.
    Confirm,
}

/// A file that was changed; its name without the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Bytes were written from this offset on.
    Written(String, u64),
    /// The file, or the directory, was synced.
    Synced(String),
    /// The file got this name.
    Named(String),
}

/// A line of a log. A call that was interrupted by another thread's is printed in two lines: name and arguments in the
/// first, the result in the second, which is when it finished.
enum Line {
    Begun(String),
    /// The end of a call that has begun before; all of its text.
    Ended(String),
    Whole(String),
}

impl Line {
    /// A finished call.
    fn whole(self) -> Option<String> {
        match self {
            Self::Begun(_) => None,
            Self::Ended(call) | Self::Whole(call) => Some(call),
        }
    }
}

fn lines(log: &str) -> Vec<Line> {
    let mut unfinished: std::collections::BTreeMap<&str, String> =
        std::collections::BTreeMap::new();
    let mut lines = Vec::new();
    for line in log.lines() {
        let Some((pid, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix("<unfinished ...>") {
            unfinished.insert(pid, begun.to_owned());
            lines.push(Line::Begun(begun.to_owned()));
            continue;
        }
        lines.push(match call.strip_prefix("<... ") {
            Some(rest) => {
                let begun = unfinished.remove(pid).unwrap_or_default();
                let end = rest.split_once("resumed>").map_or("", |(_, end)| end);
                Line::Ended(format!("{begun}{end}"))
            }
            None => Line::Whole(call.to_owned()),
        });
    }
    lines
}

fn parse(log: &str) -> Vec<Call> {
    let calls = lines(log).into_iter().filter_map(|line| match line {
        // A confirm counts from the moment it may have left.
        Line::Begun(begun) => begun.contains(BASIC_ACK).then_some(Call::Confirm),
        // Counted when it began.
        Line::Ended(call) => classify(&call.replace(BASIC_ACK, "")),
        Line::Whole(call) => classify(&call),
    });
    calls.collect()
}

/// What a finished call did to a file; `None` for sockets, and for calls that failed.
fn change(call: &str) -> Option<Change> {
    let (name, arguments) = call.split_once('(')?;
    if arguments.contains("= -1 ") {
        return None;
    }
    if name.starts_with("rename") {
        // The last of two or more names in quotes.
        let named = arguments.rsplit('"').nth(1)?;
        return Some(Change::Named(short(named)));
    }
    let path = arguments.split_once('<')?.1.split_once('>')?.0;
    if !path.starts_with('/') {
        return None;
    }
    match name {
        "fdatasync" | "fsync" => Some(Change::Synced(short(path))),
        "pwrite64" | "pwritev" | "pwritev2" => {
            let (before, _) = arguments.rsplit_once(')')?;
            let mut last = before.rsplit(", ");
            // The offset is the last number; flags, where there are some, are words or 0 behind it.
            let offset = match name {
                "pwritev2" => last.nth(1)?,
                _ => last.next()?,
            };
            Some(Change::Written(short(path), offset.trim().parse().ok()?))
        }
        _ => None,
    }
}

/// `log/000000000001.segment` of a whole path: the last two names, or only the last in the data directory itself.
fn short(path: &str) -> String {
    let mut names = path.rsplit('/');
    let last = names.next().unwrap_or_default();
    match names.next() {
        Some(directory @ ("log" | "checkpoint" | "index")) => format!("{directory}/{last}"),
        _ => last.to_owned(),
    }
}

fn classify(call: &str) -> Option<Call> {
    let (name, arguments) = call.split_once('(')?;
    let is_log = arguments.contains(".segment>");
    let has_failed = arguments.contains("= -1 ");
    match name {
        "fdatasync" | "fsync" if has_failed => Some(Call::SyncFailed),
        "fdatasync" | "fsync" if is_log => Some(Call::Sync),
        "fdatasync" | "fsync" => {
            // Other files have an extension in their name, directories have none.
            let path = arguments.split_once('<')?.1.split_once('>')?.0;
            let file_name = path.rsplit_once('/')?.1;
            let is_directory = !file_name.contains('.') && file_name != "reserve";
            is_directory.then_some(Call::DirectorySync)
        }
        _ if arguments.contains(BASIC_ACK) => Some(Call::Confirm),
        _ if is_log => Some(Call::Write),
        _ => None,
    }
}

/// Every confirm left after a write and a sync of its own, and there were so many. On a busy machine a mark that ends an idle
/// second may be written in between, which is nothing to wait for.
pub(crate) fn check_confirms_follow_syncs(calls: &[Call], confirms: usize) -> Result<(), String> {
    let (mut is_written, mut is_synced) = (false, false);
    let mut count = 0;
    for (index, call) in calls.iter().enumerate() {
        match call {
            Call::Write => is_written = true,
            Call::Sync => is_synced |= is_written,
            Call::SyncFailed | Call::DirectorySync => {}
            Call::Confirm if !is_synced => {
                let before = &calls[index.saturating_sub(5)..=index];
                return Err(format!(
                    "confirm {count} left before the log was synced: {before:?}"
                ));
            }
            Call::Confirm => {
                count += 1;
                (is_written, is_synced) = (false, false);
            }
        }
    }
    if count != confirms {
        return Err(format!("{count} confirms seen, {confirms} expected"));
    }
    Ok(())
}

/// A sync failed, and no confirm left after that.
pub(crate) fn check_nothing_follows_a_failed_sync(calls: &[Call]) -> Result<(), String> {
    let Some(failed_at) = calls.iter().position(|call| *call == Call::SyncFailed) else {
        return Err("no sync failed".into());
    };
    let is_after = calls[failed_at..].contains(&Call::Confirm);
    if is_after {
        return Err(format!(
            "a confirm left after a failed sync: {:?}",
            &calls[failed_at..]
        ));
    }
    Ok(())
}

/// A superblock is written only when no checkpoint is under way: the one it names is synced, has its name, and that
/// name is synced. How many were seen, those of an empty store not counted.
pub(crate) fn check_superblocks_follow_checkpoints(changes: &[Change]) -> Result<usize, String> {
    let mut under_way: Option<&'static str> = None;
    let mut count = 0;
    let mut has_one = false;
    for change in changes {
        match change {
            Change::Written(file, _) if file.ends_with(".checkpoint.tmp") => {
                under_way = Some("not synced");
                has_one = true;
            }
            Change::Synced(file) if file.ends_with(".checkpoint.tmp") => {
                under_way = Some("without a name");
            }
            Change::Named(file) if file.ends_with(".checkpoint") => {
                if under_way == Some("not synced") {
                    return Err("a checkpoint was named before it was synced".into());
                }
                under_way = Some("without a durable name");
            }
            Change::Synced(file)
                if file == "checkpoint" && under_way == Some("without a durable name") =>
            {
                under_way = None;
            }
            Change::Written(file, _) if file.starts_with("superblock.") => match under_way {
                Some(what) => {
                    return Err(format!("the superblock names a checkpoint {what}"));
                }
                None => count += usize::from(has_one),
            },
            _ => {}
        }
    }
    Ok(count)
}

/// A segment gets its first batch only when the one before it is synced. How many there were behind the first.
pub(crate) fn check_segments_follow_syncs(changes: &[Change]) -> Result<usize, String> {
    let mut dirty: Option<&String> = None;
    let mut last: Option<&String> = None;
    let mut count = 0;
    for change in changes {
        match change {
            // The header is written ahead.
            Change::Written(file, offset) if file.ends_with(".segment") && *offset > 0 => {
                if let Some(before) = dirty.filter(|before| *before != file) {
                    return Err(format!("{file} was written before {before} was synced"));
                }
                count += usize::from(last.is_some_and(|last| last != file));
                (dirty, last) = (Some(file), Some(file));
            }
            Change::Synced(file) if dirty == Some(file) => dirty = None,
            _ => {}
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"
16281 fsync(12</tmp/d/superblock.1.tmp>) = 0
16281 fsync(13</tmp/d/log>)         = 0
16284 pwritev(12</tmp/d/log/000000000001.segment>, [{iov_base="SMQb@"..., iov_len=840}], 1, 4096) = 4096
16284 fdatasync(12</tmp/d/log/000000000001.segment> <unfinished ...>
16283 writev(14<socket:[1]>, [{iov_base="\1\0\1\0\0\0\4\0U\0\v\316", iov_len=12}], 1) = 12
16284 <... fdatasync resumed>)          = 0 (DELAYED)
16283 writev(14<socket:[1]>, [{iov_base="\1\0\1\0\0\0\r\0<\0P\0\0\0\0\0\0\0\1\0\316", iov_len=21}], 1 <unfinished ...>
16284 fdatasync(12</tmp/d/log/000000000001.segment>) = -1 EIO (Input/output error) (INJECTED)
16283 <... writev resumed>) = 21
"#;

    #[test]
    fn a_strace_log_is_read() {
        use Call::{Confirm, DirectorySync, Sync, SyncFailed, Write};
        assert_eq!(
            parse(LOG),
            [DirectorySync, Write, Sync, Confirm, SyncFailed]
        );
    }

    #[test]
    fn changes_of_files_are_read() {
        let log = r#"
1 rename("/d/checkpoint/0001.checkpoint.tmp", "/d/checkpoint/0001.checkpoint") = 0
2 pwrite64(7</d/superblock.0>, "SMQs"..., 4096, 0 <unfinished ...>
1 fsync(9</d/checkpoint>) = 0
2 <... pwrite64 resumed>) = 4096
1 fdatasync(9</d/log/000000000001.segment>) = -1 EIO (Input/output error)
1 writev(14<socket:[1]>, [{iov_base="\1", iov_len=1}], 1) = 1
1 pwritev(12</d/log/000000000001.segment>, [{iov_base="(1, 2)"..., iov_len=840}], 1, 4096) = 840
"#;
        let found: Vec<Change> = lines(log)
            .into_iter()
            .filter_map(|line| change(&line.whole()?))
            .collect();
        assert_eq!(
            found,
            [
                Change::Named("checkpoint/0001.checkpoint".into()),
                Change::Synced("checkpoint".into()),
                Change::Written("superblock.0".into(), 0),
                Change::Written("log/000000000001.segment".into(), 4096),
            ]
        );
    }

    #[test]
    fn swapped_orders_are_noticed() {
        let written = |file: &str, at| Change::Written(file.into(), at);
        let synced = |file: &str| Change::Synced(file.into());
        let (one, two) = ("log/1.segment", "log/2.segment");
        let right = [
            written(one, 4096),
            written(two, 0),
            synced(one),
            written(two, 4096),
        ];
        assert_eq!(check_segments_follow_syncs(&right), Ok(1));
        let swapped = [written(one, 4096), written(two, 4096), synced(one)];
        assert!(check_segments_follow_syncs(&swapped).is_err());
        let temp = "checkpoint/1.checkpoint.tmp";
        let named = Change::Named("checkpoint/1.checkpoint".into());
        let steps = [
            written(temp, 0),
            synced(temp),
            named,
            synced("checkpoint"),
            written("superblock.0", 0),
        ];
        assert_eq!(check_superblocks_follow_checkpoints(&steps), Ok(1));
        for left_out in 1..4 {
            let mut steps = steps.to_vec();
            steps.remove(left_out);
            assert!(
                check_superblocks_follow_checkpoints(&steps).is_err(),
                "{left_out}"
            );
        }
    }

    #[test]
    fn early_and_late_confirms_are_noticed() {
        use Call::{Confirm, Sync, SyncFailed, Write};
        let check = |calls: &[Call], confirms| check_confirms_follow_syncs(calls, confirms).is_ok();
        assert!(check(&[Write, Sync, Confirm, Write, Sync, Confirm], 2));
        assert!(!check(&[Write, Sync, Confirm], 2), "one is missing");
        assert!(!check(&[Write, Confirm, Sync], 1), "before the sync");
        assert!(check(&[Write, Sync, Write, Confirm], 1), "an idle mark");
        assert!(
            !check(&[Write, Sync, Confirm, Sync, Write, Confirm], 2),
            "a sync that comes before the write"
        );
        assert!(
            !check(&[Write, Sync, Confirm, Write, Confirm], 2),
            "no sync of its own"
        );
        assert!(
            !check(&[Write, Sync, Confirm, Confirm], 2),
            "no write of its own"
        );
        assert!(check_nothing_follows_a_failed_sync(&[Confirm, SyncFailed]).is_ok());
        assert!(check_nothing_follows_a_failed_sync(&[SyncFailed, Confirm]).is_err());
        assert!(check_nothing_follows_a_failed_sync(&[Sync, Confirm]).is_err());
    }
}
