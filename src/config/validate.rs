//! What types cannot say: names that must exist, texts with a syntax of their own, values that
//! make no sense. Every error is reported, each at its key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::document::{Document, Key};
use super::error::Problem;
use super::{Config, Credential, Durability, Engine, Gateway, MAX_URLS, OneOrMany, Upstream, Url};

mod job;
mod route;

/// A thread a core is what is meant; thousands are a mistake.
const MAX_WORKERS: usize = 1024;

/// Everything that is wrong.
pub(super) fn validate(config: &Config, document: &Document) -> Vec<Problem> {
    let mut check = Check { document, problems: Vec::new() };
    let root = Key::default();
    sections(&mut check, config);
    upstreams(&mut check, &root.name("upstream"), &config.upstream);
    route::routes(&mut check, &root.name("route"), config);
    check.problems
}

/// What is valid and hardly meant so.
pub(super) fn warnings(config: &Config, document: &Document) -> Vec<Problem> {
    let mut check = Check { document, problems: Vec::new() };
    job::polls(&mut check, &Key::default().name("route"), &config.route);
    check.problems
}

/// The errors so far, and where keys are.
struct Check<'a> {
    document: &'a Document,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn that(&mut self, holds: bool, key: &Key, expected: impl Into<String>) {
        if !holds {
            self.problems.push(self.document.problem(key, expected));
        }
    }

    fn above_zero(&mut self, value: Duration, key: &Key) {
        self.that(!value.is_zero(), key, "expected a duration above zero");
    }

    /// Names that must differ; `what` is the singular.
    fn unique<T: Ord>(&mut self, names: impl Iterator<Item = (Key, T)>, what: &str) {
        let mut seen = BTreeMap::new();
        for (key, name) in names {
            if let Some(other) = seen.get(&name) {
                self.that(false, &key, format!("expected {what} of its own, {other} has it"));
            } else {
                seen.insert(name, key);
            }
        }
    }
}

fn sections(check: &mut Check<'_>, config: &Config) {
    let root = Key::default();
    let gateway = root.name("gateway");
    let workers = format!("expected at most {MAX_WORKERS}");
    check.that(config.gateway.workers <= MAX_WORKERS, &gateway.name("workers"), workers);
    let Gateway { header_timeout, body_timeout, idle_timeout, write_timeout, .. } = config.gateway;
    for (name, timeout) in [
        ("header_timeout", header_timeout),
        ("body_timeout", body_timeout),
        ("idle_timeout", idle_timeout),
        ("write_timeout", write_timeout),
    ] {
        check.above_zero(timeout, &gateway.name(name));
    }
    // Port 0 asks for any free port, so it may be named more than once.
    let listeners: [(&str, SocketAddr); 3] = [
        ("gateway", config.gateway.listen),
        ("admin", config.admin.listen),
        ("ops", config.ops.listen),
    ];
    let fixed = listeners.into_iter().filter(|(_, address)| address.port() != 0);
    let named = fixed.map(|(section, address)| (root.name(section).name("listen"), address));
    check.unique(named, "an address");
    let books = root.name("books");
    check.that(config.books.shards >= 1, &books.name("shards"), "expected at least 1");
    let segment_size = &books.name("segment_size");
    let in_range = (16 << 10..=1 << 30).contains(&config.books.segment_size);
    check.that(in_range, segment_size, "expected a size from 16KiB to 1GiB");
    let in_range = config.books.retention_days <= 36_500;
    check.that(in_range, &books.name("retention_days"), "expected at most 36500 days");
    check.above_zero(config.books.timeout, &books.name("timeout"));
    check.above_zero(config.books.owner_timeout, &books.name("owner_timeout"));
    check.above_zero(config.books.rejoin_timeout, &books.name("rejoin_timeout"));
    check.above_zero(config.books.settle_timeout, &books.name("settle_timeout"));
    redis(check, config, &books);
    if let Some(url) = &config.directory.url {
        let url = url.expose();
        let fine = url.starts_with("postgres://") || url.starts_with("postgresql://");
        let expected = "expected a URL like \"postgres://host:5432/database\"";
        check.that(fine, &root.name("directory").name("url"), expected);
    }
    let traces = root.name("traces");
    if let Some(endpoint) = &config.traces.endpoint {
        let expected = "expected http://host:port, with no user, path or query";
        check.that(is_origin(endpoint), &traces.name("endpoint"), expected);
    }
    if let Some(credential) = &config.traces.credential {
        self::credential(check, &traces.name("credential"), credential);
    }
    let limits = root.name("limits");
    let in_flight = limits.name("max_in_flight");
    check.that(config.limits.max_in_flight >= 1, &in_flight, "expected at least 1");
    let connections = limits.name("max_connections");
    check.that(config.limits.max_connections >= 1, &connections, "expected at least 1");
}

