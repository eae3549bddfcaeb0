//! The rows of the behaviour reference, and that each of them has a test that names it, stands among the deviations, or is
//! known to be open.
//!
//! ```text
//!   row ---+--- a test names it, in its doc comment or inside         `/// CO-13 to CO-16.`
//!          +--- tests/DEVIATIONS.md has it in its first column         ours is different, and why
//!          +--- tests/rows/no-claims.txt lists it with a reason        it says nothing about what a broker like ours does
//!          +--- tests/rows/pending.txt lists it                        not shown yet: the list only gets shorter
//! ```
//! A row in two of these places, or in none, fails here. `cargo test --test rows -- --nocapture` prints the sums.

#[path = "support/sources.rs"]
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sources::sources;

/// Rows by their letters: how many there are, and what they are about.
const GROUPS: [(&str, u32, &str); 41] = [
    ("FR", 16, "framing"),
    ("PP", 5, "content properties"),
    ("FT", 5, "field tables"),
    ("CN", 63, "connections"),
    ("ER", 6, "errors"),
    ("CH", 12, "channels"),
    ("EX", 19, "exchanges"),
    ("QU", 33, "queues"),
    ("BI", 11, "bindings"),
    ("RT", 21, "routing"),
    ("PB", 10, "publishing"),
    ("CF", 14, "publisher confirms"),
    ("TX", 14, "transactions"),
    ("CO", 20, "consumers"),
    ("QS", 9, "prefetch"),
    ("GT", 7, "basic.get"),
    ("AK", 21, "acknowledgements"),
    ("TT", 18, "time to live"),
    ("LL", 11, "length limits"),
    ("DL", 24, "dead-lettering"),
    ("PR", 7, "priorities"),
    ("SA", 6, "single active consumer"),
    ("CC", 8, "CC, BCC, user-id"),
    ("DR", 12, "direct reply-to"),
    ("QQ", 9, "quorum queues"),
    ("ST", 7, "streams"),
    ("PO", 12, "policies"),
    ("AU", 6, "users"),
    ("VH", 6, "virtual hosts"),
    ("AZ", 5, "authorization"),
    ("LM", 13, "limits"),
    ("AL", 10, "alarms"),
    ("XP", 8, "further exchange types"),
    ("SY", 3, "system exchanges"),
    ("CL", 10, "what client libraries depend on"),
    ("VD", 22, "choices between versions"),
    ("PS", 8, "promises of persistence"),
    ("CT", 13, "when a confirm is sent"),
    ("TD", 4, "durability of transactions"),
    ("AD", 4, "acknowledgements on disk"),
    ("MD", 6, "limits of memory and disk"),
];

/// Most entries the list of deviations may have.
const DEVIATIONS_MAX: usize = 25;

type Row = (String, u32);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn known_rows() -> BTreeSet<Row> {
    let rows = GROUPS
        .iter()
        .flat_map(|(letters, count, _)| (1..=*count).map(|number| ((*letters).to_owned(), number)));
    rows.collect()
}

/// A word that is the name of a row, punctuation around it aside: `(CN-3,` gives CN-3.
fn row_of(word: &str) -> Option<Row> {
    let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let (letters, digits) = word.split_once('-')?;
    let is_known = GROUPS.iter().any(|(known, ..)| *known == letters);
    let number = digits.parse().ok()?;
    is_known.then(|| (letters.to_owned(), number))
}

/// All rows that a text names; `CN-3 to CN-7` names five.
fn rows_in(text: &str) -> BTreeSet<Row> {
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c == '/' || c == '|')
        .collect();
    let mut found = BTreeSet::new();
    for (index, word) in words.iter().enumerate() {
        let Some((letters, number)) = row_of(word) else {
            continue;
        };
        let is_range = words.get(index + 1) == Some(&"to");
        let last = words.get(index + 2).and_then(|word| row_of(word));
        let last = last.filter(|(last, _)| is_range && *last == letters);
        let last = last.map_or(number, |(_, last)| last);
        found.extend((number..=last).map(|number| (letters.clone(), number)));
    }
    found
}

/// The rows that tests of a source name: in the comments above them and in those between their lines.
fn rows_of_tests(source: &str) -> BTreeSet<Row> {
    let mut found = BTreeSet::new();
    let (mut comment, mut is_test) = (String::new(), false);
    let indent = indent_of_tests(source);
    for line in source.lines() {
        let text = line.trim();
        if is_test {
            if let Some((_, said)) = text.split_once("//") {
                found.extend(rows_in(said));
            }
            // The test's own closing brace stands where its attribute did.
            is_test = !(text == "}" && line.len() - line.trim_start().len() <= indent);
        } else if let Some(said) = text.strip_prefix("///") {
            comment.push_str(said);
            comment.push('\n');
        } else if text == "#[test]" {
            is_test = true;
            found.extend(rows_in(&comment));
            comment.clear();
        } else if !text.starts_with("#[") {
            comment.clear();
        }
    }
    found
}

