//! The counters of a running broker, asked for with its own command.

use std::process::{Command, Stdio};

use super::TestBroker;

/// What `stratamq status --json` said.
#[derive(Debug)]
pub(crate) struct Status(serde_json::Value);

impl Status {
    /// Asks the broker.
    #[track_caller]
    pub(crate) fn of(broker: &TestBroker) -> Self {
        let output = Command::new(broker.binary())
            .arg("--data-dir")
            .arg(broker.data_dir())
            .args(["status", "--json"])
            .stdin(Stdio::null())
            .output()
            .expect("the broker's binary can be executed");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "status failed ({}): {complaint}",
            output.status
        );
        Self(serde_json::from_slice(&output.stdout).expect("status --json prints JSON"))
    }

    /// A counter by its path, for example `/log/commits`.
    #[track_caller]
    pub(crate) fn counter(&self, path: &str) -> u64 {
        let value = self.0.pointer(path).and_then(serde_json::Value::as_u64);
        value.unwrap_or_else(|| panic!("status has no counter {path}: {}", self.0))
    }

    /// Reasons why publishers are blocked.
    #[track_caller]
    pub(crate) fn alarms(&self) -> Vec<String> {
        let alarms = self.0.get("alarms").and_then(serde_json::Value::as_array);
        let alarms = alarms.unwrap_or_else(|| panic!("status has no alarms: {}", self.0));
        let texts = alarms.iter().filter_map(serde_json::Value::as_str);
        texts.map(str::to_owned).collect()
    }

    /// True when publishers are blocked.
    #[track_caller]
    pub(crate) fn has_alarm(broker: &TestBroker) -> bool {
        !Self::of(broker).alarms().is_empty()
    }

    /// Calls of fdatasync on the log.
    #[track_caller]
    pub(crate) fn syncs(&self) -> u64 {
        self.counter("/log/fdatasync_count")
    }

    /// Commits.
    #[track_caller]
    pub(crate) fn commits(&self) -> u64 {
        self.counter("/log/commits")
    }
}
