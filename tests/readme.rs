//! Keeps the README true where a machine can: its table of flags, its commands, and the paths it names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory, Parser};
use stratamq::config::{Args, Config};

const README: &str = include_str!("../README.md");

/// Flag, value name, variable and default of each row of the table of flags.
fn flags_of_page() -> BTreeSet<[String; 4]> {
    let rows = README.lines().filter(|line| line.starts_with("| `--"));
    rows.map(|line| {
        let mut code = line.split('`').skip(1).step_by(2);
        let (flag, value) = code
            .next()
            .and_then(|cell| cell.split_once(' '))
            .expect("a flag and its value");
        let variable = code.next().expect("a variable");
        // The third cell; a flag that is not set says so.
        let cell = line.split(" | ").nth(2).expect("a default");
        let default = cell.trim_matches('`');
        [flag, value, variable, default].map(str::to_owned)
    })
    .collect()
}

#[test]
fn table_of_flags_is_the_command_line() {
    let command = Args::command();
    let flags = command.get_arguments().filter(|argument| {
        !["help", "version", "print_config"].contains(&argument.get_id().as_str())
    });
    let of_code: BTreeSet<[String; 4]> = flags
        .map(|argument| {
            let text = |name: &clap::builder::Str| name.to_string();
            let values = argument.get_value_names().expect("every flag has a value");
            let variable = argument.get_env().and_then(|name| name.to_str());
            let default = argument.get_default_values().first();
            [
                format!("--{}", argument.get_long().expect("server flags are long")),
                text(&values[0]),
                variable.expect("every flag has a variable").to_owned(),
                default.map_or("none".into(), |value| {
                    value.to_str().expect("a default is text").to_owned()
                }),
            ]
        })
        .collect();
    assert_eq!(flags_of_page(), of_code);
}

/// VD-18: the memory alarm is where RabbitMQ 4 has it.
#[test]
fn memory_is_limited_to_six_tenths() {
    let page = flags_of_page();
    let limit = page.iter().find(|row| row[0] == "--memory-limit");
    assert_eq!(limit.map(|row| row[3].as_str()), Some("60%"));
}

#[test]
fn every_default_of_the_table_can_be_typed() {
    let set = flags_of_page().into_iter();
    let set = set.filter(|[flag, .., default]| default != "none" || flag == "--tls-verify");
    for [flag, _, _, default] in set {
        let args = Args::try_parse_from(["stratamq", &flag, &default])
            .unwrap_or_else(|error| panic!("{flag} {default}: {error}"));
        Config::from_args(&args.server, PathBuf::from("d"))
            .unwrap_or_else(|error| panic!("{flag} {default}: {error}"));
    }
}

/// Lines of the README's shell blocks that call `program`, without comments and brackets, as words.
fn examples_of(program: &str) -> Vec<Vec<String>> {
    let blocks = README.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap_or_default().lines());
    let commands = lines
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .map(|line| line.trim_start_matches("target/release/"));
    let words = |line: &str| -> Vec<String> {
        line.split_whitespace()
            .map(|word| word.trim_matches(['[', ']', '\'']).to_owned())
            .collect()
    };
    let examples: Vec<_> = commands
        .map(words)
        .filter(|words| words.first().is_some_and(|word| word == program))
        .collect();
    assert!(
        !examples.is_empty(),
        "the README shows how to call {program}"
    );
    examples
}

#[test]
fn examples_of_the_broker_parse() {
    for words in examples_of("stratamq") {
        Args::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
    }
}

/// The other programs are not part of the library: they must get as far as missing their data or their broker.
#[track_caller]
fn check_is_no_usage_error(program: &str, executable: &str) {
    for words in examples_of(program) {
        let output = Command::new(executable)
            .args(&words[1..])
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .env("AMQP_URL", "amqp://guest:guest@127.0.0.1:1/%2f")
            .env("STRATA_BENCH_BROKER", "/nowhere/stratamq")
            .output()
            .expect("it can be executed");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
    }
}

#[test]
fn examples_of_the_tools_parse() {
    check_is_no_usage_error("strata-dump", env!("CARGO_BIN_EXE_strata-dump"));
    check_is_no_usage_error("strata-bench", env!("CARGO_BIN_EXE_strata-bench"));
}

#[test]
fn every_path_and_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code = README.split('`').skip(1).step_by(2);
    for word in code.flat_map(str::split_whitespace) {
        let is_path = ["src/", "tests/", "tools/", ".ci/"]
            .iter()
            .any(|dir| word.starts_with(dir));
        assert!(
            !is_path || root.join(word).exists(),
            "{word} is named but not there"
        );
    }
    for (at, _) in README.match_indices("--test ") {
        let rest = &README[at + "--test ".len()..];
        let name: String = rest
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        let tests = root.join("tests");
        let exists =
            tests.join(format!("{name}.rs")).exists() || tests.join(&name).join("main.rs").exists();
        assert!(exists, "test {name} is named but not there");
    }
}