/// Columns before `#[test]`: tests stand at the top of a file or in one module of it.
fn indent_of_tests(source: &str) -> usize {
    let line = source.lines().find(|line| line.trim() == "#[test]");
    line.map_or(0, |line| line.len() - line.trim_start().len())
}

fn tested_rows() -> BTreeSet<Row> {
    let directories = ["src", "tests"];
    let paths = directories
        .iter()
        .flat_map(|name| sources(&root().join(name)));
    let this = root().join(file!());
    let texts = paths.filter(|path| *path != this);
    let texts = texts.map(|path| std::fs::read_to_string(path).expect("a source is text"));
    texts.flat_map(|text| rows_of_tests(&text)).collect()
}

/// Rows of the first column of the table, entry by entry.
fn deviations() -> Vec<BTreeSet<Row>> {
    let text = std::fs::read_to_string(root().join("tests/DEVIATIONS.md")).expect("it is there");
    let lines = text.lines().filter_map(|line| line.strip_prefix("| "));
    let columns = lines.filter_map(|line| line.split(" | ").next());
    columns
        .map(rows_in)
        .filter(|rows| !rows.is_empty())
        .collect()
}

fn pending_rows() -> BTreeSet<Row> {
    let path = root().join("tests/rows/pending.txt");
    let text = std::fs::read_to_string(path).expect("it is there");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(rows_in).collect()
}

/// Rows that claim nothing of ours, from lines of `ROWS: why`.
fn rows_without_claim() -> BTreeSet<Row> {
    let path = root().join("tests/rows/no-claims.txt");
    let text = std::fs::read_to_string(path).expect("it is there");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| line.split_once(": ").expect("rows, a colon and the reason"));
    lines.flat_map(|(rows, _)| rows_in(rows)).collect()
}

fn names<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Vec<String> {
    let names = rows.into_iter();
    names
        .map(|(letters, number)| format!("{letters}-{number}"))
        .collect()
}

#[test]
fn the_finder_sees_what_a_test_names() {
    let source = "//! FR-1\n/// FR-2, FR-4 to FR-6 and CN-1.\n#[test]\nfn a() {\n    // FR-8: so.\n    b();\n}\n\
                  /// FR-9\nfn no_test() {}\n/// FR-10 is\n/// two lines (FR-11).\n#[test]\n#[ignore]\nfn c() {\n}\n// FR-12\n";
    let found = names(&rows_of_tests(source));
    assert_eq!(
        found,
        [
            "CN-1", "FR-2", "FR-4", "FR-5", "FR-6", "FR-8", "FR-10", "FR-11"
        ]
    );
}

#[test]
fn every_row_is_tested_or_a_deviation_or_known_to_be_open() {
    let known = known_rows();
    let (tested, pending, deviations) = (tested_rows(), pending_rows(), deviations());
    let without_claim = rows_without_claim();
    let deviating: BTreeSet<Row> = deviations.iter().flatten().cloned().collect();
    let mut sums: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for (letters, number) in &known {
        let row = (letters.clone(), *number);
        let sum = sums.entry(letters).or_default();
        sum.0 += usize::from(tested.contains(&row));
        sum.1 += usize::from(deviating.contains(&row));
        sum.2 += usize::from(pending.contains(&row));
    }
    for (letters, count, about) in GROUPS {
        let (tested, deviating, pending) = sums[letters];
        println!(
            "{letters}  {count:>3} {about}: {tested} tested, {deviating} deviate, {pending} open"
        );
    }
    println!(
        "{} rows, {} open, {} deviations, {} rows that claim nothing",
        known.len(),
        pending.len(),
        deviations.len(),
        without_claim.len()
    );

    let all = tested.iter().chain(&pending).chain(&deviating);
    let all = all.chain(&without_claim);
    let strangers: BTreeSet<&Row> = all.filter(|row| !known.contains(row)).collect();
    assert!(
        strangers.is_empty(),
        "there are no such rows: {:?}",
        names(strangers)
    );
    let places = [&tested, &pending, &deviating, &without_claim];
    let nowhere = known
        .iter()
        .filter(|row| !places.iter().any(|place| place.contains(*row)));
    let nowhere = names(nowhere);
    assert!(
        nowhere.is_empty(),
        "no test, no deviation, not listed as open: {nowhere:?}"
    );
    let placed = deviating.union(&without_claim).cloned().collect();
    let twice = names(pending.intersection(&placed));
    assert!(twice.is_empty(), "open, and in another list: {twice:?}");
    let done = names(pending.intersection(&tested));
    assert!(
        done.is_empty(),
        "tested by now, so no longer open (tests/rows/pending.txt): {done:?}"
    );
    assert!(
        deviations.len() <= DEVIATIONS_MAX,
        "too many deviations: {}",
        deviations.len()
    );
}
