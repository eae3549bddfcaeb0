//! The configuration file: TOML whose keys are the names of the flags.
//!
//! ```toml
//! amqp-port = 5672
//! fsync = "always"
//! loopback-users = ["guest", "admin"]
//! ```
//! A value of the file takes the place of the flag's default: environment and flags win over it. Every key is checked by
//! itself, so that the one line of complaint can name it.

use clap::CommandFactory;
use toml::{Table, Value};

use super::args::{Args, one_line};

/// Flags that make no sense in a file.
const NOT_IN_A_FILE: [&str; 4] = ["config", "print-config", "help", "version"];

/// Names of flags with the values that a file gives them.
pub(super) type Defaults = Vec<(String, String)>;

/// Names of all flags that may stand in a file, in the order of `--help`.
pub(super) fn keys() -> Vec<String> {
    let command = Args::command();
    let names = command
        .get_arguments()
        .filter_map(|argument| argument.get_long());
    let names = names.filter(|name| !NOT_IN_A_FILE.contains(name));
    names.map(str::to_owned).collect()
}

/// Reads the text of the file called `name`.
///
/// # Errors
/// One line that names file, key and what is allowed.
pub(super) fn parse(name: &str, text: &str) -> Result<Defaults, String> {
    let table: Table = text
        .parse()
        .map_err(|error| syntax_error(name, text, &error))?;
    let keys = keys();
    let mut defaults = Defaults::new();
    for (key, value) in &table {
        if !keys.contains(key) {
            let known = keys.join(", ");
            return Err(format!("{name}: unknown key '{key}'; known are {known}"));
        }
        let value = typed(value).ok_or_else(|| {
            format!("{name}: key '{key}': expected a string, a number or a list of them")
        })?;
        check(key, &value).map_err(|error| format!("{name}: key '{key}': {error}"))?;
        defaults.push((key.clone(), value));
    }
    Ok(defaults)
}

fn syntax_error(name: &str, text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.unwrap_or_default().matches('\n').count() + 1;
    let message = error.message().replace('\n', " ");
    format!("{name}: line {line}: {message}")
}

/// The value as it would be typed behind a flag.
fn typed(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        // `tls-min-version = 1.2` is what anybody would write.
        Value::Float(number) => Some(number.to_string()),
        Value::Array(values) => {
            let is_flat = values.iter().all(|value| !value.is_array());
            let values: Option<Vec<String>> = values.iter().map(typed).collect();
            values.filter(|_| is_flat).map(|values| values.join(","))
        }
        Value::Boolean(_) | Value::Datetime(_) | Value::Table(_) => None,
    }
}

/// Checks one value as if it had been typed.
fn check(key: &str, value: &str) -> Result<(), String> {
    use clap::Parser;
    let flag = format!("--{key}");
    let typed = Args::try_parse_from(["stratamq", &format!("{flag}={value}")]);
    let checked = match typed {
        Ok(args) => args.server.check_each().map_err(|error| error.0),
        Err(error) => Err(one_line(&error.to_string())),
    };
    checked.map_err(|text| without_flag(&text, &flag))
}

/// The file's key is named already: takes ` for '--flag <VALUE>'` and ` for --flag` out of a complaint.
fn without_flag(text: &str, flag: &str) -> String {
    let quoted = format!(" for '{flag} <");
    if let Some((before, rest)) = text.split_once(&quoted)
        && let Some((_, behind)) = rest.split_once(">'")
    {
        let behind = behind.trim_start_matches("...");
        return format!("{before}{behind}");
    }
    text.replace(&format!(" for {flag}"), "")
}

/// Text that TOML reads back as `value`.
pub(super) fn written(value: &str) -> String {
    let is_number = value.parse::<i64>().is_ok_and(|n| n.to_string() == value);
    if is_number {
        value.to_owned()
    } else {
        Value::from(value).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_parse(text: &str, expected: Result<&[(&str, &str)], &str>) {
        let expected = expected.map(|pairs| {
            let pairs = pairs.iter();
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<Defaults>()
        });
        assert_eq!(
            parse("f.toml", text),
            expected.map_err(str::to_owned),
            "{text}"
        );
    }

    #[test]
    fn values_may_be_written_in_every_natural_way() {
        check_parse("", Ok(&[]));
        check_parse(
            "amqp-port = 5673\n# a comment\nfsync = 'never'\n",
            Ok(&[("amqp-port", "5673"), ("fsync", "never")]),
        );
        check_parse(
            "loopback-users = ['a', \"b\"]\ntls-min-version = 1.3\nheartbeat = '30'",
            Ok(&[
                ("heartbeat", "30"),
                ("loopback-users", "a,b"),
                ("tls-min-version", "1.3"),
            ]),
        );
        check_parse("loopback-users = []", Ok(&[("loopback-users", "")]));
    }

    #[test]
    fn complaints_name_file_key_and_what_is_allowed() {
        check_parse(
            "fsync = 'sometimes'",
            Err(
                "f.toml: key 'fsync': invalid value 'sometimes' [possible values: always, interval, never]",
            ),
        );
        check_parse(
            "segment-size = '64KiB'",
            Err("f.toml: key 'segment-size': invalid value '65536': allowed is 1MiB to 1GiB"),
        );
        check_parse(
            "amqp-port = 70000",
            Err("f.toml: key 'amqp-port': invalid value '70000': expected 0 to 65535, or off"),
        );
        check_parse(
            "auth-mechanisms = ['PLAIN', 'KERBEROS']",
            Err(
                "f.toml: key 'auth-mechanisms': invalid value 'KERBEROS' [possible values: PLAIN, AMQPLAIN, ANONYMOUS, EXTERNAL]",
            ),
        );
        check_parse(
            "heartbeat = true",
            Err("f.toml: key 'heartbeat': expected a string, a number or a list of them"),
        );
        check_parse(
            "loopback-users = [['a']]",
            Err("f.toml: key 'loopback-users': expected a string, a number or a list of them"),
        );
        for text in ["color = 1", "[fsync]\nmode = 1", "config = 'x'"] {
            let error = parse("f.toml", text).expect_err(text);
            assert!(error.starts_with("f.toml: "), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let unknown = parse("f.toml", "color = 1").expect_err("no flag of that name");
        assert!(
            unknown
                .starts_with("f.toml: unknown key 'color'; known are data-dir, bind, amqp-port, ")
        );
        let broken = parse("f.toml", "bind = '::1'\namqp-port == 1").expect_err("no TOML");
        assert!(broken.starts_with("f.toml: line 2: "), "{broken}");
        let twice = parse("f.toml", "heartbeat = 1\nheartbeat = 2").expect_err("twice");
        assert!(twice.starts_with("f.toml: line 2: "), "{twice}");
    }

    #[test]
    fn what_is_written_is_read_back() {
        for value in [
            "",
            "5672",
            "0",
            "60%",
            "/a b/\"c\"",
            "off",
            "007",
            "1.2",
            "a,b",
        ] {
            let text = format!("bind = {}", written(value));
            let table: Table = text.parse().expect("TOML");
            let back = table.get("bind").and_then(typed);
            assert_eq!(back.as_deref(), Some(value), "{text}");
        }
    }
}
