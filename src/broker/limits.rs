//! How much of something a vhost or a user may have, where an operator said so.

use std::collections::BTreeMap;

/// Limits of a vhost.
const VHOST_LIMITS: [&str; 2] = [MAX_CONNECTIONS, MAX_QUEUES];
/// Limits of a user.
const USER_LIMITS: [&str; 2] = [MAX_CONNECTIONS, MAX_CHANNELS];

/// Connections to a vhost or of a user.
pub(crate) const MAX_CONNECTIONS: &str = "max-connections";
/// Queues of a vhost, of all kinds.
pub(crate) const MAX_QUEUES: &str = "max-queues";
/// Channels of a user, over all its connections.
pub(crate) const MAX_CHANNELS: &str = "max-channels";

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Of {
    Vhost,
    User,
}

/// All limits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits(BTreeMap<(Of, String, String), i64>);

impl Limits {
    /// True when there is a limit of that name.
    pub(crate) fn is_known(of: Of, name: &str) -> bool {
        match of {
            Of::Vhost => VHOST_LIMITS.contains(&name),
            Of::User => USER_LIMITS.contains(&name),
        }
    }

    /// Sets a limit; a negative one means none.
    pub(crate) fn set(&mut self, of: Of, owner: &str, name: &str, value: i64) {
        let key = (of, owner.to_owned(), name.to_owned());
        self.0.insert(key, value);
    }

    /// Takes a limit away; false when there was none.
    pub(crate) fn clear(&mut self, of: Of, owner: &str, name: &str) -> bool {
        let key = (of, owner.to_owned(), name.to_owned());
        self.0.remove(&key).is_some()
    }

    /// Forgets a vhost or a user.
    pub(crate) fn remove_owner(&mut self, of: Of, owner: &str) {
        self.0
            .retain(|(kind, name, _), _| *kind != of || name != owner);
    }

    /// How many there may be; `None` for as many as there are.
    pub(crate) fn get(&self, of: Of, owner: &str, name: &str) -> Option<u64> {
        if self.0.is_empty() {
            return None;
        }
        let key = (of, owner.to_owned(), name.to_owned());
        u64::try_from(*self.0.get(&key)?).ok()
    }

    /// All of them: whose, owner, name and value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Of, &str, &str, i64)> {
        self.0
            .iter()
            .map(|((of, owner, name), value)| (*of, owner.as_str(), name.as_str(), *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_limit_is_none_and_zero_is_nothing() {
        let mut limits = Limits::default();
        assert_eq!(limits.get(Of::User, "u", MAX_CHANNELS), None);
        limits.set(Of::User, "u", MAX_CHANNELS, 0);
        assert_eq!(limits.get(Of::User, "u", MAX_CHANNELS), Some(0));
        assert_eq!(limits.get(Of::Vhost, "u", MAX_CHANNELS), None);
        limits.set(Of::User, "u", MAX_CHANNELS, -1);
        assert_eq!(limits.get(Of::User, "u", MAX_CHANNELS), None);
        assert!(limits.clear(Of::User, "u", MAX_CHANNELS));
        assert!(!limits.clear(Of::User, "u", MAX_CHANNELS));
    }
}
