//! The engine's 43 invariants, and that each of them has a test that names it.
//!
//! A test names an invariant by its own name (`i07_i08_files_of_..`) or by a line of its doc comment (`Proves I7, I8.`).
//! The test here fails when the last test that names one disappears.

#[path = "support/sources.rs"]
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sources::sources;

/// What must hold, in short.
const INVARIANTS: [&str; 43] = [
    "a confirm is sent only when the watermark covers the record",
    "the watermark covers only what was written before the sync that raised it",
    "the watermark enters a segment only after the sync of the one before it",
    "a segment gets its first batch only after its header and name are durable",
    "recovery yields a prefix of the log with all confirmed records",
    "recovery is idempotent",
    "no file of an earlier incarnation is ever changed",
    "LSNs and segment numbers are never used twice",
    "a stale batch in a recycled segment never validates",
    "below the watermark an invalid batch is damage, above it a torn tail",
    "discarded bytes are kept and counted",
    "after a failed write or sync nothing is confirmed and the engine ends",
    "a failed sync is never repeated",
    "every delivered record passed its checksum after it was read",
    "a message that cannot be read is never settled implicitly",
    "seqs are unique and rise in log order; delivery is in seq order but for requeues",
    "gaps in the seqs are legal",
    "settling is idempotent and commutes with replay",
    "a durable ack never comes back",
    "acks that a crash can lose are bounded",
    "what was delivered before a crash is redelivered after it",
    "delivery counts and places survive a restart",
    "a checkpoint holds exactly the effects of what precedes it, and that is durable",
    "replay from zero, from a checkpoint and without index files give the same state",
    "one copy of the superblock is always whole, and what it names is there",
    "a segment is freed only when a durable checkpoint needs nothing in it",
    "live refs per segment are those counted from scratch",
    "compaction never changes a sealed segment and loses or doubles nothing",
    "disk use is bounded by what is alive",
    "with no byte free, everything but publishing works",
    "groups are all or nothing",
    "a transaction is invisible until it is durable",
    "topology and messages share one order",
    "two processes never open one directory",
    "an unknown version is refused, every released one opens",
    "decoders neither panic nor read or allocate beyond the file",
    "memory does not grow with the backlog",
    "syncs and bytes do not depend on the number of queues",
    "no file is touched on a network thread",
    "un-durable bytes and reads are capped",
    "transient messages never come back and never hold the log",
    "elision confirms only what consumers acked",
    "state does not depend on places in the log",
];

/// Those without a test, and why. At most three.
const WITHOUT: [(usize, &str); 1] = [(
    42,
    "messages that are acked before their commit are not elided: every one is written",
)];
const WITHOUT_MAX: usize = 3;

/// Numbers in the name of a test: `i07_i08_rest` gives 7 and 8.
fn numbers_in_name(name: &str) -> BTreeSet<usize> {
    let words = name.split('_');
    let numbers = words.map_while(|word| {
        let digits = word.strip_prefix('i').filter(|digits| digits.len() == 2)?;
        digits.parse().ok()
    });
    numbers.collect()
}

/// Numbers in a line of a comment: `Proves I7, I8.`
fn numbers_in_comment(line: &str) -> BTreeSet<usize> {
    let Some((_, list)) = line.split_once("Proves I") else {
        return BTreeSet::new();
    };
    list.split(", I")
        .map_while(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        })
        .collect()
}

/// Tests of a source by the invariants they name.
fn tests_in(source: &str) -> Vec<(String, BTreeSet<usize>)> {
    let mut tests = Vec::new();
    let (mut is_test, mut named) = (false, BTreeSet::new());
    for line in source.lines().map(str::trim) {
        if line.starts_with("///") {
            named.extend(numbers_in_comment(line));
        } else if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            let name = rest.split('(').next().unwrap_or_default();
            if is_test {
                named.extend(numbers_in_name(name));
                tests.push((name.to_owned(), std::mem::take(&mut named)));
            }
            (is_test, named) = (false, BTreeSet::new());
        } else if !line.starts_with("#[") && !line.is_empty() {
            (is_test, named) = (false, BTreeSet::new());
        }
    }
    tests
}

