//! Rows for people (a table) or for machines (a JSON object a line).
//!
//! A table is printed in chunks: the first rows decide the widths, so memory is bounded and a longer cell only moves
//! its own line.

use std::io::Write;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use stratamq::storage::types::Seq;

use crate::error::DumpError;

/// Rows whose widths are looked at before any of them is printed.
const CHUNK_ROWS: usize = 500;
/// A cell without a value.
const ABSENT: &str = "-";

struct Cell {
    name: &'static str,
    /// `None`: for people only.
    value: Option<Value>,
    /// `None`: for machines only.
    text: Option<String>,
}

/// One line of output, built cell by cell. Rows of one table have the same cells for people.
#[derive(Default)]
pub(crate) struct Row {
    cells: Vec<Cell>,
}

impl Row {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn cell(mut self, name: &'static str, value: Option<Value>, text: Option<String>) -> Self {
        self.cells.push(Cell { name, value, text });
        self
    }

    /// A number.
    pub(crate) fn number(self, name: &'static str, number: impl Into<u64>) -> Self {
        let number = number.into();
        self.cell(name, Some(number.into()), Some(number.to_string()))
    }

    /// A message's position in its queue.
    pub(crate) fn seq(self, name: &'static str, seq: Seq) -> Self {
        self.cell(name, Some(seq_value(seq)), Some(seq.to_string()))
    }

    /// A number that may be unknown.
    pub(crate) fn maybe_number(self, name: &'static str, number: Option<u64>) -> Self {
        let text = number.map_or_else(|| ABSENT.to_owned(), |number| number.to_string());
        self.cell(name, Some(number.into()), Some(text))
    }

    /// Text, also of something that is displayed.
    pub(crate) fn text(self, name: &'static str, text: impl ToString) -> Self {
        let text = text.to_string();
        self.cell(name, Some(text.as_str().into()), Some(visible(&text)))
    }

    /// Text that may be absent.
    pub(crate) fn maybe_text(self, name: &'static str, text: Option<impl ToString>) -> Self {
        match text {
            Some(text) => self.text(name, text),
            None => self.cell(name, Some(Value::Null), Some(ABSENT.to_owned())),
        }
    }

    /// Yes or no.
    pub(crate) fn flag(self, name: &'static str, is_set: bool) -> Self {
        self.cell(
            name,
            Some(is_set.into()),
            Some(if is_set { "yes" } else { "no" }.to_owned()),
        )
    }

    /// Unix milliseconds, 0 for never: a number for machines, a date for people.
    pub(crate) fn time(self, name: &'static str, people_name: &'static str, unix_ms: u64) -> Self {
        let value = if unix_ms == 0 {
            Value::Null
        } else {
            unix_ms.into()
        };
        let text = if unix_ms == 0 {
            ABSENT.to_owned()
        } else {
            date(unix_ms)
        };
        self.cell(name, Some(value), None)
            .cell(people_name, None, Some(text))
    }

    /// A value for machines.
    pub(crate) fn json(self, name: &'static str, value: impl Into<Value>) -> Self {
        self.cell(name, Some(value.into()), None)
    }

    /// A text for people.
    pub(crate) fn people(self, name: &'static str, text: impl ToString) -> Self {
        self.cell(name, None, Some(visible(&text.to_string())))
    }

    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.cells
            .iter()
            .filter_map(|cell| cell.text.as_deref().map(|text| (cell.name, text)))
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for cell in &self.cells {
            if let Some(value) = &cell.value {
                map.serialize_entry(cell.name, value)?;
            }
        }
        map.end()
    }
}

/// A number, or text where the rank is not 0: many readers of JSON would round such a number.
pub(crate) fn seq_value(seq: Seq) -> Value {
    match seq.rank() {
        0 => seq.0.into(),
        _ => seq.to_string().into(),
    }
}

/// Text on one line and without control characters: names and bodies come from strangers.
fn visible(text: &str) -> String {
    if text.is_empty() {
        return "\"\"".to_owned();
    }
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// Prints rows.
pub(crate) struct Printer<'a> {
    out: &'a mut dyn Write,
    is_json: bool,
    pending: Vec<Row>,
    /// Widths of the table that is being printed, and whether a column holds numbers.
    columns: Vec<(usize, bool)>,
}

