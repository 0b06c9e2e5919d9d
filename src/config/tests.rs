//! Tests of the configuration as a whole.

use std::path::Path;

use super::*;

mod bad;
mod documented;
mod environment;
mod job;
mod print;

/// The contract's sample, to the letter.
const SAMPLE: &str = include_str!("tests/contract.toml");

/// Every key that a file can have, with its type's full depth.
const EVERY_KEY: &str = include_str!("tests/every_key.toml");

/// Loads a text as `t.toml` would be.
fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("t.toml");
    std::fs::write(&file, text).unwrap();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load(Some(&file), env)
}

/// The errors, a line each, without the directory of the file.
fn errors(text: &str, env: &[(&str, &str)]) -> String {
    let error = load_text(text, env).expect_err("this is not valid");
    let lines = error.problems.iter().map(|problem| {
        let line = problem.to_string();
        match &problem.place {
            Place::File(path) | Place::Line(path, ..) => {
                line.replace(&format!("{}/", path.parent().unwrap().display()), "")
            }
            Place::Variable(_) => line,
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn an_empty_file_is_the_defaults() {
    let Loaded { config, file, warnings } = load_text("", &[]).unwrap();
    assert_eq!(file.file_name().unwrap(), "t.toml");
    assert_eq!(config.gateway.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8081");
    assert_eq!(config.ops.listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.books.shards, 32);
    assert_eq!(config.limits.max_in_flight, 10_000);
    assert!(config.route.is_empty() && config.upstream.is_empty() && warnings.is_empty());
}

#[test]
fn the_sample_is_valid() {
    let config = load_text(SAMPLE, &[]).unwrap().config;
    let [images, chat, models] = &*config.route else { panic!("three routes") };
    assert_eq!(images.quantity.as_ref().unwrap().json.as_deref(), Some("/n"));
    assert_eq!(images.attributes["resolution"].map.as_ref().unwrap()["1024x1024"], "1k");
    assert_eq!(images.max_body, 1 << 20);
    assert_eq!(chat.meter[0].name.as_str(), "output");
    assert_eq!(chat.inject["/stream_options/include_usage"], true.into());
    assert!(models.free && models.method.is_none());
    assert_eq!(config.gateway.drain_delay, std::time::Duration::from_secs(5));
}

#[test]
fn a_missing_file_is_an_error_unless_the_environment_says_everything() {
    let absent = Path::new("/nonexistent/t.toml");
    let error = load(Some(absent), std::iter::empty()).unwrap_err().to_string();
    assert_eq!(error, "/nonexistent/t.toml: expected a configuration file: entity not found");
    let listen = ("TOLLGATE__GATEWAY__LISTEN".to_owned(), "127.0.0.1:7".to_owned());
    assert!(load(Some(absent), [listen.clone()].into_iter()).is_err(), "named, so it must exist");
    // The tests' working directory is the package's root, which has no tollgate.toml.
    let config = load(None, [listen].into_iter()).unwrap().config;
    assert_eq!(config.gateway.listen.port(), 7);
    let other = ("TOLLGATE_ADMIN_TOKEN".to_owned(), "x".to_owned());
    assert!(load(None, [other].into_iter()).is_err(), "says nothing about the configuration");
}
