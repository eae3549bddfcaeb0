//! When two values of a field table count as equal, and how a refusal prints them.
//!
//! Integers of all widths form one class, floats a second one; everything else compares by exact type
//! (RabbitMQ: `rabbit_misc:assert_args_equivalence`).

use bytes::Bytes;

use crate::amqp::field_table::{FieldTable, FieldValue};

/// The value under `name`; the first one when there are several.
pub(crate) fn find<'a>(table: &'a FieldTable, name: &str) -> Option<&'a FieldValue> {
    let mut pairs = table.0.iter();
    pairs
        .find(|(key, _)| &key[..] == name.as_bytes())
        .map(|(_, value)| value)
}

/// The integer behind any integer tag.
fn as_integer(value: &FieldValue) -> Option<i128> {
    Some(match value {
        FieldValue::Byte(n) => i128::from(*n),
        FieldValue::UnsignedByte(n) => i128::from(*n),
        FieldValue::Short(n) => i128::from(*n),
        FieldValue::UnsignedShort(n) => i128::from(*n),
        FieldValue::SignedInt(n) => i128::from(*n),
        FieldValue::UnsignedInt(n) => i128::from(*n),
        FieldValue::Long(n) => i128::from(*n),
        _ => return None,
    })
}

fn as_float(value: &FieldValue) -> Option<f64> {
    match value {
        FieldValue::Float(n) => Some(f64::from(*n)),
        FieldValue::Double(n) => Some(*n),
        _ => None,
    }
}

fn as_bytes(value: &FieldValue) -> Option<&Bytes> {
    match value {
        FieldValue::LongString(bytes) | FieldValue::Binary(bytes) => Some(bytes),
        _ => None,
    }
}

/// Equality of arguments on redeclare.
pub(crate) fn is_equivalent(left: &FieldValue, right: &FieldValue) -> bool {
    if let (Some(left), Some(right)) = (as_integer(left), as_integer(right)) {
        return left == right;
    }
    if let (Some(left), Some(right)) = (as_float(left), as_float(right)) {
        return left.to_bits() == right.to_bits() || left == right;
    }
    left == right
}

/// Equality of a header with the value of a headers binding: as above, text and binary by their bytes,
/// tables and arrays never.
pub(crate) fn is_header_match(wanted: &FieldValue, header: &FieldValue) -> bool {
    if let (Some(wanted), Some(header)) = (as_bytes(wanted), as_bytes(header)) {
        return wanted == header;
    }
    !matches!(wanted, FieldValue::Table(_) | FieldValue::Array(_)) && is_equivalent(wanted, header)
}

/// RabbitMQ's name of a type, as it appears in error texts.
pub(crate) fn type_name(value: &FieldValue) -> &'static str {
    match value {
        FieldValue::Bool(_) => "bool",
        FieldValue::Byte(_) => "byte",
        FieldValue::UnsignedByte(_) => "unsignedbyte",
        FieldValue::Short(_) => "short",
        FieldValue::UnsignedShort(_) => "unsignedshort",
        FieldValue::SignedInt(_) => "signedint",
        FieldValue::UnsignedInt(_) => "unsignedint",
        FieldValue::Long(_) => "long",
        FieldValue::Float(_) => "float",
        FieldValue::Double(_) => "double",
        FieldValue::Decimal { .. } => "decimal",
        FieldValue::LongString(_) => "longstr",
        FieldValue::Binary(_) => "binary",
        FieldValue::Array(_) => "array",
        FieldValue::Timestamp(_) => "timestamp",
        FieldValue::Table(_) => "table",
        FieldValue::Void => "void",
    }
}

/// The value as text.
pub(crate) fn display(value: &FieldValue) -> String {
    if let Some(number) = as_integer(value) {
        return number.to_string();
    }
    if let Some(bytes) = as_bytes(value) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    match value {
        FieldValue::Bool(flag) => flag.to_string(),
        FieldValue::Timestamp(secs) => secs.to_string(),
        FieldValue::Void => "undefined".into(),
        other => as_float(other).map_or_else(|| format!("{other:?}"), |n| n.to_string()),
    }
}

/// Why an argument of a redeclare differs from the one in force; `None` when it does not. What follows
/// `inequivalent arg 'NAME' for KIND 'X' in vhost 'V': `.
pub(crate) fn check(
    received: Option<&FieldValue>,
    current: Option<&FieldValue>,
) -> Option<String> {
    let describe = |value| format!("the value '{}' of type '{}'", display(value), type_name(value));
    match (received, current) {
        (None, None) => None,
        (Some(received), None) => {
            let received = describe(received);
            Some(format!("received {received} but current is none"))
        }
        (None, Some(current)) => {
            let current = describe(current);
            Some(format!("received none but current is {current}"))
        }
        (Some(received), Some(current)) => (!is_equivalent(received, current)).then(|| {
            let (received, current) = (display(received), display(current));
            format!("received '{received}' but current is '{current}'")
        }),
    }
}
