//! What `check --print` shows, and what it must not show.

use super::*;

const CANARY: &str = "canary-9c41";

#[test]
fn what_is_printed_reads_back_as_the_same() {
    for text in ["", SAMPLE] {
        let printed = load_text(text, &[]).unwrap().config.print().unwrap();
        let again = load_text(&printed, &[]).unwrap().config.print().unwrap();
        assert_eq!(printed, again);
    }
    let every: Config = toml::from_str(EVERY_KEY).unwrap();
    let printed = every.print().unwrap();
    let again: Config = toml::from_str(&printed).unwrap();
    assert_eq!(format!("{every:?}"), format!("{again:?}"));
}

#[test]
fn what_is_printed_is_what_is_effective() {
    let env =
        [("TOLLGATE__GATEWAY__DRAIN_DELAY", "250ms"), ("TOLLGATE__ROUTE__0__MAX_BODY", "64KiB")];
    let printed = load_text(SAMPLE, &env).unwrap().config.print().unwrap();
    let tree: toml::Table = printed.parse().unwrap();
    assert_eq!(tree["gateway"]["drain_delay"].as_str(), Some("250ms"));
    assert_eq!(tree["gateway"]["drain_timeout"].as_str(), Some("30s"), "a default");
    assert_eq!(tree["route"][0]["max_body"].as_str(), Some("64KiB"));
}

#[test]
fn f81_a_canary_in_any_url_is_in_no_output() {
    for url in [
        format!("redis://user:{CANARY}@127.0.0.1:6379/0"),
        format!("redis://:{CANARY}/with@odd@127.0.0.1:6379"),
        format!("postgres://127.0.0.1/db?password={CANARY}"),
        format!("postgres://127.0.0.1/db#{CANARY}"),
        CANARY.to_owned(),
        format!("user:{CANARY}@host"),
    ] {
        let one = OneOrMany::One(url.clone().into());
        let many = OneOrMany::Many(vec![url.clone().into()]);
        for books_url in [one, many] {
            let mut config = Config::default();
            config.books.url = Some(books_url);
            config.directory.url = Some(url.clone().into());
            for output in [config.print().unwrap(), format!("{config:?} {config:#?}")] {
                assert!(!output.contains(CANARY), "{url}: {output}");
                assert!(output.contains("***"), "{url}: {output}");
            }
        }
    }
    let plain = Url::from("redis://127.0.0.1:6379/0".to_owned());
    assert_eq!(plain.to_string(), plain.expose());
}

#[test]
fn f81_a_canary_in_the_wrong_place_is_in_no_error() {
    let upstream = "[[upstream]]\nname = \"m\"\n";
    for text in [
        format!("[books]\nurl = 5\nengine = \"{CANARY}\"\n"),
        format!("[books]\nurl = {{ \"a\" = \"{CANARY}\" }}\n"),
        format!("[books]\nurl = \"{CANARY}\n"),
        format!("[books]\nurl = {CANARY}\n"),
        format!("[books]\nurl = redis://:{CANARY}@127.0.0.1:6379\n"),
        format!("[books]\nurl = 'redis://:{CANARY}@127.0.0.1:6379\nshards = 3\n"),
        format!("[gateway]\nlisten = \"{CANARY}\"\ndrain_delay = \"{CANARY}\"\n"),
        format!("[limits]\nper_user = \"{CANARY}\"\nmax_in_flight = \"{CANARY}, expected 5\"\n"),
        format!("{upstream}urls = [\"http://user:{CANARY}@127.0.0.1:80\"]\n"),
        format!("{upstream}urls = [\"http://h:1\"]\ncredential = \"{CANARY}\"\n"),
        format!("{upstream}urls = [\"http://h:1\"]\ncredential = {{ token = \"{CANARY}\" }}\n"),
        format!("{upstream}urls = [\"http://h:1\"]\ncredential = {{ env = \"={CANARY}\" }}\n"),
    ] {
        let shown = errors(&text, &[]);
        assert!(!shown.contains(CANARY), "{text}: {shown}");
    }
    for name in ["BOOKS__URL", "GATEWAY__LISTEN", "BOOKS__ENGINE", "UPSTREAM__0__CREDENTIAL"] {
        let shown = errors("", &[(&format!("TOLLGATE__{name}"), CANARY)]);
        assert!(!shown.contains(CANARY) && shown.contains(name), "{name}: {shown}");
    }
}
