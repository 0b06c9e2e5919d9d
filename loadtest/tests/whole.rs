//! Whole runs in short form, against the gateway that was built beside this: what is measured means
//! nothing, but everything is started, driven, audited, written and drawn.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const HARNESS: &str = env!("CARGO_BIN_EXE_tollgate-loadtest");

/// The gateway of the same build.
fn gateway() -> PathBuf {
    let path = Path::new(HARNESS).with_file_name("tollgate");
    assert!(path.exists(), "the gateway is not built: test with --workspace");
    path
}

fn run(scenario: &str, gateway: &Path, out: &Path) -> (Output, String) {
    let mut command = Command::new(HARNESS);
    command.args(["run", scenario, "--short", "--tollgate"]).arg(gateway).arg("--out").arg(out);
    let done = command.output().unwrap();
    let text = [&done.stdout[..], &done.stderr].concat();
    (done, String::from_utf8(text).unwrap())
}

/// What a browser makes of a page: the page's own content, and behind it what a script says that is
/// added to it here.
fn browse(page: &Path, script: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(page).unwrap();
    assert!(!text.contains("<script"), "a report works without script");
    assert!(!text.contains("http://") && !text.contains("https://"), "and needs nothing else");
    let probe = format!(
        "<pre id=\"probe\"></pre><script>document.getElementById('probe').textContent=\
         JSON.stringify({script})</script></body>"
    );
    let copy = dir.path().join("page.html");
    std::fs::write(&copy, text.replace("</body>", &probe)).unwrap();
    let done = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .args(["--window-size=1000,2000", "--dump-dom"])
        .arg(format!("file://{}", copy.display()))
        .output()
        .unwrap_or_else(|error| panic!("chromium is not installed; tests/run does that: {error}"));
    let text = String::from_utf8(done.stdout).unwrap();
    let (_, told) = text.split_once("<pre id=\"probe\">").unwrap();
    let told = told.split_once("</pre>").unwrap().0;
    let told = told.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&told).unwrap_or_else(|_| panic!("the script failed: {told}"))
}

/// Of each plot: its title, and of everything drawn in it how large it is and whether it is inside.
const PLOTS: &str = "[...document.querySelectorAll('svg.plot')].map(svg => {\
    const outer = svg.getBoundingClientRect();\
    const seen = e => { const b = e.getBoundingClientRect(); return {width: b.width, height: b.height,\
        length: e.getTotalLength ? e.getTotalLength() : 0,\
        colour: getComputedStyle(e).stroke + getComputedStyle(e).fill,\
        inside: b.left >= outer.left - 1 && b.right <= outer.right + 1\
            && b.top >= outer.top - 1 && b.bottom <= outer.bottom + 1}};\
    const all = which => [...svg.querySelectorAll(which)].map(seen);\
    return {title: svg.getAttribute('aria-label'), width: outer.width, height: outer.height,\
        lines: all('path.series'), bars: all('rect.bar'), texts: all('text'), labels: all('text.label')}})";

