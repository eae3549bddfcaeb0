//! Who may log in, and who may do what: accounts, password hashes, permissions.
//!
//! Passwords are kept in RabbitMQ's form, `base64(salt + SHA-256(salt + password))` with a salt of four
//! bytes, so that definitions move between the two. Permissions are three patterns per (vhost, user),
//! matched anywhere in the name; the empty pattern matches nothing.
//!
//! Invariants: (1) a comparison with a stored hash takes the same time wherever they differ; (2) a
//! pattern that does not compile denies; (3) no text made here says which of name and password was wrong.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::admin::TopicPermissionsEntry;
use super::limits::{Limits, Of};
use super::pattern::NamePattern;
use crate::amqp::short_string::ShortString;

/// Bytes of the salt in front of a password hash.
const SALT_BYTES: usize = 4;
/// The tag that lets a user publish with somebody else's `user-id`.
const IMPERSONATOR_TAG: &str = "impersonator";
/// The tag of a user that is not to be deleted.
const PROTECTED_TAG: &str = "protected";

/// An authenticated user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: Arc<str>,
    tags: Vec<String>,
}

impl User {
    /// The name logged in with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.name
    }
    /// Tags at the time of the login.
    #[must_use]
    pub fn tags(&self) -> &[String] {
        &self.tags
    }
    /// May publish under another user's name.
    #[must_use]
    pub fn is_impersonator(&self) -> bool {
        self.tags.iter().any(|tag| tag == IMPERSONATOR_TAG)
    }
}

/// Why a login was refused. For the log: the client is told the same in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// Unknown user or wrong password.
    #[error("has given invalid credentials")]
    InvalidCredentials,
    /// The user may only come from this machine.
    #[error("can only connect via localhost")]
    NotLoopback,
}

/// A salted password hash, or none: then no password logs in.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct PasswordHash(Vec<u8>);

impl PasswordHash {
    /// Hashes `password` under a fresh salt. The empty password gives the hash that nothing matches.
    pub(crate) fn new(password: &[u8]) -> Self {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).expect("the operating system provides randomness");
        Self::with_salt(salt, password)
    }

    fn with_salt(salt: [u8; SALT_BYTES], password: &[u8]) -> Self {
        if password.is_empty() {
            return Self::default();
        }
        let mut bytes = salt.to_vec();
        bytes.extend_from_slice(&digest(&salt, password));
        Self(bytes)
    }

    /// Reads the textual form; `None` when it is not one.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text).ok()?;
        let is_hash = bytes.len() == SALT_BYTES + Sha256::output_size();
        (bytes.is_empty() || is_hash).then_some(Self(bytes))
    }

    /// The textual form.
    pub(crate) fn to_text(&self) -> String {
        BASE64.encode(&self.0)
    }

    fn matches(&self, password: &[u8]) -> bool {
        let Some((salt, stored)) = self.0.split_first_chunk::<SALT_BYTES>() else {
            return false;
        };
        !password.is_empty() && bool::from(stored.ct_eq(&digest(salt, password)))
    }
}

/// Hashes stay out of logs.
impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

fn digest(salt: &[u8], password: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(salt)
        .chain_update(password)
        .finalize()
        .into()
}

/// What is known about a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) password: PasswordHash,
    pub(crate) tags: Vec<String>,
}

impl Account {
    /// It is not to be deleted.
    pub(crate) fn is_protected(&self) -> bool {
        self.tags.iter().any(|tag| tag == PROTECTED_TAG)
    }
}

/// Kinds of access that a permission grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Configure,
    Write,
    Read,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configure => "configure",
            Self::Write => "write",
            Self::Read => "read",
        })
    }
}

/// One permission pattern.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    text: String,
    compiled: Compiled,
}

#[derive(Clone, Debug)]
enum Compiled {
    Nothing,
    Everything,
    Regex(NamePattern),
}

impl Pattern {
    /// Compiles `text`; the error says what is wrong with it.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let compiled = match text {
            "" | "^$" => Compiled::Nothing,
            ".*" => Compiled::Everything,
            text => Compiled::Regex(NamePattern::new(text)?),
        };
        let text = text.to_owned();
        Ok(Self { text, compiled })
    }

    /// Compiles `text`; a broken pattern denies (2).
    pub(crate) fn new_or_deny(text: &str) -> Self {
        Self::new(text).unwrap_or_else(|_| Self {
            text: text.to_owned(),
            compiled: Compiled::Nothing,
        })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn matches(&self, name: &str) -> bool {
        match &self.compiled {
            Compiled::Nothing => false,
            Compiled::Everything => true,
            Compiled::Regex(pattern) => pattern.matches(name),
        }
    }
}

