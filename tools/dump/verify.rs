//! `verify`: everything in the directory that can be checked, checked.
//!
//! | check | says |
//! |---|---|
//! | superblock | at least one copy is whole |
//! | checkpoint | its checksum, its order, live refs per segment counted again from its entries |
//! | log | every batch from the checkpoint on: checksums, chain, OPEN rules, and that it reaches what was proven durable |
//! | segments | the same for segments that are kept for older messages |
//! | index | every block that the checkpoint names has its checksum; every unsettled message's place holds a PUBLISH that names its queue and seq, with a right payload |
//! | topology | it can be decoded, and names the queues that the log knows |
//! | tail | what lies behind the end of the log: nothing, a torn tail, or what a running broker is writing |

mod index;
mod kept;

use stratamq::storage::StorageError;
use stratamq::storage::format::SUPERBLOCK_FILES;
use stratamq::storage::superblock::{Copy, Superblock};

use crate::error::DumpError;
use crate::log::Log;
use crate::print::{Printer, Row};
use crate::snapshot::Snapshot;
use crate::store::Store;

/// Findings that are listed; more are only counted.
const LISTED_MAX: usize = 1000;

/// What to do about damage in the log or its checkpoint.
pub(crate) const RESTORE: &str =
    "keep a copy of the data directory, then restore this file from a backup of the same directory";

/// What came out of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    /// Nothing is lost, but an operator may want to know.
    Note,
    Damaged,
}

struct Finding {
    check: &'static str,
    outcome: Outcome,
    /// File and offset.
    place: Option<(String, u64)>,
    text: String,
}

/// What all checks found.
#[derive(Default)]
struct Report {
    findings: Vec<Finding>,
    damage_count: u64,
}

impl Report {
    fn add(&mut self, check: &'static str, outcome: Outcome, text: impl Into<String>) {
        self.findings.push(Finding {
            check,
            outcome,
            place: None,
            text: text.into(),
        });
    }

    fn damage(&mut self, check: &'static str, path: String, offset: u64, text: impl Into<String>) {
        self.damage_count += 1;
        if self.findings.len() < LISTED_MAX {
            let place = Some((path, offset));
            self.findings.push(Finding {
                check,
                outcome: Outcome::Damaged,
                place,
                text: text.into(),
            });
        }
    }

    /// True when damage at this place was found before.
    fn has(&self, path: &str, offset: u64) -> bool {
        let is_place = |place: &(String, u64)| place.0 == path && place.1 == offset;
        self.findings
            .iter()
            .any(|finding| finding.place.as_ref().is_some_and(is_place))
    }

    /// Adds an error of the engine if it is damage; other errors end the command.
    fn add_error(&mut self, check: &'static str, error: DumpError) -> Result<(), DumpError> {
        match error {
            DumpError::Storage(StorageError::Damaged {
                path,
                offset,
                detail,
            }) => {
                self.damage(check, path, offset, format!("{detail}; {RESTORE}"));
                Ok(())
            }
            DumpError::Topology {
                path,
                error: reason,
            } if error_is_damage(&reason) => {
                self.damage("topology", path, 0, format!("{reason}; {RESTORE}"));
                Ok(())
            }
            other => Err(other),
        }
    }

    fn print(&self, printer: &mut Printer<'_>) -> Result<(), DumpError> {
        for finding in &self.findings {
            let result = match finding.outcome {
                Outcome::Ok => "ok",
                Outcome::Note => "note",
                Outcome::Damaged => "DAMAGED",
            };
            let (path, offset) = finding.place.clone().unzip();
            let place = finding
                .place
                .as_ref()
                .map(|(path, offset)| format!("{path} at offset {offset}: "));
            let row = Row::new()
                .people("result", result)
                .json("result", result.to_lowercase())
                .text("check", finding.check)
                .json("file", path)
                .json("offset", offset)
                .json("what", finding.text.as_str())
                .people("what", place.unwrap_or_default() + &finding.text);
            printer.row(row)?;
        }
        printer.end()?;
        let is_clean = self.damage_count == 0;
        printer.title(if is_clean { "clean" } else { "damaged" })?;
        printer.machines(
            Row::new()
                .json("result", if is_clean { "clean" } else { "damaged" })
                .json("check", "verdict")
                .json("damage_count", self.damage_count),
        )
    }
}

/// A number of things, in words.
fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn error_is_damage(error: &stratamq::broker::RestoreError) -> bool {
    matches!(error, stratamq::broker::RestoreError::Malformed { .. })
}

pub(crate) fn run(store: &Store, printer: &mut Printer<'_>) -> Result<(), DumpError> {
    let mut report = Report::default();
    let outcome = store.look(|copies, superblock| {
        report = Report::default();
        check(store, copies, superblock, &mut report)?;
        match report.damage_count {
            0 => Ok(()),
            count => Err(DumpError::Damaged {
                path: store.name(),
                count,
            }),
        }
    });
    match outcome {
        // Neither copy of the superblock is whole: nothing else could be looked at.
        Err(error @ DumpError::Storage(StorageError::Damaged { .. })) => {
            report.add_error("superblock", error)?;
            report.print(printer)?;
            Err(DumpError::Damaged {
                path: store.name(),
                count: report.damage_count,
            })
        }
        Err(error @ DumpError::Damaged { .. }) => {
            report.print(printer)?;
            Err(error)
        }
        Err(error) => Err(error),
        Ok(()) => report.print(printer),
    }
}

