//! Completions, the manual, and where output goes.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{ran, run};
use crate::support::world::tollgate;

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]);
        assert_eq!((ran.code, &*ran.err), (0, ""), "{shell}");
        for word in ["holds", "void", "completions", "--admin", "--output"] {
            let word = word.trim_start_matches("--");
            assert!(ran.out.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(run(&["completions", "cmd"]).code, 2);
}

#[test]
fn bash_accepts_its_completions() {
    let text = run(&["completions", "bash"]).out;
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let page = run(&["man"]);
    assert_eq!((page.code, &*page.err), (0, ""));
    assert!(page.out.contains(".TH tollgate"), "{}", page.out);
    let dir = tempfile::tempdir().unwrap();
    let written = run(&["man", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!(written.code, 0, "{written:?}");
    for page in ["tollgate.1", "tollgate-apply.1", "tollgate-holds-void.1", "tollgate-token.1"] {
        let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    let nowhere = run(&["man", "--dir", "/nonexistent/dir"]);
    assert_eq!(nowhere.code, 1);
    assert!(nowhere.err.contains("/nonexistent/dir"), "{nowhere:?}");
}

#[test]
fn a_reader_that_went_away_is_no_failure_and_no_noise() {
    for args in
        [&["man"][..], &["completions", "bash"], &["check", "-c", "docs/examples/tollgate.toml"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = tollgate();
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).stdout(writer);
        let ran = ran(command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap());
        assert_eq!((ran.code, &*ran.err), (0, ""), "{args:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = tollgate().arg("man").stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let ran = ran(output.wait_with_output().unwrap());
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("standard output"), "{ran:?}");
}

#[test]
fn help_is_no_failure_and_names_the_exit_codes() {
    let help = run(&["--help"]);
    assert_eq!((help.code, &*help.err), (0, ""));
    assert!(help.out.contains("Exit codes: 0 fine, 1 the thing asked for failed, 2 usage"));
    assert!(run(&["--version"]).out.starts_with("tollgate "));
}