#[test]
fn the_finder_knows_both_ways_of_naming() {
    let source = "/// Proves I7, I12.\n#[test]\nfn a() {\n}\n/// Proves I9.\nfn no_test() {}\n\
                  #[test]\nfn i03_i41_b() {}\n#[test]\nfn i3_c() {}";
    let found: BTreeMap<String, BTreeSet<usize>> = tests_in(source).into_iter().collect();
    assert_eq!(found["a"], BTreeSet::from([7, 12]));
    assert_eq!(found["i03_i41_b"], BTreeSet::from([3, 41]));
    assert_eq!(found["i3_c"], BTreeSet::new());
    assert!(!found.contains_key("no_test"));
}

#[test]
fn every_invariant_has_a_test_that_names_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directories = ["src", "tests", "tools"];
    let paths = directories
        .iter()
        .flat_map(|name| sources(&root.join(name)));
    let mut named: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for path in paths {
        let source = std::fs::read_to_string(&path).expect("a source is text");
        for (test, numbers) in tests_in(&source) {
            for number in numbers {
                assert!(
                    (1..=INVARIANTS.len()).contains(&number),
                    "{test} names I{number}, which is none"
                );
                named.entry(number).or_default().insert(test.clone());
            }
        }
    }
    for (number, tests) in &named {
        let text = INVARIANTS[number - 1];
        println!("I{number:<3} {text}: {}", Vec::from_iter(tests).len());
    }
    assert!(WITHOUT.len() <= WITHOUT_MAX);
    let missing: Vec<String> = (1..=INVARIANTS.len())
        .filter(|number| !named.contains_key(number))
        .filter(|number| WITHOUT.iter().all(|(without, _)| without != number))
        .map(|number| format!("I{number}: {}", INVARIANTS[number - 1]))
        .collect();
    assert!(missing.is_empty(), "no test names {missing:#?}");
}

/// Calls of the engine that wait for the disk.
const BLOCKING: [&str; 8] = [
    "storage.read(",
    "storage.read_many(",
    "storage.read_each(",
    "storage.read_run(",
    "storage.checkpoint(",
    "storage.file_runs(",
    "storage.scrubber(",
    "storage.close(",
];
/// Whoever makes such calls, each on a thread of its own: before the runtime serves, or after it.
const OWN_THREADS: [&str; 8] = [
    "server/readers.rs",
    "server/checkpointer.rs",
    "server/scrubber.rs",
    "server/filing.rs",
    "server/start.rs",
    "server/length_limits.rs",
    "server/mod.rs",
    "server/admin/mod.rs",
];

/// The rooms in which network threads run have no file, and what waits for the disk is called on other threads.
#[test]
fn i39_no_file_is_touched_on_a_network_thread() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&root) {
        let name = path.strip_prefix(&root).expect("it is below").display();
        let name = name.to_string();
        let source = std::fs::read_to_string(&path).expect("a source is text");
        let is_test = name.contains("tests") || name.contains("testing");
        if name.starts_with("disk/") || name.starts_with("storage/") || is_test {
            continue;
        }
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        for line in code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            for door in [
                "std::fs",
                "tokio::fs",
                "fs::File",
                "OpenOptions",
                "block_in_place",
            ] {
                // The admin socket's name is no data, and is removed once, before anybody listens.
                let is_socket = name == "server/admin/mod.rs" && line.contains("std::fs");
                assert!(!line.contains(door) || is_socket, "{name}: {line}");
            }
            let call = BLOCKING.iter().find(|call| line.contains(*call));
            assert!(
                call.is_none() || OWN_THREADS.contains(&name.as_str()),
                "{name} waits for the disk: {line}"
            );
        }
    }
}