fn drawn(page: &Path) -> Vec<String> {
    let plots = browse(page, PLOTS);
    let plots = plots.as_array().unwrap();
    for plot in plots {
        let list = |name: &str| plot[name].as_array().unwrap().clone();
        assert!(plot["width"].as_f64().unwrap() > 300.0, "{plot}");
        let content = [list("lines"), list("bars")].concat();
        let drawn = content.iter().filter(|one| one["length"].as_f64().unwrap() > 20.0);
        assert!(drawn.count() > 0, "nothing is drawn: {plot}");
        assert!(!list("labels").is_empty() && list("texts").len() > 5, "no axes: {plot}");
        for one in content.iter().chain(&list("texts")) {
            assert_eq!(one["inside"], true, "{}: {one}", plot["title"]);
            assert_ne!(one["colour"], "nonenone", "{}: {one}", plot["title"]);
        }
        for text in list("texts") {
            assert!(text["width"].as_f64().unwrap() > 0.0, "{}: a text is empty", plot["title"]);
        }
    }
    plots.iter().map(|plot| plot["title"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_short_run_agrees_and_its_report_is_drawn() {
    let out = tempfile::tempdir().unwrap();
    let (done, text) = run("quick", &gateway(), out.path());
    assert!(done.status.success(), "{text}");
    assert!(text.contains("comparisons agree") && text.contains("mix, image"), "{text}");

    let json = out.path().join("quick.json");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let audit = result["audit"].as_array().unwrap();
    assert!(audit.len() >= 12 && audit.iter().all(|line| line["agrees"] == true), "{audit:?}");
    let figure = |name: &str| result["figures"][name]["value"].as_f64().unwrap();
    for served in ["capacity.image", "mix.image", "mix.free", "mix.chat", "load 0.5.image"] {
        assert!(figure(&format!("{served}.served")) > 0.0, "{served}");
        assert!(figure(&format!("{served}.p99_us")) >= figure(&format!("{served}.p50_us")));
    }
    assert!(figure("refusals.refused.refused") > 0.0 && figure("mix.refused.served") == 0.0);
    assert!(figure("capacity.system.cpu_us_per_request") > 0.0);
    assert!(result["machine"]["kernel"].as_str().unwrap().contains('.'));
    assert!(result["machine"]["versions"]["tollgate"].as_str().unwrap().starts_with("tollgate "));

    let titles = drawn(&json.with_extension("html"));
    for wanted in ["Latency over load", "Percentiles of latency", "CPU per request, by process"] {
        assert!(titles.iter().any(|title| title == wanted), "{wanted}: {titles:?}");
    }

    // Against itself nothing is worse; against one that was twice as good it is.
    let against = |old: &Path| {
        let mut command = Command::new(HARNESS);
        command.arg("report").arg(&json).arg("--against").arg(old).output().unwrap()
    };
    assert!(against(&json).status.success());
    let mut better = result;
    for (name, figure) in better["figures"].as_object_mut().unwrap() {
        if name.ends_with("cpu_us_per_request") {
            figure["value"] = (figure["value"].as_f64().unwrap() / 2.0).into();
        }
    }
    let old = out.path().join("old.json");
    std::fs::write(&old, better.to_string()).unwrap();
    let worse = against(&old);
    assert_eq!(worse.status.code(), Some(1));
    assert!(String::from_utf8(worse.stdout).unwrap().contains("REGRESSED"));
}

#[test]
fn a_short_soak_grows_by_nothing_and_keeps_the_rule_of_the_journal() {
    let out = tempfile::tempdir().unwrap();
    let (done, text) = run("soak", &gateway(), out.path());
    assert!(done.status.success(), "{text}");
    let json = std::fs::read(out.path().join("soak.json")).unwrap();
    let result: Value = serde_json::from_slice(&json).unwrap();
    let figure = |name: &str| result["figures"][name]["value"].as_f64().unwrap();
    assert!(figure("soak.system.descriptors_growth") <= 8.0, "{text}");
    assert!(figure("soak.system.rss_growth_mb") <= 30.0, "{text}");
    let rule = figure("end.journal_of_rule");
    assert!(rule > 0.0 && rule <= 1.0, "{text}");
    let titles = drawn(&out.path().join("soak.html"));
    assert!(titles.contains(&"soak: memory and disk of the gateway".to_owned()), "{titles:?}");
}

const SMALL: &str = r#"
about = "A second."
[[users]]
name = "all"
count = 20
licences = ["1000000"]
[[flow]]
name = "image"
users = "all"
request = "image"
connections = 2
[[phase]]
name = "run"
seconds = 1
rate = { image = 50.0 }
[[fault]]
phase = "run"
at = 0.4
seconds = 0.2
what = "backend-stall"
[[expect]]
figure = "run.image.served"
at_least = 50
exact = true
"#;

#[test]
fn a_run_passes_with_an_honest_gateway_and_expectations_that_are_met_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway();
    let scenario = dir.path().join("small.toml");
    let liar = dir.path().join("liar");
    // What `ledger verify` is made to say; everything else is the gateway's own.
    let lie = |says: &str| {
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = ledger ]; then {says}; fi\nexec {} \"$@\"\n",
            gateway.display()
        );
        std::fs::write(&liar, script).unwrap();
        std::fs::set_permissions(&liar, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    };
    let honest = SMALL.to_owned();
    for (text, says, wanted) in [
        (&honest, "true", None),
        (
            &honest,
            "echo '{\"charges\":51,\"open\":0}'; exit 0",
            Some("AUDIT: charges, by the records: 50"),
        ),
        (&honest, "echo '{\"charges\":50,\"open\":1}'; exit 0", Some("AUDIT: open charges")),
        (
            &honest,
            "echo an account does not add up; exit 1",
            Some("no result: AUDIT: ledger verify"),
        ),
        (
            &SMALL.replace("at_least = 50", "at_least = 51"),
            "true",
            Some("MISSED: run.image.served"),
        ),
    ] {
        std::fs::write(&scenario, text).unwrap();
        lie(says);
        let (done, told) = run(scenario.to_str().unwrap(), &liar, dir.path());
        match wanted {
            None => assert!(done.status.success(), "{told}"),
            Some(why) => {
                assert_eq!(done.status.code(), Some(1), "{told}");
                assert!(told.contains(why), "{why}: {told}");
            }
        }
    }
    let titles = drawn(&dir.path().join("small.html"));
    assert!(titles.contains(&"Percentiles of latency".to_owned()), "{titles:?}");
    // While the backend stood still for a fifth of the time only two requests could be sent. Those
    // that were meant for it are a fifth of all, and as late as they were.
    let json = std::fs::read(dir.path().join("small.json")).unwrap();
    let result: Value = serde_json::from_slice(&json).unwrap();
    let curve = result["phases"][0]["lanes"][0]["served"].as_array().unwrap();
    let p90 = curve.iter().find(|point| point[0] == 0.9).unwrap()[1].as_u64().unwrap();
    assert!(p90 > 60_000, "{curve:?}");
}

#[test]
fn a_comparison_audits_both_engines_and_says_who_was_not_measured() {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(HARNESS);
    command.args([
        "compare",
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--users",
        "50",
        "--peers",
        "none",
    ]);
    let done =
        command.arg("--tollgate").arg(gateway()).arg("--out").arg(out.path()).output().unwrap();
    let text = String::from_utf8([&done.stdout[..], &done.stderr].concat()).unwrap();
    assert!(done.status.success(), "{text}");
    assert!(text.contains("note: HAProxy was not asked for"), "{text}");
    assert!(text.contains("no result to quote"), "{text}");
    let json = std::fs::read(out.path().join("compare.json")).unwrap();
    let result: Value = serde_json::from_slice(&json).unwrap();
    for what in ["P2", "P4", "metered, books in Redis.system.cpu_us_per_request"] {
        assert!(result["figures"][what]["value"].as_f64().unwrap() > 0.0, "{what}");
    }
    assert!(result["figures"]["P1"].is_null(), "there was no nginx");
    let credits =
        |line: &&Value| line["what"].as_str().unwrap().starts_with("credits, by the books");
    assert_eq!(result["audit"].as_array().unwrap().iter().filter(credits).count(), 2);
    let titles = drawn(&out.path().join("compare.html"));
    assert!(titles.contains(&"CPU per request, by process".to_owned()), "{titles:?}");
}
