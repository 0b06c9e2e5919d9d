//! A result as one page of HTML that needs nothing else: tables first, then plots.

use std::fmt::Write;

use crate::against::{self, Change};
use crate::plot::{Axis, Bars, Plot, Scale, Series, escape};
use crate::result::{Lane, Phase, Report, number};
use crate::summary;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:#1c1c1c;background:#fff;max-width:920px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.15rem;margin-top:2.2rem}p{margin:.4rem 0}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}\
th,td{text-align:right;padding:.25rem .5rem;border-bottom:1px solid #e4e4e4;white-space:nowrap}\
th{font-weight:600}th:first-child,td:first-child{text-align:left}\
.bad{color:#a01224;font-weight:600}.good{color:#1d6b3c}.dim{color:#666}\
figure{margin:1.4rem 0}figcaption{font-weight:600;margin-bottom:.3rem}svg{max-width:100%;height:auto}\
svg text{font:12px system-ui,sans-serif;fill:#444}svg .label{font-size:12.5px;fill:#222}\
svg .grid{stroke:#e6e6e6;fill:none}svg .series{fill:none;stroke-width:1.8;stroke-linejoin:round}\
svg path.mark{stroke:#a01224;stroke-dasharray:4 3;fill:none}svg text.mark{fill:#a01224}\
.legend{font-size:13px}.legend span{margin-right:1.2em;white-space:nowrap}\
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}";

/// The page.
pub fn html(report: &Report, changes: Option<&[Change]>) -> String {
    let mut page = String::new();
    let title = escape(&report.name);
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><h1>{title}</h1><p>{}</p>",
        escape(&report.about)
    );
    let failures = report.failures();
    let regressed =
        changes.iter().flat_map(|changes| changes.iter()).any(|change| change.regressed);
    let missed = report.verdicts.iter().any(|verdict| !verdict.met && !report.short);
    let _ = match (failures.is_empty(), regressed) {
        (true, false) if missed => {
            write!(page, "<p>The audit passes. Not every target is met.</p>")
        }
        (true, false) => {
            write!(page, "<p class=\"good\">The audit passes and expectations are met.</p>")
        }
        (true, true) => {
            write!(page, "<p class=\"bad\">It is worse than the result it is compared with.</p>")
        }
        (false, _) => {
            write!(page, "<p class=\"bad\">No good result: {}.</p>", escape(&failures.join("; ")))
        }
    };
    let (head, rows) = summary::rows(report);
    table(&mut page, &head, &rows);
    for note in &report.notes {
        let _ = write!(page, "<p class=\"dim\">{}</p>", escape(note));
    }
    verdicts(&mut page, report);
    if let Some(changes) = changes {
        page += "<h2>Against the older result</h2>";
        table(&mut page, &["figure", "then", "now", "ratio", "bound", ""], &against::rows(changes));
    }
    page += "<h2>Plots</h2>";
    plots(&mut page, report);
    audit(&mut page, report);
    machine(&mut page, report);
    page + "</body></html>\n"
}

fn table(page: &mut String, head: &[&str], rows: &[Vec<String>]) {
    let cells = |name: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
        cells.map(|cell| format!("<{name}>{}</{name}>", escape(cell))).collect()
    };
    let _ = write!(
        page,
        "<div class=\"scroll\"><table><thead><tr>{}</tr></thead><tbody>",
        cells("th", &mut head.iter().copied())
    );
    for row in rows {
        let _ = write!(page, "<tr>{}</tr>", cells("td", &mut row.iter().map(String::as_str)));
    }
    *page += "</tbody></table></div>";
}

fn verdicts(page: &mut String, report: &Report) {
    if report.verdicts.is_empty() {
        return;
    }
    *page += "<h2>Expected</h2><ul>";
    for verdict in &report.verdicts {
        let class = if verdict.met {
            "good"
        } else if report.short && !verdict.counts {
            "dim"
        } else {
            "bad"
        };
        let word = verdict.word(report.short);
        let _ = write!(
            page,
            "<li>{} <span class=\"{class}\">{word}</span></li>",
            escape(&verdict.text())
        );
    }
    *page += "</ul>";
}

fn audit(page: &mut String, report: &Report) {
    *page += "<h2>Audit</h2>";
    let rows: Vec<Vec<String>> = report
        .audit
        .iter()
        .map(|line| {
            let agrees = if line.agrees { "agrees" } else { "DIFFERS" };
            vec![line.what.clone(), line.driver.clone(), line.found.clone(), agrees.to_owned()]
        })
        .collect();
    table(page, &["what", "driver", "found", ""], &rows);
}

fn machine(page: &mut String, report: &Report) {
    let machine = &report.machine;
    let _ = write!(
        page,
        "<h2>Measured on</h2><p>{} · {} cores · {} MB · Linux {} · {} · load {}</p><p>",
        escape(&machine.processor),
        machine.cores,
        number(machine.memory_mb as f64),
        escape(&machine.kernel),
        escape(&machine.at),
        escape(&machine.load.join(" to "))
    );
    let versions = machine.versions.iter().map(|(name, version)| format!("{name}: {version}"));
    *page += &escape(&versions.collect::<Vec<_>>().join(" · "));
    *page += "</p><h2>All figures</h2>";
    let rows: Vec<Vec<String>> = report
        .figures
        .iter()
        .map(|(name, figure)| {
            let rounds = figure.rounds.iter().map(|value| number(*value)).collect::<Vec<_>>();
            vec![name.clone(), number(figure.value), rounds.join(" ")]
        })
        .collect();
    table(page, &["figure", "median", "of rounds"], &rows);
}

fn plots(page: &mut String, report: &Report) {
    let ms = |us: u64| us as f64 / 1e3;
    let latency = || Axis::new("latency from the intended send time, ms", Scale::Log);
    let mut series = Vec::new();
    for load in &report.loads {
        for (index, name) in ["p50", "p99", "p99.9"].into_iter().enumerate() {
            let points = load.points.iter().map(|(rate, of)| (*rate, ms(of[index]))).collect();
            series.push(Series { name: format!("{} {name}", load.name), points });
        }
    }
    let x = Axis::new("requests a second", Scale::Linear);
    let plot =
        Plot { title: "Latency over load".into(), x, y: latency(), series, marks: Vec::new() };
    *page += &plot.draw();

    let curve = |name: String, points: &[(f64, u64)]| Series {
        name,
        points: points.iter().map(|(share, us)| (*share, ms(*us))).collect(),
    };
    let mut series = Vec::new();
    for phase in &report.phases {
        for lane in &phase.lanes {
            if lane.rate.is_none() && report.phases.len() > 1 {
                continue;
            }
            let name = format!("{}, {}", phase.name, lane.name);
            let (served, refused) = (&lane.served, &lane.refused);
            if lane.counts.served > 0 {
                series.push(curve(name.clone(), served));
            }
            if lane.counts.refused > 0 {
                series.push(curve(format!("{name} (refused)"), refused));
            }
        }
    }
    let x = Axis::new("share of requests that are faster", Scale::Nines);
    let title = "Percentiles of latency".to_owned();
    *page += &Plot { title, x, y: latency(), series, marks: Vec::new() }.draw();

    let bars = report.bars.iter().map(|bar| (bar.name.clone(), bar.parts.clone())).collect();
    let title = "CPU per request, by process".to_owned();
    *page += &Bars { title, label: "µs of CPU per answered request".to_owned(), bars }.draw();

    for phase in report.phases.iter().filter(|phase| phase.took >= 2.0) {
        timeline(page, phase, !phase.marks.is_empty());
    }
}

/// How a phase went, second by second: all of it where something happened, else only its memory
/// where it is long.
fn timeline(page: &mut String, phase: &Phase, happened: bool) {
    let x = || Axis::new("seconds since the phase began", Scale::Linear);
    let by_second = |lane: &Lane, of: fn(&crate::driver::Second) -> u64| -> Vec<(f64, f64)> {
        lane.seconds
            .iter()
            .enumerate()
            .map(|(at, second)| (at as f64 + 0.5, of(second) as f64))
            .collect()
    };
    if happened {
        let mut series = Vec::new();
        for lane in &phase.lanes {
            for (what, of) in [
                ("served", (|second| second.served) as fn(&crate::driver::Second) -> u64),
                ("refused", |second| second.refused),
                ("failed", |second| second.failed),
            ] {
                let points = by_second(lane, of);
                if points.iter().any(|(_, count)| *count > 0.0) {
                    series.push(Series { name: format!("{} {what}", lane.name), points });
                }
            }
        }
        let title = format!("{}: answers a second", phase.name);
        let y = Axis::new("answers a second", Scale::Linear);
        *page += &Plot { title, x: x(), y, series, marks: phase.marks.clone() }.draw();

        let series = phase.lanes.iter().map(|lane| Series {
            name: format!("{} p99", lane.name),
            points: by_second(lane, |second| second.p99_us)
                .into_iter()
                .filter(|(_, us)| *us > 0.0)
                .map(|(at, us)| (at, us / 1e3))
                .collect(),
        });
        let title = format!("{}: latency of what was served", phase.name);
        let y = Axis::new("latency, ms", Scale::Log);
        let series = series.filter(|series| !series.points.is_empty()).collect();
        *page += &Plot { title, x: x(), y, series, marks: phase.marks.clone() }.draw();
    }
    if phase.samples.len() >= 10 {
        let samples = || phase.samples.iter();
        let rss = samples().map(|sample| (sample.at, sample.rss_mb)).collect();
        let journal = samples().map(|sample| (sample.at, sample.journal_mb)).collect();
        let series = vec![
            Series { name: "resident memory".to_owned(), points: rss },
            Series { name: "journal on disk".to_owned(), points: journal },
        ];
        let title = format!("{}: memory and disk of the gateway", phase.name);
        let y = Axis::new("MB", Scale::Linear);
        *page += &Plot { title, x: x(), y, series, marks: phase.marks.clone() }.draw();
    }
}