fn check(
    store: &Store,
    copies: &[Copy; 2],
    superblock: Superblock,
    report: &mut Report,
) -> Result<(), DumpError> {
    check_superblock(copies, &superblock, report);
    let snapshot = match Snapshot::read(store, superblock) {
        Ok(snapshot) => Some(snapshot),
        Err(error) => {
            report.add_error("log", error)?;
            None
        }
    };
    if let Some(snapshot) = &snapshot {
        describe_state(snapshot, report);
    }
    let mut log = Log::read(store, &superblock)?;
    let ends = kept::check(store, &mut log, &superblock, snapshot.as_ref(), report)?;
    match &snapshot {
        Some(snapshot) => {
            index::check(store, snapshot, &ends, report)?;
            index::check_strangers(store, snapshot, report)?;
            check_topology(store, snapshot, report);
            describe_tail(store, snapshot, report);
        }
        None => report.add(
            "index",
            Outcome::Note,
            "not checked: the state at the end of the log is not known",
        ),
    }
    Ok(())
}

fn check_superblock(copies: &[Copy; 2], superblock: &Superblock, report: &mut Report) {
    for (copy, name) in copies.iter().zip(SUPERBLOCK_FILES) {
        match copy {
            Copy::Missing => {
                report.add(
                    "superblock",
                    Outcome::Note,
                    format!("{name} is missing; the next start writes it again"),
                );
            }
            Copy::Invalid => {
                let text = format!(
                    "{name} is not whole: torn by a crash, or damaged; the next start writes it again"
                );
                report.add("superblock", Outcome::Note, text);
            }
            Copy::Valid(_) | Copy::Newer(_) => {}
        }
    }
    let text = format!(
        "sequence {}, epoch {}",
        superblock.sequence, superblock.epoch
    );
    report.add("superblock", Outcome::Ok, text);
}

fn describe_state(snapshot: &Snapshot, report: &mut Report) {
    match &snapshot.checkpoint {
        Some(checkpoint) => {
            let refs: u64 = checkpoint
                .segments
                .values()
                .map(|used| used.live_refs)
                .sum();
            let text = format!(
                "generation {}: {refs} live refs in {} segments, as its entries say",
                checkpoint.header.generation,
                checkpoint.segments.len()
            );
            report.add("checkpoint", Outcome::Ok, text);
        }
        None => report.add("checkpoint", Outcome::Ok, "none yet"),
    }
    let text = format!(
        "from {} to {} in {}, {}",
        snapshot.superblock.begin,
        snapshot.end,
        counted(snapshot.chain.len() as u64, "segment"),
        counted(snapshot.replayed_count, "record")
    );
    report.add("log", Outcome::Ok, text);
}

fn check_topology(store: &Store, snapshot: &Snapshot, report: &mut Report) {
    let topology = &snapshot.topology;
    let without_state = topology
        .queues
        .keys()
        .find(|id| !snapshot.queues.iter().any(|image| image.id.0 == **id));
    let without_name = snapshot
        .queues
        .iter()
        .find(|image| !topology.queues.contains_key(&image.id.0));
    if let Some(id) = without_state {
        let text =
            format!("queue {id} is declared, but the log never heard of it; report this as a bug");
        report.damage("topology", store.name(), 0, text);
    }
    if let Some(image) = without_name {
        let text = format!(
            "the log keeps queue {}, but nobody declared it; report this as a bug",
            image.id
        );
        report.damage("topology", store.name(), 0, text);
    }
    if without_state.is_none() && without_name.is_none() {
        let text = format!(
            "{} vhosts, {} users, {} exchanges, {} queues, {} bindings",
            topology.vhosts.len(),
            topology.users.len(),
            topology.exchanges.len(),
            topology.queues.len(),
            topology.bindings.len()
        );
        report.add("topology", Outcome::Ok, text);
    }
}

fn describe_tail(store: &Store, snapshot: &Snapshot, report: &mut Report) {
    let behind: u64 = snapshot
        .discarded
        .iter()
        .map(|discarded| discarded.remains.len_bytes)
        .sum();
    if store.view.is_running() {
        let (end, synced) = (snapshot.end, snapshot.synced);
        let text = if behind == 0 && end <= synced {
            format!("the broker is running; everything up to {end} is durable")
        } else {
            format!(
                "the broker is running; durable up to {synced}; not yet durable: what is from there to {end}, and \
                 {behind} bytes behind it"
            )
        };
        report.add("tail", Outcome::Ok, text);
    } else if behind == 0 {
        report.add(
            "tail",
            Outcome::Ok,
            format!("the log ends cleanly at {}", snapshot.end),
        );
    } else {
        let text = format!(
            "torn tail: {behind} bytes behind {}, of which nothing was ever confirmed; the next start leaves them out \
             and keeps a copy in quarantine/",
            snapshot.end
        );
        report.add("tail", Outcome::Note, text);
    }
}