/// What one user may do in one vhost.
#[derive(Clone, Debug)]
pub(crate) struct Permissions {
    pub(crate) configure: Pattern,
    pub(crate) write: Pattern,
    pub(crate) read: Pattern,
}

impl Permissions {
    /// Everything allowed.
    pub(crate) fn all() -> Self {
        let everything = Pattern::new_or_deny(".*");
        Self {
            configure: everything.clone(),
            write: everything.clone(),
            read: everything,
        }
    }

    /// True when `operation` on the thing called `name` is granted.
    pub(crate) fn allows(&self, operation: Operation, name: &str) -> bool {
        let pattern = match operation {
            Operation::Configure => &self.configure,
            Operation::Write => &self.write,
            Operation::Read => &self.read,
        };
        pattern.matches(name)
    }
}

/// What routing keys one user may use with one topic exchange (AZ-2).
#[derive(Debug)]
pub(crate) struct TopicPermissions {
    /// As set, without the names filled in.
    entry: TopicPermissionsEntry,
    write: Pattern,
    read: Pattern,
}

impl TopicPermissions {
    /// Compiles the patterns with the names of the user and the vhost in their places.
    ///
    /// # Errors
    /// The pattern that does not compile, and why.
    pub(crate) fn new(entry: &TopicPermissionsEntry) -> Result<Self, (&str, String)> {
        let compile = |text| expanded(text, entry).map_err(|error| (text, error));
        Ok(Self {
            write: compile(&entry.write)?,
            read: compile(&entry.read)?,
            entry: entry.clone(),
        })
    }

    /// The same; a broken pattern denies (AZ-4).
    pub(crate) fn new_or_deny(entry: &TopicPermissionsEntry) -> Self {
        let compile = |text| expanded(text, entry).unwrap_or_else(|_| Pattern::new_or_deny(""));
        Self {
            write: compile(&entry.write),
            read: compile(&entry.read),
            entry: entry.clone(),
        }
    }

    /// True when the user may publish (`Write`) or bind (`Read`) with that key.
    pub(crate) fn allows(&self, operation: Operation, routing_key: &str) -> bool {
        match operation {
            Operation::Write => self.write.matches(routing_key),
            Operation::Read => self.read.matches(routing_key),
            Operation::Configure => false,
        }
    }
}

fn expanded(text: &str, entry: &TopicPermissionsEntry) -> Result<Pattern, String> {
    let text = text.replace("{username}", &regex::escape(&entry.user));
    Pattern::new(&text.replace("{vhost}", &regex::escape(&entry.vhost)))
}

/// Topic permissions of one user in one vhost, by exchange.
pub(crate) type TopicPermissionsByExchange = HashMap<ShortString, Arc<TopicPermissions>>;

/// All accounts, permissions and limits. Guarded by the broker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// By user name.
    pub(crate) accounts: BTreeMap<String, Account>,
    /// By (vhost, user).
    pub(crate) permissions: BTreeMap<(String, String), Arc<Permissions>>,
    /// By (vhost, user).
    topics: BTreeMap<(String, String), TopicPermissionsByExchange>,
    /// Of vhosts and users.
    pub(crate) limits: Limits,
}

impl Access {
    /// Checks a name and password. `is_loopback_only` says whether that user may come from elsewhere.
    pub(crate) fn login(&self, name: &str, password: &[u8]) -> Result<User, LoginError> {
        // A hash that nothing matches stands in for unknown users, so that they take the same time.
        let stand_in = Account {
            password: PasswordHash(vec![0; SALT_BYTES + Sha256::output_size()]),
            tags: Vec::new(),
        };
        let account = self.accounts.get(name);
        let is_right = account.unwrap_or(&stand_in).password.matches(password);
        match account {
            Some(account) if is_right => Ok(User {
                name: name.into(),
                tags: account.tags.clone(),
            }),
            _ => Err(LoginError::InvalidCredentials),
        }
    }

    /// The user of that name, without a password.
    pub(crate) fn login_vouched(&self, name: &str) -> Result<User, LoginError> {
        let account = self.accounts.get(name);
        let account = account.ok_or(LoginError::InvalidCredentials)?;
        Ok(User {
            name: name.into(),
            tags: account.tags.clone(),
        })
    }

    /// The permissions of `user` in `vhost`; `None` refuses the whole vhost.
    pub(crate) fn permissions_of(&self, user: &str, vhost: &str) -> Option<Arc<Permissions>> {
        self.permissions
            .get(&(vhost.to_owned(), user.to_owned()))
            .cloned()
    }

