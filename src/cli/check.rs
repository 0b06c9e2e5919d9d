//! `tollgate check`: is this configuration valid, and what does it come to?

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use super::USAGE;
use crate::config::{self, Loaded};

/// Checks the file and the process's environment; prints a summary, or with `print` the effective
/// configuration, or what is wrong.
pub fn check(path: Option<&Path>, print: bool) -> ExitCode {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    // A reader that went away does not make a configuration invalid: the thing asked for failed.
    run(path, print, config::environment(), &mut out, &mut err)
        .map_or(ExitCode::FAILURE, ExitCode::from)
}

/// As [`check`], with everything it touches given to it. Returns the exit code.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub fn run(
    path: Option<&Path>,
    print: bool,
    env: impl Iterator<Item = (String, String)>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    let loaded = match config::load(path, env) {
        Ok(loaded) => loaded,
        Err(error) => {
            writeln!(err, "{error}")?;
            return Ok(USAGE);
        }
    };
    if print {
        let text = loaded.config.print().map_err(io::Error::other)?;
        write!(out, "{text}")?;
    } else {
        writeln!(out, "{}", summary(&loaded))?;
    }
    out.flush()?;
    Ok(0)
}

fn summary(Loaded { config, file }: &Loaded) -> String {
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
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("t.toml");
        std::fs::write(&file, text).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(Some(&file), print, env, &mut out, &mut err).unwrap();
        let text = |bytes| {
            let root = format!("{}/", directory.path().display());
            String::from_utf8(bytes).unwrap().replace(&root, "")
        };
        (code, text(out), text(err))
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
t.toml:2:10: books.engine: \"redis\" is not built yet, expected another value
t.toml:3:10: books.shards: expected at least 1
";
        for print in [false, true] {
            assert_eq!(outcome(text, print, &[]), (2, String::new(), expected.to_owned()));
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
