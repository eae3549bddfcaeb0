//! What a broker asks of the kernel, as strace saw it: the proof that confirms wait for the disk.
//!
//! ```text
//!  pwritev(../000000000001.segment, ..)     the log is dirty
//!  fdatasync(../000000000001.segment) = 0   the log is clean
//!  writev(<socket>, "..\0<\0P..")           a confirm leaves: the log must be clean
//! ```
//! The rule holds as drawn when one message is under way at a time, which is how the checks publish.

use std::path::{Path, PathBuf};

/// The first bytes of basic.ack's payload (class 60, method 80), as strace prints them.
const BASIC_ACK: &str = r"\0<\0P";
/// Calls that are looked at.
const TRACED: &str = "trace=fdatasync,fsync,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg";

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
        let bytes = std::fs::read(&self.path).expect("strace has written its log");
        parse(&String::from_utf8_lossy(&bytes))
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

/// Reads a log. A call that was interrupted by another thread's is printed in two lines: name and arguments in the first, the result
/// in the second, which is when it finished.
fn parse(log: &str) -> Vec<Call> {
    let mut unfinished: std::collections::BTreeMap<&str, String> =
        std::collections::BTreeMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((pid, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix("<unfinished ...>") {
            // A confirm counts from the moment it may have left.
            calls.extend(begun.contains(BASIC_ACK).then_some(Call::Confirm));
            unfinished.insert(pid, begun.to_owned());
            continue;
        }
        let whole = match call.strip_prefix("<... ") {
            Some(rest) => {
                let begun = unfinished.remove(pid).unwrap_or_default();
                let end = rest.split_once("resumed>").map_or("", |(_, end)| end);
                // Counted when it began.
                format!("{}{end}", begun.replace(BASIC_ACK, ""))
            }
            None => call.to_owned(),
        };
        calls.extend(classify(&whole));
    }
    calls
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

/// Every confirm left when the log was clean, and there were so many.
pub(crate) fn check_confirms_follow_syncs(calls: &[Call], confirms: usize) -> Result<(), String> {
    let mut is_dirty = true;
    let mut count = 0;
    for (index, call) in calls.iter().enumerate() {
        match call {
            Call::Write => is_dirty = true,
            Call::Sync => is_dirty = false,
            Call::SyncFailed | Call::DirectorySync => {}
            Call::Confirm if is_dirty => {
                let before = &calls[index.saturating_sub(5)..=index];
                return Err(format!(
                    "confirm {count} left before the log was synced: {before:?}"
                ));
            }
            Call::Confirm => {
                count += 1;
                // The next one needs a write and a sync of its own.
                is_dirty = true;
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
    fn early_and_late_confirms_are_noticed() {
        use Call::{Confirm, Sync, SyncFailed, Write};
        let check = |calls: &[Call], confirms| check_confirms_follow_syncs(calls, confirms).is_ok();
        assert!(check(&[Write, Sync, Confirm, Write, Sync, Confirm], 2));
        assert!(!check(&[Write, Sync, Confirm], 2), "one is missing");
        assert!(!check(&[Write, Confirm, Sync], 1), "before the sync");
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
