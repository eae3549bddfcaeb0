//! Users that come and go between two deaths of the broker: what was answered is there after the next start.
//!
//! The commands are given while nobody kills the broker; what they did must outlive the kill that follows.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use super::random::Random;
use crate::support::TestBroker;
use crate::support::raw::{Client, Login};

/// Names from a small set, so that they are used again.
const NAMES: u64 = 4;

/// Which users there are, with their passwords.
#[derive(Default)]
pub(super) struct People(BTreeMap<String, Option<String>>);

impl People {
    /// Adds a user with permissions, changes a password, or deletes a user.
    pub(super) fn change_one(
        &mut self,
        broker: &TestBroker,
        random: &mut Random,
    ) -> Result<(), String> {
        let name = format!("user-{}", random.below(NAMES));
        let password = format!("secret-{}", random.next());
        let is_there = self.0.get(&name).is_some_and(Option::is_some);
        if !is_there {
            run(broker, &["user", "add", &name, "--password", &password])?;
            run(broker, &["permission", "set", &name, ".*", ".*", ".*"])?;
        } else if random.percent(50) {
            run(
                broker,
                &["user", "set-password", &name, "--password", &password],
            )?;
        } else {
            run(broker, &["user", "delete", &name])?;
            self.0.insert(name, None);
            return Ok(());
        }
        self.0.insert(name, Some(password));
        Ok(())
    }

    /// Logs in as everybody who was ever there.
    pub(super) fn check(&self, broker: &TestBroker) -> Result<(), String> {
        for (name, password) in &self.0 {
            let login = Login {
                user: name.clone(),
                password: password.clone().unwrap_or_else(|| "gone".into()),
                ..Login::default()
            };
            let outcome = Client::try_login(broker.address(), &login);
            match (password, outcome) {
                (Some(_), Ok(client)) => client.close(),
                (None, Err(_)) => {}
                (Some(_), Err(trouble)) => return Err(format!("user {name}: {trouble}")),
                (None, Ok(_)) => return Err(format!("deleted user {name} is there again")),
            }
        }
        Ok(())
    }
}

/// Runs a command of the operator; what it said when it failed.
pub(super) fn run(broker: &TestBroker, words: &[&str]) -> Result<(), String> {
    let output = Command::new(broker.binary())
        .arg("--data-dir")
        .arg(broker.data_dir())
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{words:?}: {said}"))
}
