//! The environment over the file.

use super::*;

#[test]
fn the_environment_wins_over_the_file() {
    let text = "[gateway]\nlisten = \"127.0.0.1:1\"\nworkers = 3\n";
    let env = [("TOLLGATE__GATEWAY__LISTEN", "127.0.0.1:2"), ("UNRELATED__X", "1")];
    let config = load_text(text, &env).unwrap().config;
    assert_eq!(config.gateway.listen.port(), 2);
    assert_eq!(config.gateway.workers, 3, "what no variable names is the file's");
}

#[test]
fn the_environment_alone_can_say_everything() {
    let env = [
        ("TOLLGATE__LIMITS__PER_USER", "{ rps = 5, burst = 9 }"),
        ("TOLLGATE__LIMITS__MAX_IN_FLIGHT", "7"),
        ("TOLLGATE__OPS__ORG_LABEL", "[\"acme\"]"),
        ("TOLLGATE__UPSTREAM__0__NAME", "media"),
        ("TOLLGATE__UPSTREAM__0__URLS__0", "http://127.0.0.1:9100"),
        ("TOLLGATE__ROUTE__0__PATH", "/v1/{kind}"),
        ("TOLLGATE__ROUTE__0__UPSTREAM", "media"),
        ("TOLLGATE__ROUTE__0__FEATURE", "image"),
        ("TOLLGATE__ROUTE__0__QUANTITY__JSON", "/n"),
        ("TOLLGATE__ROUTE__0__QUANTITY__DEFAULT", "0.5"),
        ("TOLLGATE__ROUTE__0__ATTRIBUTES__SIZE__PATH", "kind"),
        ("TOLLGATE__ROUTE__0__ATTRIBUTES__SIZE__MAP", "{ \"1024x1024\" = \"1k\" }"),
    ];
    let config = load_text("", &env).unwrap().config;
    assert_eq!(config.limits.per_user.unwrap().burst.unwrap().get(), 9);
    assert_eq!(config.limits.max_in_flight, 7);
    assert_eq!(config.ops.org_label, OrgLabel::List(vec!["acme".parse().unwrap()]));
    assert_eq!(config.upstream[0].urls, ["http://127.0.0.1:9100"]);
    let route = &config.route[0];
    // A decimal stays exact: it is the variable's text, not a float.
    let default = route.quantity.as_ref().unwrap().default.clone();
    assert_eq!(default, Some(Number::Decimal("0.5".to_owned())));
    assert_eq!(route.attributes["size"].map.as_ref().unwrap()["1024x1024"], "1k");
}

#[test]
fn a_value_is_toml_where_that_has_the_type_wanted_and_else_text() {
    for (value, name) in
        [("media", "media"), ("\"media\"", "media"), ("9", "9"), ("true", "true"), ("0x1f", "0x1f")]
    {
        let env = [
            ("TOLLGATE__UPSTREAM__0__NAME", value),
            ("TOLLGATE__UPSTREAM__0__URLS", "[\"http://h:1\"]"),
        ];
        let config = load_text("", &env).unwrap().config;
        assert_eq!(config.upstream[0].name.as_str(), name, "{value}");
    }
}

#[test]
fn indices_are_numbers_and_may_append() {
    let text = "[[upstream]]\nname = \"u0\"\nurls = [\"http://h:1\"]\n";
    let mut env = Vec::new();
    for index in 1..12 {
        env.push((format!("TOLLGATE__UPSTREAM__{index}__NAME"), format!("u{index}")));
        env.push((format!("TOLLGATE__UPSTREAM__{index}__URLS__0"), "http://h:1".to_owned()));
    }
    env.push(("TOLLGATE__UPSTREAM__0__CONNECT_TIMEOUT".to_owned(), "2s".to_owned()));
    let env: Vec<_> = env.iter().map(|(name, value)| (&**name, &**value)).collect();
    let config = load_text(text, &env).unwrap().config;
    let names: Vec<_> = config.upstream.iter().map(|upstream| upstream.name.as_str()).collect();
    let all: Vec<_> = (0..12).map(|index| format!("u{index}")).collect();
    assert_eq!(names, all);
    assert_eq!(config.upstream[0].connect_timeout, std::time::Duration::from_secs(2));
}

