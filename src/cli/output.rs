//! What commands print: tables for people, the API's own JSON for programs.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::ValueEnum;
use comfy_table::{CellAlignment, presets};
use serde_json::Value;

use super::{FAILED, fail};

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns, for people
    #[default]
    Table,
    /// The API's document as it is, for programs
    Json,
}

/// `--output` of every command that looks at something.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Output {
    /// How to print it
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// When the text cannot be written for any other reason.
pub fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// The end of a command that has nothing more to do than to print this: 0, or 1 where it cannot
/// be written.
pub fn print(text: &str) -> ExitCode {
    match say(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, format!("standard output: {error}")),
    }
}

/// Writes to standard error. Where nobody is there to be told, the exit code still says it.
pub fn warn(text: &str) {
    let _told = io::stderr().lock().write_all(text.as_bytes());
}

/// Text of others as it may stand on a terminal: what would move its cursor, colour it or turn
/// its direction is escaped (f76).
pub fn plain(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns(c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// As [`plain`], for text that may have several lines.
pub fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

/// A value of a document in a cell: texts as they are, what is absent as `-`.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => plain(text),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            let pairs = map.iter().map(|(name, value)| format!("{}={}", plain(name), cell(value)));
            pairs.collect::<Vec<_>>().join(", ")
        }
    }
}

/// A table. A heading that begins with `>` is of a column of amounts, which stand at the right.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if headings.get(index).is_some_and(|heading| heading.starts_with('>')) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Lines of a name and a value, the values below each other.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in fields {
        // Writing to a text cannot fail.
        let _infallible = writeln!(text, "{name:width$}  {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_amounts_stand_at_the_right() {
        let rows = [["a", "10.5", "x"], ["alice", "3", "-"]];
        let text = table(&["ID", ">LEFT", "PLAN"], rows.map(|row| row.map(str::to_owned).to_vec()));
        assert_eq!(text, "ID     LEFT  PLAN\na      10.5  x\nalice     3  -\n");
        assert_eq!(table(&["ID"], []), "ID\n");
    }

    #[test]
    fn f76_text_of_others_cannot_act_on_the_terminal() {
        let hostile = json!("a\u{1b}[31m\r\n\u{202e}\u{7f}\u{9b}b");
        assert_eq!(cell(&hostile), "a\\u{1b}[31m\\r\\n\\u{202e}\\u{7f}\\u{9b}b");
        assert_eq!(plain_lines("a\n\u{1b}b"), "a\n\\u{1b}b");
    }

    #[test]
    fn values_have_a_form_for_people() {
        let value = json!([null, "", [], true, 3, ["a", "b"], { "n": "2" }]);
        let cells: Vec<String> = value.as_array().unwrap().iter().map(cell).collect();
        assert_eq!(cells, ["-", "-", "-", "yes", "3", "a, b", "n=2"]);
        assert_eq!(fields(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
