//! Values of field tables, and other values of strangers, as JSON and as short text.

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use stratamq::amqp::field_table::{FieldTable, FieldValue};

/// Bytes in base64.
pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Arguments as they are stored: a field table on the wire. What cannot be decoded is shown as it is.
pub(crate) fn arguments(bytes: &[u8]) -> Value {
    match FieldTable::decode(&Bytes::copy_from_slice(bytes)) {
        Ok(table) => from_table(&table),
        Err(error) => json!({"undecodable": base64(bytes), "error": error.to_string()}),
    }
}

/// A field table.
pub(crate) fn from_table(table: &FieldTable) -> Value {
    let entries = table.iter().map(|(name, value)| {
        (
            String::from_utf8_lossy(name).into_owned(),
            from_value(value),
        )
    });
    Value::Object(entries.collect::<Map<_, _>>())
}

fn from_value(value: &FieldValue) -> Value {
    match value {
        FieldValue::Bool(value) => json!(value),
        FieldValue::Byte(value) => json!(value),
        FieldValue::UnsignedByte(value) => json!(value),
        FieldValue::Short(value) => json!(value),
        FieldValue::UnsignedShort(value) => json!(value),
        FieldValue::SignedInt(value) => json!(value),
        FieldValue::UnsignedInt(value) => json!(value),
        FieldValue::Long(value) => json!(value),
        FieldValue::Float(value) => json!(value),
        FieldValue::Double(value) => json!(value),
        FieldValue::Decimal { scale, value } => json!({"scale": scale, "value": value}),
        FieldValue::LongString(bytes) | FieldValue::Binary(bytes) => {
            match std::str::from_utf8(bytes) {
                Ok(text) => json!(text),
                Err(_) => json!({"base64": base64(bytes)}),
            }
        }
        FieldValue::Array(values) => values.iter().map(from_value).collect(),
        FieldValue::Timestamp(seconds) => json!(seconds),
        FieldValue::Table(table) => from_table(table),
        FieldValue::Void => Value::Null,
    }
}

/// A JSON object as `name=value name=value`, for a cell; other values as JSON.
pub(crate) fn short(value: &Value) -> String {
    match value {
        Value::Object(entries) => {
            let parts: Vec<String> = entries
                .iter()
                .filter(|(_, value)| !is_empty(value))
                .map(|(name, value)| format!("{name}={}", plain(value)))
                .collect();
            parts.join(" ")
        }
        other => plain(other),
    }
}

/// An empty table or list, such as that of no arguments.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(entries) => entries.is_empty(),
        Value::Array(values) => values.is_empty(),
        _ => false,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=', ',']) => {
            text.clone()
        }
        other => other.to_string(),
    }
}