impl<'a> Printer<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, is_json: bool) -> Self {
        Self {
            out,
            is_json,
            pending: Vec::new(),
            columns: Vec::new(),
        }
    }

    /// Adds a row to the table.
    pub(crate) fn row(&mut self, row: Row) -> Result<(), DumpError> {
        if self.is_json {
            let line = serde_json::to_string(&row).expect("texts and numbers are JSON");
            return writeln!(self.out, "{line}").map_err(DumpError::Output);
        }
        self.pending.push(row);
        if self.pending.len() >= CHUNK_ROWS {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Ends the table.
    pub(crate) fn end(&mut self) -> Result<(), DumpError> {
        self.flush()?;
        self.columns.clear();
        Ok(())
    }

    /// A line between tables, for people only.
    pub(crate) fn title(&mut self, title: &str) -> Result<(), DumpError> {
        self.end()?;
        if self.is_json {
            Ok(())
        } else {
            writeln!(self.out, "{title}").map_err(DumpError::Output)
        }
    }

    /// A line for machines only.
    pub(crate) fn machines(&mut self, row: Row) -> Result<(), DumpError> {
        if self.is_json { self.row(row) } else { Ok(()) }
    }

    /// The cells of one row below each other for people, as a line for machines.
    pub(crate) fn list(&mut self, row: Row) -> Result<(), DumpError> {
        if self.is_json {
            return self.row(row);
        }
        let width = row
            .texts()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        row.texts()
            .try_for_each(|(name, text)| writeln!(self.out, "  {name:width$}  {text}"))
            .map_err(DumpError::Output)
    }

    fn flush(&mut self) -> Result<(), DumpError> {
        let rows = std::mem::take(&mut self.pending);
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let heads: Vec<String> = first.texts().map(|(name, _)| name.to_uppercase()).collect();
        if self.columns.is_empty() {
            self.columns = heads
                .iter()
                .enumerate()
                .map(|(index, head)| {
                    measure(head, rows.iter().filter_map(|row| row.texts().nth(index)))
                })
                .collect();
            self.line(heads.iter().map(String::as_str))?;
        }
        for row in &rows {
            self.line(row.texts().map(|(_, text)| text))?;
        }
        Ok(())
    }

    fn line<'t>(&mut self, texts: impl Iterator<Item = &'t str>) -> Result<(), DumpError> {
        let mut line = String::new();
        for (text, (width, is_number)) in texts.zip(&self.columns) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            let padding = " ".repeat(width.saturating_sub(text.chars().count()));
            let (before, behind) = if *is_number {
                (padding.as_str(), "")
            } else {
                ("", padding.as_str())
            };
            line.extend([before, text, behind]);
        }
        writeln!(self.out, "{}", line.trim_end()).map_err(DumpError::Output)
    }
}

/// The width of a column, and whether it holds numbers, which stand at its right edge.
fn measure<'t>(head: &str, cells: impl Iterator<Item = (&'static str, &'t str)>) -> (usize, bool) {
    let mut width = head.chars().count();
    let (mut number_count, mut text_count) = (0, 0);
    for (_, text) in cells {
        width = width.max(text.chars().count());
        match text {
            ABSENT => {}
            text if text.bytes().all(|byte| byte.is_ascii_digit()) => number_count += 1,
            _ => text_count += 1,
        }
    }
    (width, number_count > 0 && text_count == 0)
}

/// Unix milliseconds as an RFC 3339 date, by the civil calendar's 400 year cycle.
pub(crate) fn date(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01: years then end with the leap day.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_767_225_600_001, "2026-01-01T00:00:00.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (unix_ms, expected) in cases {
            assert_eq!(date(unix_ms), expected);
        }
    }

    fn rows(is_json: bool) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, is_json);
        let rows = [(7u64, "a\nb"), (12, "")];
        for (number, name) in rows {
            let row = Row::new()
                .number("id", number)
                .text("name", name)
                .json("more", true)
                .flag("old", false);
            printer.row(row).expect("a vector takes all");
        }
        printer.end().expect("a vector takes all");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn people_get_columns_and_no_control_characters() {
        assert_eq!(
            rows(false),
            "ID  NAME  OLD\n 7  a\\nb  no\n12  \"\"    no\n"
        );
    }

    #[test]
    fn machines_get_lines_in_the_order_of_the_cells() {
        let expected = "{\"id\":7,\"name\":\"a\\nb\",\"more\":true,\"old\":false}\n\
                        {\"id\":12,\"name\":\"\",\"more\":true,\"old\":false}\n";
        assert_eq!(rows(true), expected);
    }
}