#[test]
fn names_keep_the_spelling_of_the_file() {
    let text = SAMPLE.replace("attributes.resolution", "attributes.Resolution");
    let env = [
        ("TOLLGATE__ROUTE__0__ATTRIBUTES__RESOLUTION__DEFAULT", "2k"),
        ("TOLLGATE__ROUTE__0__ATTRIBUTES__RESOLUTION__MAP__1024X1024", "2k"),
        ("TOLLGATE__ROUTE__0__ATTRIBUTES__STYLE__CONST", "plain"),
    ];
    let route = load_text(&text, &env).unwrap().config.route.remove(0);
    let names: Vec<_> = route.attributes.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["Resolution", "style"]);
    let resolution = &route.attributes["Resolution"];
    assert_eq!(resolution.default.as_deref(), Some("2k"));
    assert_eq!(resolution.map.as_ref().unwrap()["1024x1024"], "2k");
}

#[test]
fn an_error_names_the_variable() {
    for (name, value, expected) in [
        (
            "GATEWAY__LISTEN",
            "nowhere",
            "gateway.listen: expected an address like \"127.0.0.1:8080\"",
        ),
        ("GATEWAY__WORKERS", "-1", "gateway.workers: expected a whole number, not negative"),
        (
            "GATEWAY__DRAIN_DELAY",
            "5",
            "gateway.drain_delay: expected a duration like \"5s\", at most \"168h\"",
        ),
        ("BOOKS__SHARDS", "0", "books.shards: expected at least 1"),
        (
            "BOOKS__ENGINE",
            "redis",
            "books.engine: expected exactly one of url, url_env and url_file beside it",
        ),
        ("ROUTE__5__PATH", "/x", "route: expected an index from 0 to 3"),
        ("ROUTE__NAME", "x", "route: expected an index from 0 to 3"),
        ("ROUTE__0__UPSTREAM", "other", "route[0].upstream: expected the name of an [[upstream]]"),
        (
            "ROUTE__0__QUANTITY",
            "{ json = \"n\" }",
            "route[0].quantity.json: expected a JSON pointer like \"/a/b\" (RFC 6901)",
        ),
        ("GATEWAY__LISTEN__PORT", "1", "gateway.listen: expected no `PORT` in a single value"),
        ("GATEWAY____LISTEN", "1", "gateway.\"\": expected a key's name between `__` and `__`"),
        ("DATA__DIRR", "x", "data.dirr: unknown key, did you mean `dir`? expected `dir`"),
    ] {
        let name = format!("TOLLGATE__{name}");
        assert_eq!(errors(SAMPLE, &[(&name, value)]), format!("${name}: {expected}"));
    }
}

#[test]
fn two_variables_for_one_key_are_an_error() {
    let env = [("TOLLGATE__DATA__DIR", "a"), ("TOLLGATE__DATA__dir", "b")];
    assert_eq!(
        errors("", &env),
        "$TOLLGATE__DATA__dir: data.dir: expected one variable for this key, $TOLLGATE__DATA__DIR sets it too"
    );
}

#[test]
fn what_a_table_from_a_variable_lacks_or_has_too_much_is_said_as_such() {
    for (value, expected) in [
        ("{ path = \"/x\" }", "route[3].upstream: expected a value, it is required"),
        ("{ path = \"/x\", upstream = 7 }", "route[3].upstream: expected a string"),
        ("[]", "route[3]: expected a table"),
        ("7", "route[3]: expected a table"),
    ] {
        let shown = errors(SAMPLE, &[("TOLLGATE__ROUTE__3", value)]);
        assert_eq!(shown, format!("$TOLLGATE__ROUTE__3: {expected}"));
    }
}

#[test]
fn a_number_in_a_list_of_ids_is_an_id() {
    let env = [("TOLLGATE__OPS__ORG_LABEL__0", "7"), ("TOLLGATE__OPS__ORG_LABEL__1", "acme")];
    let label = load_text("", &env).unwrap().config.ops.org_label;
    assert_eq!(label, OrgLabel::List(vec!["7".parse().unwrap(), "acme".parse().unwrap()]));
}
