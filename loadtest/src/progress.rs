//! What a person sees: a line while it runs, and tables at the end.

use std::io::{IsTerminal, Write};
use std::rc::Rc;
use std::time::Instant;

use crate::driver::{Arrivals, Lane};

/// A line on standard error: over itself on a terminal, else once in ten seconds.
pub struct Progress {
    terminal: bool,
    last: Option<Instant>,
    shown: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: None, shown: false }
    }
}

impl Progress {
    /// Shows how a phase goes.
    pub fn show(&mut self, title: &str, start: Instant, lanes: &[(Rc<Lane>, Arrivals)]) {
        let due = self.terminal || self.last.is_none_or(|last| last.elapsed().as_secs() >= 10);
        if !due {
            return;
        }
        let length = lanes.iter().map(|(_, arrivals)| match arrivals {
            Arrivals::Open { length, .. } | Arrivals::Closed { length } => length.as_secs(),
        });
        let length = length.max().unwrap_or(0);
        let mut line = format!("{title} {}/{length} s", start.elapsed().as_secs());
        for (lane, arrivals) in lanes {
            let asked = match arrivals {
                Arrivals::Open { rate, .. } => format!("of {rate:.0}/s"),
                Arrivals::Closed { .. } => "closed".to_owned(),
            };
            let (before, counts) = lane.look(|stats| {
                let seconds = &stats.seconds;
                (seconds.iter().rev().nth(1).copied().unwrap_or_default(), stats.counts)
            });
            let failed =
                counts.unavailable + counts.planted + counts.wrong + counts.unknown + counts.unsent;
            line += &format!(
                " | {} {asked}: served {} refused {} /s, failed {failed}, p99 {:.1} ms",
                lane.spec().name,
                before.served,
                before.refused,
                before.p99_us as f64 / 1000.0
            );
        }
        self.line(&line);
        self.last = Some(Instant::now());
    }

    /// Says what is being done.
    pub fn say(&mut self, what: &str) {
        self.line(what);
        self.last = None;
    }

    fn line(&mut self, line: &str) {
        let mut out = std::io::stderr().lock();
        // Nobody who looks is no reason to fail.
        let _ = if self.terminal { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
        self.shown = true;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.shown {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// Writes to standard output; a reader may go away.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Rows with a head, in columns; the first is a name, the others are numbers.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if column == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}
