//! Files that are not valid, and exactly what is said about them.

use secrecy::ExposeSecret as _;

use super::*;

/// One line, so that a route after it starts on line 2.
const MEDIA: &str = "upstream = [{ name = \"m\", urls = [\"http://h:1\"] }]\n";

#[test]
fn syntax_errors_name_line_column_and_key() {
    for (text, expected) in [
        ("[gateway\n", "1:9: gateway: unclosed table, expected `]`"),
        ("[gateway]\nworkers = 1\n\nworkers = 2\n", "4:1: gateway.workers: duplicate key"),
        (
            "[gateway]\nlisten = \"a\nworkers = 1\n",
            "2:12: gateway.listen: invalid basic string, expected `\"`",
        ),
        (
            "[gateway]\nworkers = 99999999999999999999\n",
            "2:11: gateway.workers: expected a number of at most 64 bits",
        ),
        (
            "[limits]\nper_user = { rps = 1,, }\n",
            "2:22: limits.per_user.rps: extra comma in inline table, expected key",
        ),
    ] {
        assert_eq!(errors(text, &[]), format!("t.toml:{expected}"), "{text}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("t.toml");
    std::fs::write(&file, b"[data]\ndir = \"\xff\"\n").unwrap();
    let error = load(Some(&file), std::iter::empty()).unwrap_err().to_string();
    assert!(error.ends_with("t.toml: expected UTF-8 text, line 2 is not"), "{error}");
}

#[test]
fn type_errors_name_line_column_key_and_type() {
    for (text, expected) in [
        (
            "[gateway]\nlisten = \"h\"\n",
            "2:10: gateway.listen: expected an address like \"127.0.0.1:8080\"",
        ),
        (
            "[gateway]\nlisten = 8080\n",
            "2:10: gateway.listen: expected an address like \"127.0.0.1:8080\"",
        ),
        (
            "[gateway]\nworkers = \"a\"\n",
            "2:11: gateway.workers: expected a whole number, not negative",
        ),
        (
            "[gateway]\nworkers = -1\n",
            "2:11: gateway.workers: expected a whole number, not negative",
        ),
        ("[gateway]\ndrain_delay = 5\n", "2:15: gateway.drain_delay: expected a string"),
        (
            "[gateway]\ndrain_delay = \"-5s\"\n",
            "2:15: gateway.drain_delay: expected a duration like \"5s\", at most \"168h\"",
        ),
        (
            "[gateway]\ndrain_delay = \"169h\"\n",
            "2:15: gateway.drain_delay: expected a duration like \"5s\", at most \"168h\"",
        ),
        ("gateway = 1\n", "1:11: gateway: expected a table"),
        ("[gateway]\n[[data]]\n", "2:1: data: expected a table"),
        ("data = [\"dir\"]\n", "1:8: data: expected a table"),
        (
            "[[route]]\npath = \"/\"\nupstream = \"m\"\nquantity = [\"/n\"]\n",
            "4:12: route[0].quantity: expected a table",
        ),
        ("[upstream]\n", "1:1: upstream: expected a list"),
        ("[[gateway]]\n", "1:1: gateway: expected a table"),
        ("[books]\nengine = \"sqlite\"\n", "2:10: books.engine: expected `embedded` or `redis`"),
        (
            "[books]\nshards = 65536\n",
            "2:10: books.shards: expected a whole number from 0 to 65535",
        ),
        (
            "[ops]\norg_label = \"some\"\n",
            "2:13: ops.org_label: expected `all`, `none` or a list of org ids",
        ),
        (
            "[limits]\nper_user = { rps = 0 }\n",
            "2:20: limits.per_user.rps: expected a whole number from 1 to 4294967295",
        ),
        (
            "[limits]\nper_user = { burst = 1 }\n",
            "2:12: limits.per_user.rps: expected a value, it is required",
        ),
        (
            "[gateway]\nlisen = \"h\"\n",
            "2:1: gateway.lisen: unknown key, did you mean `listen`? expected one of `listen`, `workers`, `drain_delay`, `drain_timeout`, `trusted_proxies`, `header_timeout`, `body_timeout`, `idle_timeout`, `write_timeout`",
        ),
        (
            "[data]\n  é = 1\n",
            "2:3: data.\"é\": invalid unquoted key, expected letters, numbers, `-`, `_`",
        ),
        ("[data]\n  \"é\\n\" = 1\n", "2:3: data.\"é\\n\": unknown key, expected `dir`"),
        (
            "route = [{ path = \"/é\", upstream = 7 }]\n",
            "1:36: route[0].upstream: expected a string",
        ),
        (
            "[[upstream]]\nname = \"a b\"\nurls = []\n",
            "2:8: upstream[0].name: expected an id: 1 to 128 characters from A-Z a-z 0-9 . _ @ + -, starting with a letter or digit",
        ),
        (
            "[[route]]\npath = \"/\"\nupstream = \"m\"\nfree = 1\n",
            "4:8: route[0].free: expected true or false",
        ),
        (
            "[[route]]\npath = \"/\"\nupstream = \"m\"\nquantity.default = 0.5\n",
            "4:20: route[0].quantity.default: expected a whole number, or an exact decimal in quotes like \"0.5\"",
        ),
        (
            "[[route]]\npath = \"/\"\nupstream = \"m\"\nattributes.\"a b\".json = \"/x\"\n",
            "4:12: route[0].attributes.\"a b\": expected an id: 1 to 128 characters from A-Z a-z 0-9 . _ @ + -, starting with a letter or digit",
        ),
        (
            "[[route]]\npath = \"/\"\nupstream = \"m\"\ncharge_on = [\"2xx\", 404]\n",
            "4:21: route[0].charge_on[1]: expected a string",
        ),
        (
            "[[route]]\npath = \"/\"\nupstream = \"m\"\nmax_body = \"1MB\"\n",
            "4:12: route[0].max_body: expected a size like \"1MiB\"",
        ),
        (
            "[[route]]\npath = \"/\"\nupstream = \"m\"\npick = \"first\"\n",
            "4:8: route[0].pick: expected one of `last`, `sum`, `max`",
        ),
    ] {
        assert_eq!(errors(text, &[]), format!("t.toml:{expected}"), "{text}");
    }
}

#[test]
fn every_type_error_is_reported() {
    let text = "\
[gateway]
lisen = \"127.0.0.1:1\"
workers = \"many\"
[[upstream]]
name = \"a b\"
urls = [\"http://h:1\"]
";
    let known = "`listen`, `workers`, `drain_delay`, `drain_timeout`, `trusted_proxies`, `header_timeout`, `body_timeout`, `idle_timeout`, `write_timeout`";
    let expected = format!(
        "\
t.toml:2:1: gateway.lisen: unknown key, did you mean `listen`? expected one of {known}
t.toml:3:11: gateway.workers: expected a whole number, not negative
t.toml:5:8: upstream[0].name: expected an id: 1 to 128 characters from A-Z a-z 0-9 . _ @ + -, starting with a letter or digit"
    );
    assert_eq!(errors(text, &[]), expected);
}

#[test]
fn what_variables_leave_out_is_said_at_a_variable() {
    let env = [("TOLLGATE__UPSTREAM__0__NAME", "m")];
    let expected =
        "$TOLLGATE__UPSTREAM__0__NAME: upstream[0].urls: expected a value, it is required";
    assert_eq!(errors("", &env), expected);
}

#[test]
fn sections_and_upstreams_that_make_no_sense() {
    let up = "[[upstream]]\nname = \"m\"\n";
    let url = "expected http://host:port, with no user, path or query";
    for (text, expected) in [
        ("[gateway]\nworkers = 1025\n".to_owned(), "2:11: gateway.workers: expected at most 1024".to_owned()),
        ("[admin]\nlisten = \"127.0.0.1:8080\"\n".to_owned(), "2:10: admin.listen: expected an address of its own, gateway.listen has it".to_owned()),
        ("[books]\nowner_timeout = \"0s\"\n".to_owned(), "2:17: books.owner_timeout: expected a duration above zero".to_owned()),
        ("[limits]\nmax_in_flight = 0\n".to_owned(), "2:17: limits.max_in_flight: expected at least 1".to_owned()),
        (format!("{up}urls = []\n"), "3:8: upstream[0].urls: expected a URL like \"http://host:port\"".to_owned()),
        (format!("{up}urls = [\"h:1\"]\n"), format!("3:9: upstream[0].urls[0]: {url}")),
        (format!("{up}urls = [\"http://h\"]\n"), format!("3:9: upstream[0].urls[0]: {url}")),
        (format!("{up}urls = [\"http://h:0\"]\n"), format!("3:9: upstream[0].urls[0]: {url}")),
        (format!("{up}urls = [\"http://h:99999\"]\n"), format!("3:9: upstream[0].urls[0]: {url}")),
        (format!("{up}urls = [\"http://:1\"]\n"), format!("3:9: upstream[0].urls[0]: {url}")),
        (format!("{up}urls = [\"http://h:1/\"]\n"), format!("3:9: upstream[0].urls[0]: {url}")),
        (format!("{up}urls = [\"http://h:1?q\"]\n"), format!("3:9: upstream[0].urls[0]: {url}")),
        (format!("{up}urls = [\"http://u@h:1\"]\n"), format!("3:9: upstream[0].urls[0]: {url}")),
        (format!("{up}urls = [\"https://h:1\"]\n"), "3:9: upstream[0].urls[0]: https:// is not built yet, expected http://".to_owned()),
        (format!("{up}urls = [\"http://h:1\"]\nconnect_timeout = \"0s\"\n"), "4:19: upstream[0].connect_timeout: expected a duration above zero".to_owned()),
        (format!("{up}urls = [\"http://h:1\"]\n{up}urls = [\"http://h:1\"]\n"), "5:8: upstream[1].name: expected a name of its own, upstream[0].name has it".to_owned()),
        (format!("{up}urls = [\"http://h:1\"]\ncredential = {{}}\n"), "4:14: upstream[0].credential: expected exactly one of env, file".to_owned()),
        (format!("{up}urls = [\"http://h:1\"]\ncredential = {{ env = \"A\", file = \"b\" }}\n"), "4:14: upstream[0].credential: expected exactly one of env, file".to_owned()),
        (format!("{up}urls = [\"http://h:1\"]\ncredential = {{ env = \"A\", header = \"a b\" }}\n"), "4:36: upstream[0].credential.header: expected a header's name".to_owned()),
        (format!("{up}urls = [\"http://h:1\"]\ncredential = {{ env = \"A\", header = \"Host\" }}\n"), "4:36: upstream[0].credential.header: expected a header that the gateway does not set itself".to_owned()),
        (format!("{up}urls = [\"http://h:1\"]\ncredential = {{ env = \"A\", scheme = \"a\\nb\" }}\n"), "4:36: upstream[0].credential.scheme: expected a word like \"Bearer\"".to_owned()),
    ] {
        assert_eq!(errors(&text, &[]), format!("t.toml:{expected}"), "{text}");
    }
    let both = errors("[gateway]\ntrusted_proxies = [\"10.0.0.0/33\", \"::/0\"]\n", &[]);
    let cidr = "t.toml:2:20: gateway.trusted_proxies[0]: expected a CIDR like \"10.0.0.0/8\"";
    assert_eq!(both, cidr);
}

#[test]
fn routes_that_make_no_sense() {
    let pointer = "expected a JSON pointer like \"/a/b\" (RFC 6901)";
    let path = "expected a path like \"/v1/images/{name}\"";
    let one = "expected exactly one of json, count, header, query, path, form, form_bytes, form_files, body, times, const";
    let of = "expected exactly one of json, header, query, path, form, const";
    let field = "expected the name of a form's field";
    let measured = "expected `usage.sse_json` or `progress = \"events\"`, by which it is topped up";
    let decimal = "expected an exact decimal with at most six decimals";
    // Each row is what comes after `path`, `upstream` and `feature`, on line 6.
    for (row, expected) in [
        ("method = \"P OST\"", "6:10: route[0].method: expected a method like \"POST\"".to_owned()),
        ("method = \"post\"", "6:10: route[0].method: expected \"POST\", methods are case-sensitive".to_owned()),
        ("method = \"CONNECT\"", "6:10: route[0].method: expected another method, CONNECT is refused".to_owned()),
        ("quantity = {}", format!("6:12: route[0].quantity: {one}")),
        ("quantity = { json = \"/n\", query = \"n\" }", format!("6:12: route[0].quantity: {one}")),
        ("quantity = { json = \"n\" }", format!("6:21: route[0].quantity.json: {pointer}")),
        ("quantity = { json = \"/a~2\" }", format!("6:21: route[0].quantity.json: {pointer}")),
        ("quantity = { json = \"/a~\" }", format!("6:21: route[0].quantity.json: {pointer}")),
        ("quantity = { header = \"a b\" }", "6:23: route[0].quantity.header: expected a header's name".to_owned()),
        ("quantity = { query = \"\" }", "6:22: route[0].quantity.query: expected a query parameter's name".to_owned()),
        ("quantity = { path = \"n\" }", "6:21: route[0].quantity.path: expected the name of a parameter in the route's path".to_owned()),
        ("quantity = { const = \"0.0000001\" }", format!("6:22: route[0].quantity.const: {decimal}")),
        ("quantity = { json = \"/n\", default = 9007199255 }", format!("6:37: route[0].quantity.default: {decimal}")),
        ("quantity = { count = \"n\" }", format!("6:22: route[0].quantity.count: {pointer}")),
        ("quantity = { form = \"\" }", format!("6:21: route[0].quantity.form: {field}")),
        ("quantity = { form_bytes = \"a;b\" }", format!("6:27: route[0].quantity.form_bytes: {field}")),
        ("quantity = { form_files = \"a\\\"b\" }", format!("6:27: route[0].quantity.form_files: {field}")),
        ("quantity = { body = \"words\" }", "6:21: route[0].quantity.body: expected `bytes`".to_owned()),
        ("quantity = { times = [{ const = 1 }] }", "6:22: route[0].quantity.times: expected two to four factors".to_owned()),
        ("quantity = { times = [{ const = 1 }, { json = \"n\" }] }", format!("6:47: route[0].quantity.times[1].json: {pointer}")),
        ("quantity = { times = [{ const = 1 }, { times = [] }] }", "6:48: route[0].quantity.times[1].times: expected no product in a product".to_owned()),
        ("quantity = { times = [{ const = 1 }, {}] }", format!("6:38: route[0].quantity.times[1]: {one}")),
        ("quantity = { times = [{ const = 1 }, { const = 2 }], default = 1 }", "6:64: route[0].quantity.default: expected no such key beside `times`, each factor has its own".to_owned()),
        ("quantity = { form = \"n\" }\nattributes.a = { json = \"/a\" }", "2:1: route[0]: expected pointers or fields of a form, a body is not both".to_owned()),
        ("quantity = { form = \"n\" }\ninject = { \"/a\" = 1 }", "7:10: route[0].inject: expected no such key where a form is read".to_owned()),
        ("inject = { \"a\" = 1 }", format!("6:18: route[0].inject.a: {pointer}")),
        ("inject = { \"\" = 1 }", format!("6:17: route[0].inject.\"\": {pointer}")),
        ("inject = { \"/a\" = { b = nan } }", "6:19: route[0].inject.\"/a\": expected a value that JSON has".to_owned()),
        ("inject = { \"/a\" = 1, \"/a/b\" = 1 }", "6:31: route[0].inject.\"/a/b\": expected a place outside of \"/a\"".to_owned()),
        ("inject = { \"/a/n\" = 1 }\nquantity = { json = \"/a\" }", "6:21: route[0].inject.\"/a/n\": expected a place that decides no price".to_owned()),
        ("inject = { \"/a\" = 1 }\nattributes.x = { json = \"/a/n\" }", "6:19: route[0].inject.\"/a\": expected a place that decides no price".to_owned()),
        ("inject = { \"/a\" = 1 }\nquantity = { times = [{ const = 1 }, { count = \"\" }] }", "6:19: route[0].inject.\"/a\": expected a place that decides no price".to_owned()),
        ("inject_when = { json = \"/a\", equals = true }", "6:15: route[0].inject_when: expected no such key without `inject`".to_owned()),
        ("inject = { \"/a\" = 1 }\ninject_when = { json = \"a\", equals = true }", format!("7:24: route[0].inject_when.json: {pointer}")),
        ("inject = { \"/a\" = 1 }\ninject_when = { json = \"/a\", equals = 1 }", "7:39: route[0].inject_when.equals: expected true, false or a text".to_owned()),
        ("[[route]]\npath = \"/x\"\nupstream = \"m\"\nfree = true\ninject = { \"/a\" = 1 }", "10:10: route[1].inject: expected no such key on a free route".to_owned()),
        ("attributes.a = { default = \"x\" }", format!("6:16: route[0].attributes.a: {of}")),
        ("attributes.a = { json = \"x\" }", format!("6:25: route[0].attributes.a.json: {pointer}")),
        ("attributes.a = { json = \"/x\", map = {} }", "6:37: route[0].attributes.a.map: expected at least one value, others are refused".to_owned()),
        ("usage = {}", "6:9: route[0].usage: expected exactly one of header, trailer, or of the pointers json, sse_json, ndjson_json at least one".to_owned()),
        ("usage = { json = \"/a\", header = \"b\" }", "6:9: route[0].usage: expected exactly one of header, trailer, or of the pointers json, sse_json, ndjson_json at least one".to_owned()),
        ("usage = { json = \"a\" }", format!("6:18: route[0].usage.json: {pointer}")),
        ("usage = { trailer = \"Content-Length\" }", "6:21: route[0].usage.trailer: expected the name of a header that may trail".to_owned()),
        ("usage = { ndjson_json = \"a\" }", format!("6:25: route[0].usage.ndjson_json: {pointer}")),
        ("pick = \"sum\"", "6:8: route[0].pick: expected no such key where no usage is told in a stream".to_owned()),
        ("hold = \"slice\"", format!("6:8: route[0].hold: {measured}")),
        ("hold = \"slice\"\nusage = { json = \"/n\", ndjson_json = \"/n\" }", format!("6:8: route[0].hold: {measured}")),
        ("progress = \"events\"", "6:12: route[0].progress: expected no such key without `hold = \"slice\"`".to_owned()),
        ("meter = [{ name = \"a\", progress = \"events\" }]", "6:35: route[0].meter[0].progress: expected no such key without `hold = \"slice\"`".to_owned()),
        ("hold = \"slice\"\nprogress = \"usage\"\nmeter = [{ name = \"a\", progress = \"events\" }]", "7:12: route[0].progress: expected no such key beside [[route.meter]], each meter has its own".to_owned()),
        ("[[route]]\npath = \"/x\"\nupstream = \"m\"\nfree = true\nsse_receipt = true", "10:15: route[1].sse_receipt: expected no such key on a free route".to_owned()),
        ("[[route]]\npath = \"/x\"\nupstream = \"m\"\nfree = true\nhold = \"slice\"", "10:8: route[1].hold: expected no such key on a free route".to_owned()),
        ("usage = { header = \"é\" }", "6:20: route[0].usage.header: expected a header's name".to_owned()),
        ("charge_on = []", "6:13: route[0].charge_on: expected a status; what never charges is `free = true`".to_owned()),
        ("charge_on = [\"2xx\", \"1xx\"]", "6:21: route[0].charge_on[1]: expected a class like \"2xx\" or a status like \"404\"".to_owned()),
        ("charge_on = [\"40x\"]", "6:14: route[0].charge_on[0]: expected a class like \"2xx\" or a status like \"404\"".to_owned()),
        ("max_body = \"0\"", "6:12: route[0].max_body: expected a size above zero".to_owned()),
        ("free = true", "5:11: route[0].feature: expected no such key on a free route".to_owned()),
        ("quantity = { const = 1 }\nmeter = [{ name = \"a\" }]", "6:12: route[0].quantity: expected no such key beside [[route.meter]], each meter has its own".to_owned()),
        ("meter = [{ name = \"a\" }, { name = \"a\" }]", "6:35: route[0].meter[1].name: expected a name of its own, route[0].meter[0].name has it".to_owned()),
        ("meter = [{ name = \"a\", quantity = {} }]", format!("6:35: route[0].meter[0].quantity: {one}")),
        ("[[route]]\npath = \"/{b}\"\nupstream = \"m\"\nfree = true", "7:8: route[1].path: expected a path that does not conflict with \"/{a}\"".to_owned()),
        ("[[route]]\npath = \"/{a}\"\nupstream = \"m\"\nfree = true", "7:8: route[1].path: expected a method and path of its own, route[0].path has it".to_owned()),
        ("[[route]]\npath = \"/x\"\nupstream = \"n\"\nfree = true", "8:12: route[1].upstream: expected the name of an [[upstream]]".to_owned()),
        ("[[route]]\npath = \"/x\"\nupstream = \"m\"", "6:1: route[1].feature: expected a feature, or `free = true`".to_owned()),
        ("[[route]]\npath = \"x\"\nupstream = \"m\"\nfree = true", format!("7:8: route[1].path: {path}")),
        ("[[route]]\npath = \"/x//y\"\nupstream = \"m\"\nfree = true", format!("7:8: route[1].path: {path}")),
        ("[[route]]\npath = \"/x?y\"\nupstream = \"m\"\nfree = true", format!("7:8: route[1].path: {path}")),
        ("[[route]]\npath = \"/.tollgate/v1\"\nupstream = \"m\"\nfree = true", "7:8: route[1].path: expected a path outside the reserved prefix /.tollgate/".to_owned()),
        ("[[route]]\npath = \"/x/{\"\nupstream = \"m\"\nfree = true", "7:8: route[1].path: expected matchit's syntax, {name} or {*rest} at the end: parameters must be registered with a valid name".to_owned()),
        ("[[route]]\npath = \"/x/{*r}/y\"\nupstream = \"m\"\nfree = true", "7:8: route[1].path: expected matchit's syntax, {name} or {*rest} at the end: catch-all parameters are only allowed at the end of a route".to_owned()),
    ] {
        let text =
            format!("{MEDIA}[[route]]\npath = \"/{{a}}\"\nupstream = \"m\"\nfeature = \"f\"\n{row}\n");
        assert_eq!(errors(&text, &[]), format!("t.toml:{expected}"), "{text}");
    }
}

#[test]
fn one_path_may_have_several_methods() {
    let route = |method: &str| {
        format!("[[route]]\npath = \"/{{a}}\"\nupstream = \"m\"\nfree = true\n{method}\n")
    };
    let text =
        format!("{MEDIA}{}{}{}", route(""), route("method = \"GET\""), route("method = \"PUT\""));
    assert_eq!(load_text(&text, &[]).unwrap().config.route.len(), 3);
}

#[test]
fn paths_conflict_where_a_method_could_take_both() {
    let route = |method: &str, path: &str| {
        let method = if method.is_empty() { "" } else { &format!("method = \"{method}\"\n") };
        format!("[[route]]\npath = \"{path}\"\nupstream = \"m\"\nfree = true\n{method}")
    };
    for (one, other, conflicts) in [
        (("GET", "/a/{x}"), ("POST", "/a/{y}"), false),
        (("GET", "/a/{x}"), ("GET", "/a/{y}"), true),
        (("", "/a/{x}"), ("POST", "/a/{y}"), true),
        (("", "/a/{x}"), ("POST", "/a/{x}"), false),
        (("", "/{*rest}"), ("POST", "/a/{y}"), false),
    ] {
        let text = format!("{MEDIA}{}{}", route(one.0, one.1), route(other.0, other.1));
        let loaded = load_text(&text, &[]);
        assert_eq!(loaded.is_err(), conflicts, "{one:?} {other:?}");
        let Ok(loaded) = loaded else { continue };
        let config = loaded.config;
        assert!(crate::gateway::route::Routes::new(&config.route, &config.upstream).is_ok());
    }
}

#[test]
fn every_semantic_error_is_reported_in_the_order_of_the_file() {
    let text =
        format!("{MEDIA}[[route]]\nupstream = \"n\"\npath = \"x\"\ncharge_on = [\"9\", \"8\"]\n");
    let env = [("TOLLGATE__BOOKS__SHARDS", "0")];
    let expected = "\
t.toml:2:1: route[0].feature: expected a feature, or `free = true`
t.toml:3:12: route[0].upstream: expected the name of an [[upstream]]
t.toml:4:8: route[0].path: expected a path like \"/v1/images/{name}\"
t.toml:5:14: route[0].charge_on[0]: expected a class like \"2xx\" or a status like \"404\"
t.toml:5:19: route[0].charge_on[1]: expected a class like \"2xx\" or a status like \"404\"
$TOLLGATE__BOOKS__SHARDS: books.shards: expected at least 1";
    assert_eq!(errors(&text, &env), expected);
}

#[test]
fn urls_of_redis_are_those_of_a_server_a_cluster_or_sentinels() {
    let engine = ("TOLLGATE__BOOKS__ENGINE", "redis");
    let asked = |url| load_text(SAMPLE, &[engine, ("TOLLGATE__BOOKS__URL", url)]);
    let expected = "expected a URL like \"redis://127.0.0.1:6379\"";
    for (url, problem) in [
        ("redis://a", None),
        ("rediss://u:p@a:1/2?protocol=resp3", None),
        ("redis+sentinel://a,b/books", None),
        ("rediss+sentinel://a/books", None),
        ("[\"redis://a\", \"redis://b:7000\"]", None),
        ("http://a", Some(format!("books.url: {expected}"))),
        ("redis://a redis://b", Some(format!("books.url: {expected}"))),
        ("[\"redis://a\", \"redis+sentinel://b/c\"]", Some(format!("books.url[1]: {expected}"))),
        ("[]", Some("books.url: expected 1 to 64 URLs".to_owned())),
    ] {
        let told = asked(url).err().map(|error| {
            let [problem] = &*error.problems else { panic!("{error}") };
            format!("{}: {}", problem.key, problem.expected)
        });
        assert_eq!(told, problem, "{url}");
    }
    let config = asked("[\"redis://a\", \"redis://b:7000\"]").unwrap().config;
    let joined = crate::config::secret::books_url(&config.books, |_| None).unwrap();
    assert_eq!(joined.expose_secret(), "redis://a redis://b:7000");
}

#[test]
fn each_engine_has_durabilities_of_its_own() {
    let redis =
        [("TOLLGATE__BOOKS__ENGINE", "redis"), ("TOLLGATE__BOOKS__URL", "redis://127.0.0.1")];
    for (env, durability, expected) in [
        (&[][..], "power", None),
        (&[][..], "replica", Some("replicas are those of Redis (engine = \"redis\")")),
        (&redis[..], "replica", None),
        (&redis[..], "power", Some("expected process or replica")),
    ] {
        let env = [env, &[("TOLLGATE__BOOKS__DURABILITY", durability)]].concat();
        let told = load_text(SAMPLE, &env).err().map(|error| error.to_string());
        match (&told, expected) {
            (None, None) => {}
            (Some(told), Some(expected)) => {
                assert!(told.contains("books.durability") && told.contains(expected), "{told}")
            }
            _ => panic!("{durability}: {told:?}"),
        }
    }
}

#[test]
fn what_is_not_built_yet_says_so_at_its_key() {
    let absent = "not built yet, expected the key to be absent";
    let empty = "not built yet, expected nothing in it";
    for (variable, value, expected) in [
        ("DIRECTORY__ORG_FILES", "[\"*.toml\"]", format!("directory.org_files: {empty}")),
        (
            "UPSTREAM__0__URLS__0",
            "https://h:2",
            "upstream[0].urls[0]: https:// is not built yet, expected http://".to_owned(),
        ),
        ("ROUTE__0__FRONT", "hold", format!("route[0].front: {absent}")),
        ("AUTH__JWT", "{ issuer = \"i\", audience = \"a\" }", format!("auth.jwt: {absent}")),
        ("ENVOY__LISTEN", "127.0.0.1:9191", format!("envoy.listen: {absent}")),
    ] {
        let name = format!("TOLLGATE__{variable}");
        let env = [(&*name, value)];
        let error = load_text(SAMPLE, &env).unwrap_err();
        let [problem] = &*error.problems else { panic!("{error}") };
        assert_eq!(format!("{}: {}", problem.key, problem.expected), expected);
    }
    let built = [
        ("TOLLGATE__ROUTE__0__SSE_RECEIPT", "true"),
        ("TOLLGATE__ROUTE__0__MODE", "observe"),
        ("TOLLGATE__ROUTE__0__ON_DISCONNECT", "cancel"),
        ("TOLLGATE__ROUTE__0__INJECT", "{}"),
        ("TOLLGATE__ROUTE__0__EXHAUSTED_STATUS", "429"),
        ("TOLLGATE__ROUTE__0__COMPAT", "openai"),
        ("TOLLGATE__ROUTE__0__IDEMPOTENCY", "required"),
        ("TOLLGATE__UPSTREAM__0__URLS__1", "http://h:2"),
        ("TOLLGATE__UPSTREAM__0__HEALTH__PATH", "/healthz"),
    ];
    assert!(load_text(SAMPLE, &built).is_ok());
}

#[test]
fn a_directory_is_in_postgresql_or_nowhere_else() {
    for url in ["mysql://u:canary-3c@h/d", "canary-3c", "sqlite:a"] {
        let shown = errors(&format!("[directory]\nurl = \"{url}\"\n"), &[]);
        let expected = "directory.url: expected a URL like \"postgres://host:5432/database\"";
        assert!(shown.ends_with(expected) && !shown.contains("canary"), "{shown}");
    }
    for url in ["postgres://u:p@h/d?sslmode=verify-full", "postgresql://h:5432/d"] {
        load_text(SAMPLE, &[("TOLLGATE__DIRECTORY__URL", url)]).unwrap();
    }
}
