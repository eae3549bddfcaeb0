//! Regular expressions over names, as permissions and policies have them: matched anywhere in the name.
//!
//! RabbitMQ's patterns may look around and refer back, which costs time without bound in the worst case. So a pattern
//! is compiled without that where it can be, and matched in time that grows with the name; one that needs it is given
//! up on after so many steps back, and matches nothing then.

use regex::RegexBuilder;

/// Compiled size a pattern may have: protects from patterns that eat the memory.
const PATTERN_MAX_BYTES: usize = 1 << 20;
/// Steps back of one match. Names have at most 255 bytes.
const BACKTRACK_MAX_COUNT: usize = 20_000;

/// A compiled pattern and its text.
#[derive(Clone, Debug)]
pub(crate) struct NamePattern {
    text: String,
    engine: Engine,
}

#[derive(Clone, Debug)]
enum Engine {
    Plain(regex::Regex),
    Looking(Box<fancy_regex::Regex>),
}

impl NamePattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let plain = RegexBuilder::new(text)
            .size_limit(PATTERN_MAX_BYTES)
            .build();
        let engine = match plain {
            Ok(regex) => Engine::Plain(regex),
            Err(regex::Error::Syntax(_)) => fancy_regex::RegexBuilder::new(text)
                .backtrack_limit(BACKTRACK_MAX_COUNT)
                .delegate_size_limit(PATTERN_MAX_BYTES)
                .build()
                .map(|regex| Engine::Looking(Box::new(regex)))
                .map_err(|error| error.to_string())?,
            Err(error) => return Err(error.to_string()),
        };
        let text = text.to_owned();
        Ok(Self { text, engine })
    }

    /// As it was given.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// True when it matches somewhere in `name`.
    pub(crate) fn matches(&self, name: &str) -> bool {
        match &self.engine {
            Engine::Plain(regex) => regex.is_match(name),
            Engine::Looking(regex) => regex.is_match(name).unwrap_or(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expected: bool) {
        let pattern = NamePattern::new(pattern).expect("a pattern");
        assert_eq!(pattern.matches(name), expected, "{pattern:?} on {name:?}");
    }

    #[test]
    fn patterns_match_anywhere_and_may_look_around() {
        check("log", "my-logs", true);
        check("^log", "my-logs", false);
        check("", "anything", true);
        check("^(?!amq\\.).*", "amq.gen-1", false);
        check("^(?!amq\\.).*", "orders", true);
        check("(?<=a)b", "ab", true);
        check("(a)\\1", "aa", true);
    }

    #[test]
    fn pattern_that_takes_too_long_matches_nothing() {
        let name = format!("{}b", "a".repeat(200));
        check("^(?=(a+)+$)(a+)+\\1$", &name, false);
    }

    #[test]
    fn broken_patterns_are_refused() {
        for pattern in ["(", "(a{1000}){1000}{1000}", "(?=(a{1000}){1000}{1000})"] {
            assert!(NamePattern::new(pattern).is_err(), "{pattern}");
        }
    }
}
