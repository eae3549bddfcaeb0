//! The SASL mechanisms: who a client says it is, out of `connection.start-ok`.

use bytes::Bytes;

use super::event::{Mechanism, Proof};
use super::options::{External, Mechanisms};
use crate::amqp::field_table::{FieldTable, FieldValue};

/// All mechanisms, in the order in which they are offered.
const ALL: [Mechanism; 4] = [
    Mechanism::AmqPlain,
    Mechanism::Plain,
    Mechanism::Anonymous,
    Mechanism::External,
];

/// User and password.
type Credentials = (String, Bytes);

impl Mechanisms {
    fn is_enabled(&self, mechanism: Mechanism) -> bool {
        match mechanism {
            Mechanism::Plain => self.is_plain,
            Mechanism::AmqPlain => self.is_amqplain,
            Mechanism::Anonymous => self.anonymous_user.is_some(),
            Mechanism::External => !matches!(self.external, External::Off),
        }
    }

    /// Names of what is enabled, separated by spaces, for `connection.start`.
    pub(super) fn offer(&self) -> String {
        let enabled = ALL
            .into_iter()
            .filter(|mechanism| self.is_enabled(*mechanism));
        enabled.map(Mechanism::name).collect::<Vec<_>>().join(" ")
    }

    /// The mechanism of that name, if it is enabled.
    pub(super) fn find(&self, name: &str) -> Option<Mechanism> {
        ALL.into_iter()
            .find(|mechanism| mechanism.name() == name && self.is_enabled(*mechanism))
    }

    /// Who the client says it is, and why it should be believed.
    pub(super) fn claim(&self, mechanism: Mechanism, response: &Bytes) -> Claim {
        let with_password = |credentials: Option<Credentials>| match credentials {
            Some((user, password)) => Claim::User(user, Proof::Password(password)),
            None => Claim::Malformed,
        };
        match mechanism {
            Mechanism::Plain => with_password(plain(response)),
            Mechanism::AmqPlain => with_password(amqplain(response)),
            // Whatever the response says (RFC 4505: it is for logs).
            Mechanism::Anonymous => vouched(self.anonymous_user.as_ref()),
            Mechanism::External => match &self.external {
                External::User(user) => vouched(Some(user)),
                External::Nobody | External::Off => Claim::Nobody,
            },
        }
    }
}

/// What a response says.
pub(super) enum Claim {
    /// It cannot be read.
    Malformed,
    /// The mechanism knows nobody for this client.
    Nobody,
    /// It is this user.
    User(String, Proof),
}

fn vouched(user: Option<&String>) -> Claim {
    user.map_or(Claim::Nobody, |user| {
        Claim::User(user.clone(), Proof::Vouched)
    })
}

/// NUL user NUL password (RFC 4616 without an authorization identity, as RabbitMQ has it).
fn plain(response: &Bytes) -> Option<Credentials> {
    let mut parts = response.split(|byte| *byte == 0);
    let (authorization, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    let is_well_formed = authorization.is_empty() && parts.next().is_none();
    is_well_formed.then_some(())?;
    Some((text(user)?, Bytes::copy_from_slice(password)))
}

/// A field table without its length, with `LOGIN` and `PASSWORD`.
fn amqplain(response: &Bytes) -> Option<Credentials> {
    let table = FieldTable::decode_bare(response).ok()?;
    let bytes_of = |name| match table.get(name)? {
        FieldValue::LongString(bytes) | FieldValue::Binary(bytes) => Some(bytes),
        _ => None,
    };
    let password = Bytes::copy_from_slice(bytes_of("PASSWORD")?);
    Some((text(bytes_of("LOGIN")?)?, password))
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mechanism: Mechanism, response: &[u8], expected: Option<(&str, &str)>) {
        let response = Bytes::copy_from_slice(response);
        let actual = match Mechanisms::default().claim(mechanism, &response) {
            Claim::User(user, Proof::Password(password)) => Some((user, password)),
            Claim::User(_, Proof::Vouched) | Claim::Nobody => panic!("a password is wanted"),
            Claim::Malformed => None,
        };
        let expected = expected
            .map(|(user, password)| (user.to_owned(), Bytes::copy_from_slice(password.as_bytes())));
        assert_eq!(actual, expected);
    }

    #[test]
    fn plain_is_nul_user_nul_password() {
        check(
            Mechanism::Plain,
            b"\0guest\0secret",
            Some(("guest", "secret")),
        );
        check(Mechanism::Plain, b"\0guest\0", Some(("guest", "")));
        check(Mechanism::Plain, b"other\0guest\0secret", None);
        check(Mechanism::Plain, b"\0guest\0sec\0ret", None);
        check(Mechanism::Plain, b"\0guest", None);
        check(Mechanism::Plain, b"", None);
        check(Mechanism::Plain, b"\0\xff\0x", None);
    }

    #[test]
    fn amqplain_is_a_bare_table() {
        check(
            Mechanism::AmqPlain,
            b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x01x",
            Some(("guest", "x")),
        );
        check(
            Mechanism::AmqPlain,
            b"\x08PASSWORDx\0\0\0\x01x\x05LOGINx\0\0\0\x05guest",
            Some(("guest", "x")),
        );
        check(Mechanism::AmqPlain, b"\x05LOGINS\0\0\0\x05guest", None);
        check(
            Mechanism::AmqPlain,
            b"\x05LOGINI\0\0\0\x05\x08PASSWORDS\0\0\0\x01x",
            None,
        );
        check(Mechanism::AmqPlain, b"\x05LOGINS\0\0\0\xff", None);
    }

    #[test]
    fn only_what_is_enabled_is_offered_and_found() {
        let usual = Mechanisms::default();
        assert_eq!(usual.offer(), "AMQPLAIN PLAIN");
        for name in ["ANONYMOUS", "EXTERNAL", "RABBIT-CR-DEMO", "plain", ""] {
            assert_eq!(usual.find(name), None, "{name}");
        }
        let other = Mechanisms {
            is_plain: false,
            is_amqplain: false,
            anonymous_user: Some("anybody".into()),
            external: External::Nobody,
        };
        assert_eq!(other.offer(), "ANONYMOUS EXTERNAL");
        assert_eq!(other.find("PLAIN"), None);
        let claim = other.claim(Mechanism::Anonymous, &Bytes::from_static(b"trace"));
        assert!(matches!(claim, Claim::User(user, Proof::Vouched) if user == "anybody"));
        let claim = other.claim(Mechanism::External, &Bytes::from_static(b"guest"));
        assert!(matches!(claim, Claim::Nobody));
    }
}