    /// Forgets a user and all permissions given to it; false when unknown.
    pub(crate) fn remove_user(&mut self, user: &str) -> bool {
        self.permissions.retain(|(_, of), _| of != user);
        self.topics.retain(|(_, of), _| of != user);
        self.limits.remove_owner(Of::User, user);
        self.accounts.remove(user).is_some()
    }

    /// Forgets the permissions given in a vhost.
    pub(crate) fn remove_vhost(&mut self, vhost: &str) {
        self.permissions.retain(|(within, _), _| within != vhost);
        self.topics.retain(|(within, _), _| within != vhost);
        self.limits.remove_owner(Of::Vhost, vhost);
    }

    /// The topic permissions of `user` in `vhost`; exchanges that are not in it are free to use.
    pub(crate) fn topic_permissions_of(
        &self,
        user: &str,
        vhost: &str,
    ) -> TopicPermissionsByExchange {
        if self.topics.is_empty() {
            return HashMap::new();
        }
        let key = (vhost.to_owned(), user.to_owned());
        self.topics.get(&key).cloned().unwrap_or_default()
    }

    /// Adds or replaces topic permissions. A name that no exchange can have is about none.
    pub(crate) fn set_topic_permissions(
        &mut self,
        entry: &TopicPermissionsEntry,
        permissions: TopicPermissions,
    ) {
        if let Some(exchange) = ShortString::from_text(&entry.exchange) {
            let key = (entry.vhost.clone(), entry.user.clone());
            let of_user = self.topics.entry(key).or_default();
            of_user.insert(exchange, Arc::new(permissions));
        }
    }

    /// Takes topic permissions away.
    pub(crate) fn clear_topic_permissions(&mut self, user: &str, vhost: &str, exchange: &str) {
        let key = (vhost.to_owned(), user.to_owned());
        if let Some(of_user) = self.topics.get_mut(&key) {
            of_user.retain(|name, _| name.as_str() != exchange);
            if of_user.is_empty() {
                self.topics.remove(&key);
            }
        }
    }

    /// All topic permissions, as set.
    pub(crate) fn topic_permissions(&self) -> impl Iterator<Item = TopicPermissionsEntry> {
        let all = self.topics.values().flat_map(HashMap::values);
        all.map(|permissions| permissions.entry.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_hash_has_the_form_of_rabbitmq() {
        // From RabbitMQ's "Passwords" guide: salt 908D C60A, password "test12".
        let hash = PasswordHash::with_salt([0x90, 0x8d, 0xc6, 0x0a], b"test12");
        assert_eq!(
            hash.to_text(),
            "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
        );
        assert_eq!(PasswordHash::from_text(&hash.to_text()), Some(hash));
    }

    #[test]
    fn text_that_is_no_hash_is_refused() {
        for text in ["?", "AAAA", "kI3GCqW5"] {
            assert_eq!(PasswordHash::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn only_the_right_password_logs_in() {
        let mut access = Access::default();
        for (name, password) in [("bob", "secret"), ("mute", "")] {
            let account = Account {
                password: PasswordHash::new(password.as_bytes()),
                tags: vec!["impersonator".into()],
            };
            access.accounts.insert(name.into(), account);
        }
        let user = access.login("bob", b"secret").expect("right password");
        assert!(user.is_impersonator());
        for (name, password) in [
            ("bob", "Secret"),
            ("bob", ""),
            ("nobody", "secret"),
            ("mute", ""),
            ("mute", "x"),
        ] {
            let refused = access.login(name, password.as_bytes());
            assert_eq!(refused, Err(LoginError::InvalidCredentials), "{name}");
        }
    }

    #[track_caller]
    fn check_pattern(pattern: &str, name: &str, expected: bool) {
        assert_eq!(
            Pattern::new_or_deny(pattern).matches(name),
            expected,
            "{pattern:?} on {name:?}"
        );
    }

    #[test]
    fn patterns_match_anywhere_in_the_name() {
        check_pattern(".*", "anything", true);
        check_pattern("", "anything", false);
        check_pattern("^$", "anything", false);
        check_pattern("log", "my-logs", true);
        check_pattern("^log", "my-logs", false);
        check_pattern("^(a|b)$", "b", true);
        check_pattern("amq.default", "amq.default", true);
    }

    #[test]
    fn broken_pattern_denies() {
        check_pattern("(", "(", false);
        check_pattern("(a{1000}){1000}{1000}", "a", false);
        assert!(Pattern::new("(").is_err());
    }
}
