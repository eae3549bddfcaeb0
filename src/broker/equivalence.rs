//! Whether a redeclare means the thing that is there, and the text of the refusal when it does not.

use std::fmt::Display;

use crate::amqp::field_table::{FieldTable, FieldValue};

/// The value as RabbitMQ prints it in a refusal.
pub(crate) fn display(value: &FieldValue) -> String {
    if let Some(number) = value.as_integer() {
        return number.to_string();
    }
    if let Some(number) = value.as_float() {
        return number.to_string();
    }
    match value {
        FieldValue::LongString(bytes) | FieldValue::Binary(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        FieldValue::Bool(flag) => flag.to_string(),
        FieldValue::Timestamp(secs) => secs.to_string(),
        FieldValue::Void => "undefined".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Compares a property; `thing` is for example `queue 'Q' in vhost 'V'`.
pub(crate) fn check_property<T: PartialEq + Display>(
    name: &str,
    thing: &str,
    received: T,
    current: T,
) -> Result<(), String> {
    if received == current {
        return Ok(());
    }
    Err(format!(
        "inequivalent arg '{name}' for {thing}: received '{received}' but current is '{current}'"
    ))
}

/// Compares an argument.
pub(crate) fn check_argument(
    name: &str,
    thing: &str,
    received: &FieldTable,
    current: &FieldTable,
) -> Result<(), String> {
    let (received, current) = (received.get(name), current.get(name));
    check_values(received, current)
        .map_err(|difference| format!("inequivalent arg '{name}' for {thing}: {difference}"))
}

fn check_values(received: Option<&FieldValue>, current: Option<&FieldValue>) -> Result<(), String> {
    let describe = |value: &FieldValue| {
        let (text, kind) = (display(value), value.type_name());
        format!("the value '{text}' of type '{kind}'")
    };
    match (received, current) {
        (None, None) => Ok(()),
        (Some(received), None) => Err(format!(
            "received {} but current is none",
            describe(received)
        )),
        (None, Some(current)) => Err(format!(
            "received none but current is {}",
            describe(current)
        )),
        (Some(received), Some(current)) if received.is_equivalent(current) => Ok(()),
        (Some(received), Some(current)) => {
            let (received, current) = (display(received), display(current));
            Err(format!("received '{received}' but current is '{current}'"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        received: Option<FieldValue>,
        current: Option<FieldValue>,
        expected: Result<(), &str>,
    ) {
        let outcome = check_values(received.as_ref(), current.as_ref());
        assert_eq!(outcome, expected.map_err(str::to_owned));
    }

    #[test]
    fn refusals_tell_both_sides() {
        use FieldValue::{Byte, Double, Float, Long, SignedInt};
        check(None, None, Ok(()));
        check(Some(Byte(5)), Some(Long(5)), Ok(()));
        check(Some(Float(1.5)), Some(Double(1.5)), Ok(()));
        check(
            Some(SignedInt(5)),
            None,
            Err("received the value '5' of type 'signedint' but current is none"),
        );
        check(
            None,
            Some(FieldValue::text("x")),
            Err("received none but current is the value 'x' of type 'longstr'"),
        );
        check(
            Some(SignedInt(6)),
            Some(SignedInt(5)),
            Err("received '6' but current is '5'"),
        );
        check(
            Some(FieldValue::text("5")),
            Some(SignedInt(5)),
            Err("received '5' but current is '5'"),
        );
    }
}
