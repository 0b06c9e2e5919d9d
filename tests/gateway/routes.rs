//! The examples of docs/routes.md, run as they stand there: files, commands, and what they print.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::sample::Sample;
use crate::support::{Access, Org, World, run};

const PAGE: &str = include_str!("../../docs/routes.md");

/// One block of the page.
struct Block<'a> {
    /// The heading it stands under; empty before the first.
    section: &'a str,
    language: &'a str,
    text: String,
}

fn blocks() -> Vec<Block<'static>> {
    let (mut blocks, mut section, mut open) = (Vec::new(), "", None::<Block<'static>>);
    for line in PAGE.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some(block), _) => block.text += &format!("{line}\n"),
            (None, Some(language)) => {
                open = Some(Block { section, language, text: String::new() });
            }
            (None, None) => section = line.strip_prefix("## ").unwrap_or(section),
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// All that the page says of a file.
fn file(name: &str) -> String {
    let first = format!("# {name}\n");
    let parts = blocks().into_iter().filter(|block| block.language == "toml");
    parts.filter_map(|block| block.text.strip_prefix(&first).map(str::to_owned)).collect()
}

/// Whether a text is what the page says, in which `…` stands for anything within a line, and a
/// line of `…` for any lines.
fn is_told(expected: &[&str], found: &[&str]) -> bool {
    match (expected.split_first(), found.split_first()) {
        (None, found) => found.is_none(),
        (Some((&"…", expected)), _) => {
            (0..=found.len()).any(|skipped| is_told(expected, &found[skipped..]))
        }
        (Some(_), None) => false,
        (Some((line, expected)), Some((text, found))) => {
            is_line(line, text) && is_told(expected, found)
        }
    }
}

fn is_line(expected: &str, found: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = parts.next().and_then(|first| found.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Commands of a block, each with the lines that it prints.
fn commands(block: &Block<'_>) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    let mut goes_on = false;
    for line in block.text.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.to_owned(), Vec::new())),
            (None, Some((command, _))) if goes_on => *command += &format!("\n{line}"),
            (None, Some((_, printed))) => printed.push(line.to_owned()),
            (None, None) => panic!("{line} is printed by no command"),
        }
        goes_on = line.ends_with('\\');
    }
    commands
}

/// Runs all commands of a section in one shell, and compares what each of them prints.
fn play(section: &str, gateway: &str) {
    const MARK: &str = "--- the next command ---";
    let blocks = blocks().into_iter();
    let commands: Vec<_> = blocks
        .filter(|block| block.section == section && block.language == "console")
        .flat_map(|block| commands(&block))
        .collect();
    assert!(!commands.is_empty(), "{section} shows no command");
    let mut script = "export KEY=tg_example_studio_key_0001\n".to_owned();
    for (command, _) in &commands {
        script += &format!("{command}\nprintf '\\n%s\\n' '{MARK}'\n");
    }
    let script = script.replace("127.0.0.1:8080", gateway);
    let mut shell = Command::new("bash")
        .args(["-eu", "-o", "pipefail", "-s"])
        .env("NO_PROXY", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace('\r', "");
    assert!(
        output.status.success(),
        "{section}: curl is needed, and all it asks for is there\n{text}"
    );
    let mut printed: Vec<&str> = text.split(&format!("\n{MARK}\n")).collect();
    assert_eq!(printed.pop(), Some(""), "{text}");
    assert_eq!(printed.len(), commands.len(), "{text}");
    for ((command, expected), found) in commands.iter().zip(printed) {
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        let found: Vec<&str> = found.trim_end().lines().collect();
        assert!(
            is_told(&expected, &found),
            "{command}\nprints\n{}\nbut the page says\n{}",
            found.join("\n"),
            expected.join("\n")
        );
    }
}

#[test]
fn the_examples_of_routes_are_true() {
    run(async {
        let sample = Sample::start();
        // The page's file as it is, but for where things are.
        let org = Org::new().no_term().user("zoe", "1", Access::None);
        let world = World::new(&org);
        let routes = file("tollgate.toml").replace("127.0.0.1:9100", &sample.address.to_string());
        let routes = routes.split_once("[[upstream]]").unwrap().1.to_owned();
        let begin = "[[upstream]]";
        world.edit(|file| {
            let head = file.split_once(begin).unwrap().0.to_owned();
            format!("{head}{begin}{routes}")
        });
        world.signal("HUP");
        world.logged(&["read again"]).await;
        let applied = world.try_apply(&file("acme.toml"));
        assert!(applied.status.success(), "{applied:?}");
        let mut sections: Vec<&str> = blocks().iter().map(|block| block.section).collect();
        sections.dedup();
        for section in sections.into_iter().filter(|section| !section.is_empty()) {
            play(section, &world.gateway().to_string());
        }
        world.settled().await;
    });
}

#[test]
fn what_is_printed_is_compared_with_the_page() {
    for (expected, found, same) in [
        (&["a", "…", "d"][..], &["a", "b", "c", "d"][..], true),
        (&["a", "…"], &["a"], true),
        (&["a", "…", "d"], &["a", "b"], false),
        (&["a"], &["a", "b"], false),
        (&["x=…, y=\"1\", …"], &["x=7, y=\"1\", z=2"], true),
        (&["x=…, y=\"1\", …"], &["x=7, y=\"2\", z=2"], false),
        (&["ab"], &["abc"], false),
        (&["a…c"], &["ab"], false),
    ] {
        assert_eq!(is_told(expected, found), same, "{expected:?} and {found:?}");
    }
}
