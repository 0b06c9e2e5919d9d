//! Logs: one line an event on standard error, as text or JSON.
//!
//! A line is a line whatever is logged (f76): control characters, escape sequences and invisible
//! marks in any name, path or message are written as escapes. Nothing is coloured, so that no
//! byte of a log means anything to a terminal.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use crate::config::{self, LogFormat, LogLevel};

/// Changes what is logged, and how, while the process runs.
#[derive(Clone)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
    json: Arc<AtomicBool>,
    directives: Option<Arc<str>>,
}

impl Logs {
    /// Begins to log. `directives` (`RUST_LOG`) say how much instead of the configuration.
    pub fn start(config: &config::Log, directives: Option<String>) -> Self {
        let directives: Option<Arc<str>> =
            directives.filter(|text| !text.is_empty()).map(Arc::from);
        let json = Arc::new(AtomicBool::new(config.format == LogFormat::Json));
        let (filter, handle) = reload::Layer::new(filter(config, directives.as_deref()));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .event_format(Lines { json: Arc::clone(&json) });
        // A second subscriber (two demos in one process) changes nothing.
        let _first_wins = tracing_subscriber::registry().with(filter).with(lines).try_init();
        Self { filter: handle, json, directives }
    }

    /// Takes another configuration.
    pub fn set(&self, config: &config::Log) {
        self.json.store(config.format == LogFormat::Json, Relaxed);
        // It fails only where the subscriber is gone, and nobody logs then.
        let _ = self.filter.reload(filter(config, self.directives.as_deref()));
    }
}

fn filter(config: &config::Log, directives: Option<&str>) -> EnvFilter {
    let own = directives.and_then(|text| EnvFilter::try_new(text).ok());
    own.unwrap_or_else(|| {
        // What libraries tell at the lower levels is about themselves.
        let level = match config.level {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "info,tollgate=debug",
            LogLevel::Trace => "info,tollgate=trace",
        };
        let access = if config.access { ",tollgate::access=info" } else { "" };
        EnvFilter::new([level, access].concat())
    })
}

/// How an event becomes a line.
struct Lines {
    json: Arc<AtomicBool>,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (level, target) = (event.metadata().level().as_str(), event.metadata().target());
        let now = Timestamp::now();
        let line = match self.json.load(Relaxed) {
            true => fields.json(now, level, target),
            false => fields.text(now, level, target),
        };
        writer.write_str(&line)
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.push((field.name(), value.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, format!("{value:?}"));
    }
}

impl Fields {
    fn record(&mut self, field: &Field, text: String) {
        match field.name() {
            "message" => self.message = text,
            name => self.others.push((name, text.into())),
        }
    }

    /// `time level target: message key=value …`
    fn text(&self, now: Timestamp, level: &str, target: &str) -> String {
        let mut line = format!("{now:.6} {level:>5} {target}: ");
        push_plain(&mut line, &self.message);
        for (name, value) in &self.others {
            // Writing to a string cannot fail.
            let _ = match value.as_str() {
                Some(text) if is_plain(text) => write!(line, " {name}={text}"),
                Some(text) => write!(line, " {name}={text:?}"),
                None => write!(line, " {name}={value}"),
            };
        }
        line + "\n"
    }

    fn json(self, now: Timestamp, level: &str, target: &str) -> String {
        let mut line = Map::new();
        line.insert("time".to_owned(), format!("{now:.6}").into());
        line.insert("level".to_owned(), level.into());
        line.insert("target".to_owned(), target.into());
        line.insert("message".to_owned(), self.message.into());
        line.extend(self.others.into_iter().map(|(name, value)| (name.to_owned(), value)));
        // JSON escapes C0; what else a terminal may obey is escaped here.
        let mut text = String::new();
        for c in Value::Object(line).to_string().chars() {
            match c {
                c if c.is_ascii() && c != '\u{7f}' || is_visible(c) => text.push(c),
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(text, "\\u{unit:04x}");
                    }
                }
            }
        }
        text + "\n"
    }
}

/// Whether a value can stand in a line without quotes.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| is_visible(c) && !matches!(c, ' ' | '"' | '=' | '\\'))
}

/// Whether a character is one that a reader sees as itself.
fn is_visible(c: char) -> bool {
    c == '\'' || c == '"' || c == '\\' || c.escape_debug().len() == 1
}

fn push_plain(line: &mut String, text: &str) {
    for c in text.chars() {
        if is_visible(c) { line.push(c) } else { line.extend(c.escape_debug()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\nb\r\u{1b}[31m\u{9b}2J\u{202e}\u{7}\u{0} \"q\" \\ é";

    fn fields() -> Fields {
        let others = vec![("path", HOSTILE.into()), ("status", 200.into()), ("who", "al".into())];
        Fields { message: HOSTILE.to_owned(), others }
    }

    #[test]
    fn f76_a_line_is_a_line_and_harmless_whatever_is_logged() {
        let now = Timestamp::UNIX_EPOCH;
        let json = fields().json(now, "INFO", "t");
        for line in [fields().text(now, "INFO", "t"), json.clone()] {
            assert!(line.ends_with('\n'));
            let harmless = |c: char| !c.is_control() && c != '\u{202e}';
            assert!(line.trim_end().chars().all(harmless), "{line:?}");
        }
        let back: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(back["path"], HOSTILE);
        assert_eq!(back["message"], HOSTILE);
        assert_eq!((&back["status"], &back["level"]), (&200.into(), &"INFO".into()));
    }

    #[test]
    fn plain_values_stand_without_quotes() {
        let line = fields().text(Timestamp::UNIX_EPOCH, "WARN", "tollgate::app");
        assert!(line.starts_with("1970-01-01T00:00:00.000000Z  WARN tollgate::app: a\\nb"));
        assert!(line.ends_with(" status=200 who=al\n"), "{line}");
    }
}
