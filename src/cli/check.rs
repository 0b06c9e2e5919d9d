//! `tollgate check`: is this configuration valid, and what does it come to?

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::USAGE;
use super::output::{Format, Output, print, warn};
use crate::config::{self, ConfigError, Loaded, Place, Problem};

/// See `--help`.
#[derive(Debug, Args)]
#[command(after_help = "Every error has its file, line, column and key, and says what was \
expected; exit code 2. What is valid and hardly meant so is a warning.\n\nExamples:
  tollgate check -c tollgate.toml
  tollgate check --print                     what is effective, defaults and environment included
  tollgate check --output json | jq .errors")]
pub struct Options {
    /// The configuration [default: tollgate.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective configuration as TOML, secrets hidden
    #[arg(long, conflicts_with = "format")]
    print: bool,
    #[command(flatten)]
    output: Output,
}

/// What a check comes to.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// For standard output.
    pub out: String,
    /// For standard error.
    pub err: String,
    /// The exit code.
    pub code: u8,
}

/// Checks the file and the process's environment; prints a summary, or with `--print` the
/// effective configuration, or what is wrong.
pub fn check(options: &Options) -> ExitCode {
    let (path, environment) = (options.config.as_deref(), config::environment());
    let checked = run(path, options.print, options.output.format, environment);
    warn(&checked.err);
    match print(&checked.out) {
        ExitCode::SUCCESS => ExitCode::from(checked.code),
        unwritten => unwritten,
    }
}

/// As [`check`], with everything it touches given to it.
pub fn run(
    path: Option<&Path>,
    print: bool,
    format: Format,
    env: impl Iterator<Item = (String, String)>,
) -> Checked {
    let (out, err, code) = match (config::load(path, env), format) {
        (Ok(loaded), _) if print => match loaded.config.print() {
            Ok(text) => (text, warnings(&loaded), 0),
            Err(error) => (String::new(), format!("{error}\n"), USAGE),
        },
        (Ok(loaded), Format::Table) => (format!("{}\n", summary(&loaded)), warnings(&loaded), 0),
        (Ok(loaded), Format::Json) => (format!("{}\n", document(&loaded)), String::new(), 0),
        (Err(error), Format::Table) => (String::new(), format!("{error}\n"), USAGE),
        (Err(error), Format::Json) => (format!("{}\n", errors(&error)), String::new(), USAGE),
    };
    Checked { out, err, code }
}

fn warnings(loaded: &Loaded) -> String {
    loaded.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect()
}

fn document(Loaded { config, file, warnings }: &Loaded) -> Value {
    let warnings: Vec<Value> = warnings.iter().map(problem).collect();
    json!({
        "ok": true, "file": file.display().to_string(), "upstreams": config.upstream.len(),
        "routes": config.route.len(), "errors": [], "warnings": warnings,
    })
}

fn errors(ConfigError { problems }: &ConfigError) -> Value {
    let errors: Vec<Value> = problems.iter().map(problem).collect();
    json!({ "ok": false, "errors": errors })
}

fn problem(Problem { place, key, expected }: &Problem) -> Value {
    let mut document = match place {
        Place::File(file) => json!({ "file": file.display().to_string() }),
        Place::Line(file, line, column) => {
            json!({ "file": file.display().to_string(), "line": line, "column": column })
        }
        Place::Variable(name) => json!({ "variable": &**name }),
    };
    document["key"] = key.as_str().into();
    document["expected"] = expected.as_str().into();
    document
}

fn summary(Loaded { config, file, .. }: &Loaded) -> String {
    let free = config.route.iter().filter(|route| route.free).count();
    format!(
        "ok: {}, {}, {} ({free} free)",
        file.display(),
        count(config.upstream.len(), "upstream"),
        count(config.route.len(), "route"),
    )
}

fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str, print: bool, env: &[(&str, &str)]) -> (u8, String, String) {
        formatted(text, print, Format::Table, env)
    }

    fn formatted(
        text: &str,
        print: bool,
        format: Format,
        env: &[(&str, &str)],
    ) -> (u8, String, String) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("t.toml");
        std::fs::write(&file, text).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let Checked { out, err, code } = run(Some(&file), print, format, env);
        let root = format!("{}/", directory.path().display());
        (code, out.replace(&root, ""), err.replace(&root, ""))
    }

    #[test]
    fn a_valid_file_is_summed_up_and_exits_0() {
        let text = "[[upstream]]\nname = \"m\"\nurls = [\"http://h:1\"]\n";
        let expected = "ok: t.toml, 1 upstream, 0 routes (0 free)\n";
        assert_eq!(outcome(text, false, &[]), (0, expected.to_owned(), String::new()));
    }

    #[test]
    fn an_invalid_file_exits_2_with_every_error_and_prints_nothing_else() {
        let text = "[books]\nengine = \"redis\"\nshards = 0\n";
        let expected = "\
t.toml:2:10: books.engine: expected exactly one of url, url_env and url_file beside it
t.toml:3:10: books.shards: expected at least 1
";
        for print in [false, true] {
            assert_eq!(outcome(text, print, &[]), (2, String::new(), expected.to_owned()));
        }
    }

    #[test]
    fn json_has_each_error_with_its_place() {
        let env = [("TOLLGATE__BOOKS__SHARDS", "0")];
        let (code, out, err) = formatted("[books]\nengine = \"x\"\n", false, Format::Json, &env);
        assert_eq!((code, &*err), (2, ""));
        let expected = json!({ "ok": false, "errors": [
            { "file": "t.toml", "line": 2, "column": 10, "key": "books.engine",
              "expected": "expected `embedded` or `redis`" },
        ]});
        assert_eq!(out.parse::<Value>().unwrap(), expected);
        let (code, out, _) = formatted("", false, Format::Json, &env);
        assert_eq!(code, 2);
        let error = &out.parse::<Value>().unwrap()["errors"][0];
        assert_eq!(error["variable"], "TOLLGATE__BOOKS__SHARDS");
        assert_eq!(formatted("", false, Format::Json, &[]).0, 0);
    }

    #[test]
    fn d34_a_job_that_no_client_could_ask_for_is_a_warning_and_no_error() {
        let upstream =
            |name| format!("[[upstream]]\nname = \"{name}\"\nurls = [\"http://{name}:1\"]\n");
        let job = "[[route]]\nmethod = \"POST\"\npath = \"/v1/videos\"\nupstream = \"m\"\n\
                   feature = \"f\"\n[route.job]\nid = \"/id\"\n\
                   status_path = \"/v1/videos/{job}/status\"\nstatus = \"/status\"\n\
                   succeeded = [\"done\"]\nfailed = [\"failed\"]\n";
        let text = format!("{}{}{job}", upstream("m"), upstream("other"));
        let free = "upstream = \"m\"\nfree = true\n";
        for (polls, warns) in [
            (String::new(), true),
            (format!("path = \"/v1/videos/{{id}}\"\n{free}"), true),
            (format!("path = \"/v1/videos/{{id}}/status\"\n{free}"), false),
            (format!("path = \"/v1/videos/{{*rest}}\"\n{free}"), false),
            (format!("method = \"GET\"\npath = \"/v1/videos/{{id}}/status\"\n{free}"), false),
            (format!("method = \"POST\"\npath = \"/v1/videos/{{id}}/status\"\n{free}"), true),
            ("path = \"/v1/{*all}\"\nupstream = \"other\"\nfree = true\n".to_owned(), true),
            ("path = \"/v1/{*all}\"\nupstream = \"m\"\nfeature = \"f\"\n".to_owned(), true),
        ] {
            let route = if polls.is_empty() { "" } else { "[[route]]\n" };
            let text = format!("{text}{route}{polls}");
            let (code, out, err) = outcome(&text, false, &[]);
            assert_eq!((code, out.starts_with("ok: t.toml, 2 upstreams")), (0, true), "{err}");
            let expected = "warning: t.toml:14:15: route[0].job.status_path: expected a free route \
                            to the same upstream that takes GET of this path: without one clients \
                            cannot ask how their jobs stand\n";
            assert_eq!(err, if warns { expected } else { "" }, "{polls}");
            assert_eq!(outcome(&text, true, &[]).2, err);
            let (code, out, err) = formatted(&text, false, Format::Json, &[]);
            assert_eq!((code, &*err), (0, ""));
            let warnings = &out.parse::<Value>().unwrap()["warnings"];
            assert_eq!(warnings.as_array().map(Vec::len), Some(usize::from(warns)));
            assert_eq!(warnings[0]["line"].as_i64(), warns.then_some(14));
        }
    }

    #[test]
    fn print_shows_what_is_effective() {
        let env = [("TOLLGATE__BOOKS__SHARDS", "7")];
        let (code, out, err) = outcome("[books]\nshards = 5\n", true, &env);
        assert_eq!((code, &*err), (0, ""));
        let tree: toml::Table = out.parse().unwrap();
        assert_eq!(tree["books"]["shards"].as_integer(), Some(7));
        assert_eq!(tree["gateway"]["drain_delay"].as_str(), Some("5s"));
    }

    #[test]
    fn f81_a_canary_is_in_no_output_of_check() {
        let text = "[directory]\nurl = \"postgres://u:canary-77@127.0.0.1/t\"\n";
        let env = [("TOLLGATE__BOOKS__URL", "redis://u:canary-77@127.0.0.1")];
        let (code, out, err) = outcome(text, true, &env);
        assert_eq!(code, 2);
        assert!(!out.contains("canary-77") && !err.contains("canary-77"), "{out}{err}");
    }
}
