use super::*;

fn problems(toml: &str) -> Vec<String> {
    let document = Source::from_toml(toml).unwrap().document();
    document.problems.into_iter().map(|problem| problem.pointer).collect()
}

/// The contract's example, every key of it, and the keys it only names.
const EXAMPLE: &str = r#"
[apply]
prune = ["user", "key"]
[org]
id = "acme"
timezone = "America/Los_Angeles"
anchor = "calendar-month"
contract = "etla"
products = ["firefly-services", "cce-4"]
offers = ["firefly-services"]
bases = ["cce-4"]
overage = { bill_up_to = "500" }
split = "whole"
mode = "enforce"
on_reassign = "next-cycle"
pool_limit = "7.5"
[[term]]
id = "2026"
start = "2026-01-01"
end = 2027-01-01
pool = "10000"
price_per_operation = "0.05"
currency = "USD"
[[plan]]
id = "cc-pro"
credits = "4000"
[[group]]
id = "design"
[[user]]
id = "alice"
email = "alice@acme.example"
suspended = true
pool_limit = "1"
licences = [{ id = "lic-1", plan = "cc-pro", priority = 2, expires = "2027-01-01" }, { id = "lic-2", plan = "cc-pro", expires = 2027-01-01T00:00:00Z }]
groups = ["design"]
[[profile]]
id = "ffs-creative"
product = "firefly-services"
shared_credits = true
users = ["alice"]
groups = ["design"]
pool_limit = "100"
overage = "bill"
[[rate_card]]
version = "2026-11"
offer = "firefly-services"
effective = "2026-11-01T00:00:00Z"
operations_per_credit = "1/50"
[[rate_card.rate]]
feature = "text-to-video"
meter = "output"
when = { resolution = "1080p" }
unit = "second"
credits = "100"
operations = "2"
tier = "premium"
pool = false
[[rate_card.rate]]
feature = "recolor"
tier = "standard"
[[key]]
id = "studio"
kind = "service"
acts_for = "*"
secret = "tg_0123456789012345678901"
[[key]]
id = "robot"
kind = "principal"
profile = "ffs-creative"
pool_limit = "3"
[[key]]
id = "alice"
kind = "user"
user = "alice"
"#;

#[test]
fn every_key_of_the_contract_is_read() {
    assert_eq!(problems(EXAMPLE), [""; 0]);
    let source = Source::from_toml(EXAMPLE).unwrap();
    let same = Source::from_json(&source.to_json()).unwrap();
    assert_eq!(format!("{:?}", same.document()), format!("{:?}", source.document()));
    assert_eq!(source.org_id(), Some("acme"));
}