/// What goes with which engine.
fn redis(check: &mut Check<'_>, config: &Config, key: &Key) {
    let books = &config.books;
    let sources = [
        ("url", books.url.is_some()),
        ("url_env", books.url_env.is_some()),
        ("url_file", books.url_file.is_some()),
    ];
    let given = sources.iter().filter(|(_, is_given)| *is_given);
    match books.engine {
        Engine::Embedded => {
            for &(name, _) in given {
                let expected = "expected engine = \"redis\" beside it, or the key to be absent";
                check.that(false, &key.name(name), expected);
            }
            let expected =
                "expected process or power: replicas are those of Redis (engine = \"redis\")";
            let fits = books.durability != Durability::Replica;
            check.that(fits, &key.name("durability"), expected);
        }
        Engine::Redis => {
            let expected = "expected exactly one of url, url_env and url_file beside it";
            check.that(given.count() == 1, &key.name("engine"), expected);
            let expected = "expected process or replica: what Redis survives is configured there";
            let fits = books.durability != Durability::Power;
            check.that(fits, &key.name("durability"), expected);
        }
    }
    let begins = |url: &Url, schemes: &[&str]| {
        schemes.iter().any(|scheme| url.expose().starts_with(scheme)) && !url.expose().contains(' ')
    };
    let (key, servers) = (key.name("url"), ["redis://", "rediss://"]);
    match &books.url {
        Some(OneOrMany::One(url)) => {
            let sentinels = ["redis+sentinel://", "rediss+sentinel://"];
            let fine = begins(url, &servers) || begins(url, &sentinels);
            check.that(fine, &key, "expected a URL like \"redis://127.0.0.1:6379\"");
        }
        Some(OneOrMany::Many(urls)) => {
            let in_range = (1..=MAX_URLS).contains(&urls.len());
            check.that(in_range, &key, format!("expected 1 to {MAX_URLS} URLs"));
            for (index, url) in urls.iter().enumerate() {
                let expected = "expected a URL like \"redis://127.0.0.1:6379\"";
                check.that(begins(url, &servers), &key.index(index), expected);
            }
        }
        None => {}
    }
}

fn upstreams(check: &mut Check<'_>, key: &Key, upstreams: &[Upstream]) {
    let names = upstreams.iter().enumerate();
    check.unique(names.map(|(index, up)| (key.index(index).name("name"), &up.name)), "a name");
    for (index, upstream) in upstreams.iter().enumerate() {
        let key = key.index(index);
        let urls = key.name("urls");
        check.that(!upstream.urls.is_empty(), &urls, "expected a URL like \"http://host:port\"");
        let most = format!("expected at most {MAX_URLS} URLs");
        check.that(upstream.urls.len() <= MAX_URLS, &urls, most);
        let each = upstream.urls.iter().enumerate();
        check.unique(each.map(|(index, url)| (urls.index(index), url)), "a URL");
        for (index, url) in upstream.urls.iter().enumerate() {
            // That https is not built yet is said there, where the rest of that list is.
            let fine = is_origin(url) || url.starts_with("https://");
            let expected = "expected http://host:port, with no user, path or query";
            check.that(fine, &urls.index(index), expected);
        }
        check.above_zero(upstream.connect_timeout, &key.name("connect_timeout"));
        check.above_zero(upstream.response_timeout, &key.name("response_timeout"));
        check.above_zero(upstream.idle_timeout, &key.name("idle_timeout"));
        check.above_zero(upstream.body_timeout, &key.name("body_timeout"));
        if let Some(health) = &upstream.health {
            let path = key.name("health").name("path");
            let fine = health.path.starts_with('/')
                && health.path.parse::<http::uri::PathAndQuery>().is_ok();
            check.that(fine, &path, "expected a path like \"/healthz\"");
            check.above_zero(health.interval, &key.name("health").name("interval"));
        }
        if let Some(credential) = &upstream.credential {
            self::credential(check, &key.name("credential"), credential);
        }
    }
}

fn credential(check: &mut Check<'_>, key: &Key, credential: &Credential) {
    let sources = usize::from(credential.env.is_some()) + usize::from(credential.file.is_some());
    check.that(sources == 1, key, "expected exactly one of env, file");
    let name = credential.env.as_deref();
    let variable = name.is_none_or(|name| !name.is_empty() && !name.contains(['=', '\0']));
    check.that(variable, &key.name("env"), "expected the name of an environment variable");
    let header = key.name("header");
    check.that(is_header(&credential.header), &header, "expected a header's name");
    let free = !is_taken(&credential.header);
    check.that(free, &header, "expected a header that the gateway does not set itself");
    let scheme = credential.scheme.as_deref();
    let token = scheme.is_none_or(|text| text.parse::<http::HeaderName>().is_ok());
    check.that(token, &key.name("scheme"), "expected a word like \"Bearer\"");
}

/// Headers that frame the message or are ours to set: what stood in one would break every request.
fn is_taken(header: &str) -> bool {
    let taken = ["connection", "content-length", "host", "te", "trailer", "transfer-encoding"];
    let lower = header.to_ascii_lowercase();
    taken.contains(&&*lower) || lower.starts_with("tollgate-")
}

fn is_header(text: &str) -> bool {
    text.parse::<http::HeaderName>().is_ok()
}

fn is_origin(url: &str) -> bool {
    let authority = url.strip_prefix("http://").filter(|rest| !rest.contains('@'));
    let parsed = authority.and_then(|text| text.parse::<http::uri::Authority>().ok());
    parsed.is_some_and(|authority| {
        !authority.host().is_empty() && authority.port_u16().is_some_and(|port| port != 0)
    })
}
