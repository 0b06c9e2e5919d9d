//! Compares a result with an older one: what became worse beyond a threshold is a regression.

use crate::result::{Report, number};

/// How far a figure may move, by what its name ends with: the part of its old value, and whether
/// more is worse. What is not here is told by expectations or by the audit.
const THRESHOLDS: &[(&str, f64, bool)] = &[
    ("cpu_us_per_request", 0.10, true),
    ("archive_us_per_request", 0.25, true),
    ("served_per_s", 0.10, false),
    ("refused_p50_us", 0.25, true),
    ("p50_us", 0.25, true),
    ("p99_us", 0.40, true),
    ("rss_mb", 0.15, true),
    ("bytes_per_seat", 0.15, true),
    ("bytes_per_user", 0.15, true),
    ("kb_per_descriptor", 0.25, true),
    ("ready_s", 0.25, true),
    ("P1", 0.07, true),
    ("P2", 0.07, true),
    ("P3", 0.10, true),
    ("P4", 0.10, true),
    ("P8.p50", 0.15, true),
    ("P8.p99", 0.25, true),
];

/// A figure in both.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which.
    pub figure: String,
    /// Then.
    pub old: f64,
    /// Now.
    pub new: f64,
    /// The most, or the least, that it may be now.
    pub bound: f64,
    /// Whether it is beyond that.
    pub regressed: bool,
}

/// The figures of both that have a threshold; `times` makes all thresholds wider.
///
/// # Errors
/// When they are not of the same thing.
pub fn compare(old: &Report, new: &Report, times: f64) -> anyhow::Result<Vec<Change>> {
    anyhow::ensure!(old.name == new.name, "{} is not compared with {}", new.name, old.name);
    anyhow::ensure!(old.short == new.short, "a short form is compared with short forms only");
    let mut changes = Vec::new();
    for (name, figure) in &new.figures {
        let threshold = THRESHOLDS.iter().find(|(ending, ..)| name.ends_with(ending));
        let (Some((_, part, more_is_worse)), Some(old)) = (threshold, old.value(name)) else {
            continue;
        };
        // Beside nothing everything is much.
        if old <= 0.0 {
            continue;
        }
        let part = if *more_is_worse { part * times } else { -(part * times).min(1.0) };
        let bound = old * (1.0 + part);
        let regressed = if *more_is_worse { figure.value > bound } else { figure.value < bound };
        changes.push(Change { figure: name.clone(), old, new: figure.value, bound, regressed });
    }
    anyhow::ensure!(!changes.is_empty(), "the two results have no figure in common");
    Ok(changes)
}

/// Rows of a table: the worst first.
pub fn rows(changes: &[Change]) -> Vec<Vec<String>> {
    let mut sorted: Vec<&Change> = changes.iter().collect();
    sorted.sort_by_key(|change| !change.regressed);
    let row = |change: &Change| {
        let verdict = if change.regressed { "REGRESSED" } else { "" };
        let ratio = format!("{:.3}", change.new / change.old);
        vec![
            change.figure.clone(),
            number(change.old),
            number(change.new),
            ratio,
            number(change.bound),
            verdict.to_owned(),
        ]
    };
    sorted.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Machine;
    use crate::summary;

    fn report(figures: &[(&str, f64)]) -> Report {
        let mut report = summary::empty("a", "", false, Machine::default());
        figures.iter().for_each(|(name, value)| report.figure(*name, *value));
        report
    }

    fn regressed(old: &[(&str, f64)], new: &[(&str, f64)]) -> usize {
        let changes = compare(&report(old), &report(new), 1.0).unwrap();
        changes.iter().filter(|change| change.regressed).count()
    }

    #[test]
    fn only_what_is_worse_beyond_its_threshold_is_a_regression() {
        let cpu = "p.system.cpu_us_per_request";
        assert_eq!(regressed(&[(cpu, 20.0)], &[(cpu, 21.9)]), 0);
        assert_eq!(regressed(&[(cpu, 20.0)], &[(cpu, 22.1)]), 1);
        assert_eq!(regressed(&[(cpu, 20.0)], &[(cpu, 5.0)]), 0);
        let rate = "p.f.served_per_s";
        assert_eq!(regressed(&[(rate, 1000.0)], &[(rate, 899.0)]), 1);
        assert_eq!(regressed(&[(rate, 1000.0)], &[(rate, 2000.0)]), 0);
        // What only one of them has is not compared.
        assert_eq!(regressed(&[(rate, 1000.0)], &[(rate, 1000.0), (cpu, 99.0)]), 0);
    }

    #[test]
    fn results_of_different_things_are_not_compared() {
        let other = Report { name: "b".to_owned(), ..report(&[("P1", 1.0)]) };
        compare(&report(&[("P1", 1.0)]), &other, 1.0).unwrap_err();
        compare(&report(&[("P1", 1.0)]), &report(&[("x", 1.0)]), 1.0).unwrap_err();
    }
}