#[test]
fn every_problem_is_listed_with_its_place() {
    let wrong = r#"
        colour = "red"
        [apply]
        prune = ["user", "licences"]
        [org]
        id = "not an id"
        timezone = "Mars/Olympus"
        anchor = { day = 32 }
        overage = "sometimes"
        mode = "watch"
        pool_limit = "-1"
        [[term]]
        id = "t"
        start = "2026-02-30"
        [[term]]
        id = "u"
        start = "2026-02-03"
        end = "2026-02-03"
        pool = "1.0000001"
        [[plan]]
        credits = 4000
        [[group]]
        id = "g"
        [[group]]
        id = "g"
        [[user]]
        id = "alice"
        licenses = []
        suspended = "no"
        licences = [{ id = "l", plan = "p", expires = "soon" }, { id = "m", priority = -1 }]
        [[user]]
        id = "bob"
        email = "a\nb"
        licences = [{ id = "l", plan = "p" }]
        groups = "design"
        [[profile]]
        id = "p"
        overage = { bill_up_to = 5 }
        [[rate_card]]
        version = "v"
        operations_per_credit = "1/0"
        [[rate_card.rate]]
        feature = "f"
        credits = "1e3"
        [[key]]
        id = "short"
        kind = "service"
        acts_for = "everybody"
        secret = "tg_01234567890123456789"
        [[key]]
        id = "two"
        kind = "user"
        profile = "p"
        secret = "tg_0123456789012345678901"
        secret_env = "SECRET"
        [[key]]
        id = "three"
        kind = "robot"
    "#;
    let expected = [
        "/apply/prune/1",
        "/colour",
        "/group/1/id",
        "/key/0/acts_for",
        "/key/0/secret",
        "/key/1/secret_env",
        "/key/1/user",
        "/key/2/kind",
        "/org/anchor/day",
        "/org/id",
        "/org/mode",
        "/org/overage",
        "/org/pool_limit",
        "/org/timezone",
        "/plan/0/credits",
        "/plan/0/id",
        "/profile/0/overage",
        "/profile/0/product",
        "/rate_card/0/operations_per_credit",
        "/rate_card/0/rate/0",
        "/term/0/end",
        "/term/0/pool",
        "/term/0/start",
        "/term/1/end",
        "/term/1/pool",
        "/user/0/licences/0/expires",
        "/user/0/licences/1/plan",
        "/user/0/licences/1/priority",
        "/user/0/licenses",
        "/user/0/suspended",
        "/user/1/email",
        "/user/1/groups",
        "/user/1/licences/0/id",
    ];
    let mut found = problems(wrong);
    found.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn f70_a_key_that_is_there_twice_is_refused() {
    let twice = br#"{"plan":[{"id":"a","credits":"1","credits":"2"}]}"#;
    assert!(matches!(Source::from_json(twice), Err(SourceError::Json(_))));
    assert!(matches!(Source::from_toml("a = 1\na = 2"), Err(SourceError::Toml(_))));
    let each = br#"{"a":[null,true,-1,1,0.5,"x",{"b":{}}],"b":{"a":""}}"#;
    let read = Source::from_json(each).unwrap();
    assert_eq!(read.0, serde_json::from_slice::<Value>(each).unwrap());
}

#[test]
fn f71_a_text_that_is_read_thing_by_thing_says_what_its_tree_says() {
    let example = Source::from_toml(EXAMPLE).unwrap().to_json();
    let example = std::str::from_utf8(&example).unwrap();
    for text in [
        example,
        "{}",
        r#"{"user":[],"key":{"a":[1]},"group":null,"plan":"x","term":7,"more":[1],"profile":true}"#,
        r#"{"user":[{"id":"a"},{"id":"a"},7,{},{"id":"b","licences":[{"id":"l","plan":"p"},
            {"id":"l","plan":"p"},{},9]},{"id":"c","licences":[{"id":"l","plan":"p"}]}]}"#,
        r#"{"apply":{"prune":["user","x"]},"org":{"id":"-"},"rate_card":[{"version":"v","rate":[{}]}]}"#,
    ] {
        let streamed = Document::from_json(text.as_bytes()).unwrap();
        let tree = Source::from_json(text.as_bytes()).unwrap().document();
        let sorted = |mut document: Document| {
            document.problems.sort_by(|one, other| one.pointer.cmp(&other.pointer));
            format!("{document:?}")
        };
        assert_eq!(sorted(streamed), sorted(tree), "{text}");
    }
    for text in [
        "",
        "[]",
        "null",
        "{} {}",
        r#"{"user":[{"id":"a"}"#,
        r#"{"user":[],"user":[]}"#,
        r#"{"org":{},"org":{}}"#,
        r#"{"user":[{"id":"a","id":"b"}]}"#,
    ] {
        assert!(Document::from_json(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn f71_reading_ends_where_no_more_problems_are_told() {
    let broken = |count: usize| format!("{{\"user\":[{}!", "{},".repeat(count));
    let document = Document::from_json(broken(MOST_PROBLEMS + 1).as_bytes()).unwrap();
    assert_eq!(document.problems.len(), MOST_PROBLEMS + 1);
    assert_eq!(document.problems[MOST_PROBLEMS - 1].pointer, "/user/99/id");
    assert!(document.problems[MOST_PROBLEMS].detail.starts_with("and more"));
    assert!(Document::from_json(broken(MOST_PROBLEMS).as_bytes()).is_err());
}

#[test]
fn f71_a_tree_takes_no_more_memory_than_it_may() {
    let read = |text: &str, bytes: usize| {
        let room = strict::Room::new(bytes);
        let mut from = serde_json::Deserializer::from_str(text);
        let read = Strict(&room).deserialize(&mut from);
        assert_eq!(read.is_err(), room.is_used_up(), "{text}");
        read.is_ok()
    };
    for (text, needed) in [
        (format!("[{}0]", "{\"\":0},".repeat(1000)), 600_000),
        (format!("[{}0]", "0,".repeat(10_000)), 320_000),
        (format!("{:?}", "x".repeat(10_000)), 10_000),
        (
            format!(
                "{{{}\"\":0}}",
                (0..100).map(|key| format!("\"{key}\":0,")).collect::<String>()
            ),
            6_000,
        ),
    ] {
        assert!(!read(&text, needed), "{text}");
        assert!(read(&text, 3 * needed), "{text}");
    }
}

#[test]
fn f81_no_message_quotes_a_secret() {
    for secret in ["\"canary-short\"", "[\"canary-in-a-list-0123456789\"]"] {
        let toml = format!("[[key]]\nid = \"k\"\nkind = \"service\"\nsecret = {secret}");
        let document = Source::from_toml(&toml).unwrap().document();
        assert_eq!(document.problems.len(), 1);
        assert!(!format!("{document:?}").contains("canary"));
    }
}

#[test]
fn f81_a_syntax_error_has_a_place_and_quotes_nothing() {
    let Err(error) = Source::from_toml("a = 1\nsecret = \"canary-0123456789\nb = 2") else {
        panic!("an open string was read");
    };
    let text = error.to_string();
    assert!(text.contains("line 2, column ") && !text.contains("canary"), "{text}");
}

#[test]
fn secrets_are_resolved_where_the_file_is_read() {
    let toml = "[[key]]\nid = \"a\"\nkind = \"service\"\nsecret_env = \"SECRET\"\n\
                [[key]]\nid = \"b\"\nkind = \"service\"\nsecret_file = \"s\"";
    let mut source = Source::from_toml(toml).unwrap();
    let unresolved: Vec<String> = problems(toml);
    assert_eq!(unresolved, ["/key/0/secret_env", "/key/1/secret_file"]);
    source
        .resolve_secrets(
            |name| (name == "SECRET").then(|| "from-the-environment-0123".to_owned()),
            |path| Ok(format!("from-the-file-{}-0123456789\n", path.display())),
        )
        .unwrap();
    let keys = source.document().keys.unwrap();
    assert_eq!(keys[0].value.secret, Some(hash_secret("from-the-environment-0123")));
    assert_eq!(keys[1].value.secret, Some(hash_secret("from-the-file-s-0123456789")));
    let mut missing = Source::from_toml(toml).unwrap();
    let none = |_: &str| None;
    let found = missing.resolve_secrets(none, |_| Err(std::io::ErrorKind::NotFound.into()));
    assert_eq!(found.unwrap_err().len(), 2);
}

#[test]
fn every_key_is_documented() {
    let docs = include_str!("../../../docs/org-file.md");
    let sections = [
        ("[apply]", APPLY_KEYS),
        ("[org]", ORG_KEYS),
        ("[[term]]", TERM_KEYS),
        ("[[plan]]", PLAN_KEYS),
        ("[[group]]", GROUP_KEYS),
        ("[[user]]", USER_KEYS),
        ("licences", LICENCE_KEYS),
        ("[[profile]]", PROFILE_KEYS),
        ("[[rate_card]]", RATE_CARD_KEYS),
        ("[[rate_card.rate]]", RATE_KEYS),
        ("[[key]]", KEY_KEYS),
        ("acts_for", ACTS_FOR_KEYS),
    ];
    for (section, keys) in sections {
        let heading = format!("## `{section}`");
        let start = docs.find(&heading).unwrap_or_else(|| panic!("no heading {heading}"));
        let body = &docs[start + heading.len()..];
        let body = &body[..body.find("\n## ").unwrap_or(body.len())];
        for key in keys {
            assert!(body.contains(&format!("| `{key}` |")), "{section}: {key} is not documented");
        }
    }
}
