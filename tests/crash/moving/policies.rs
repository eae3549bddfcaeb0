//! Policies that come and go between two deaths of the broker: what a command has answered is in effect after the next start.

use super::Moving;
use super::terms::{GRAVE, RULED, Terms};
use crate::crash::people::run;
use crate::crash::random::Random;
use crate::support::TestBroker;

/// By the policy and by the operator's.
const LENGTHS_MAX: [usize; 2] = [3, 2];
/// Over by the time the probes are looked for.
const TTL_MS: u64 = 30;
/// The queue, and no other.
const PATTERN: &str = "^ruled$";

/// What is set at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    has_policy: bool,
    has_letters: bool,
    has_ttl: bool,
    has_length: bool,
    /// The operator's policy limits the length as well.
    is_capped: bool,
}

impl Rule {
    fn definition(self) -> String {
        let mut words = Vec::new();
        if self.has_letters {
            words.push("\"dead-letter-exchange\":\"\"".into());
            words.push(format!("\"dead-letter-routing-key\":\"{GRAVE}\""));
        }
        if self.has_ttl {
            words.push(format!("\"message-ttl\":{TTL_MS}"));
        }
        if self.has_length {
            words.push(format!("\"max-length\":{}", LENGTHS_MAX[0]));
        }
        format!("{{{}}}", words.join(","))
    }

    /// What becomes of messages under it.
    fn terms(self) -> Terms {
        let own = (self.has_policy && self.has_length).then_some(LENGTHS_MAX[0]);
        let cap = self.is_capped.then_some(LENGTHS_MAX[1]);
        Terms {
            ttl_ms: (self.has_policy && self.has_ttl).then_some(TTL_MS),
            length_max: own.into_iter().chain(cap).min(),
            has_letters: self.has_policy && self.has_letters,
            ..Terms::staying_in(RULED)
        }
    }
}

impl Moving {
    /// Sets, changes or clears one policy. The queue is empty.
    pub(in crate::crash) fn change_policy(
        &self,
        broker: &TestBroker,
        random: &mut Random,
    ) -> Result<(), String> {
        let mut rule = self.book().rule;
        if random.percent(30) {
            rule.is_capped = !rule.is_capped;
            if rule.is_capped {
                let definition = format!("{{\"max-length\":{}}}", LENGTHS_MAX[1]);
                run(
                    broker,
                    &["operator-policy", "set", "cap", PATTERN, &definition],
                )?;
            } else {
                run(broker, &["operator-policy", "clear", "cap"])?;
            }
        } else if rule.has_policy && random.percent(30) {
            rule.has_policy = false;
            run(broker, &["policy", "clear", "rule"])?;
        } else {
            rule.has_policy = true;
            rule.has_letters = random.percent(70);
            rule.has_ttl = random.percent(40);
            // A policy says something.
            rule.has_length = random.percent(40) || !(rule.has_letters || rule.has_ttl);
            run(
                broker,
                &["policy", "set", "rule", PATTERN, &rule.definition()],
            )?;
        }
        self.book().rule = rule;
        Ok(())
    }

    /// What the queue does to messages at present.
    pub(super) fn ruled(&self) -> Terms {
        self.book().rule.terms()
    }
}
