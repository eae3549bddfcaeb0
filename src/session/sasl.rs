//! The two SASL mechanisms: user and password out of the response of `connection.start-ok`.

use bytes::Bytes;

use super::event::Mechanism;
use crate::amqp::field_table::{FieldTable, FieldValue};

/// Mechanisms as offered in `connection.start`.
pub(super) const MECHANISMS: &str = "AMQPLAIN PLAIN";

/// User and password.
pub(super) type Credentials = (String, Bytes);

/// The mechanism of that name.
pub(super) fn mechanism(name: &str) -> Option<Mechanism> {
    [Mechanism::Plain, Mechanism::AmqPlain]
        .into_iter()
        .find(|mechanism| mechanism.name() == name)
}

/// What the response says; `None` when it is malformed.
pub(super) fn credentials(mechanism: Mechanism, response: &Bytes) -> Option<Credentials> {
    match mechanism {
        Mechanism::Plain => plain(response),
        Mechanism::AmqPlain => amqplain(response),
    }
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
        let actual = credentials(mechanism, &Bytes::copy_from_slice(response));
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
}
