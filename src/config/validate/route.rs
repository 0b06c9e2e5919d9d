//! What is wrong with routes.

use super::super::document::Key;
use super::super::{
    Attribute, Config, Hold, Number, Progress, Quantity, Route, Table, Usage, is_pointer,
    parameters, statuses,
};
use super::{Check, is_header, is_taken};
use crate::core::amount::parse_micro;

/// Methods that everybody writes in capitals; methods are compared byte for byte.
const USUAL: [&str; 8] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"];

pub(super) fn routes(check: &mut Check<'_>, key: &Key, config: &Config) {
    paths(check, key, &config.route);
    for (index, route) in config.route.iter().enumerate() {
        let key = key.index(index);
        let known = config.upstream.iter().any(|upstream| upstream.name == route.upstream);
        check.that(known, &key.name("upstream"), "expected the name of an [[upstream]]");
        method(check, &key.name("method"), route.method.as_deref());
        metering(check, &key, route);
        for (name, attribute) in &route.attributes {
            self::attribute(check, &key.name("attributes").name(name.as_str()), attribute, route);
        }
        injecting(check, &key, route);
        super::job::job(check, &key, route);
        let charged = key.name("charge_on");
        let any = !route.charge_on.is_empty();
        check.that(any, &charged, "expected a status; what never charges is `free = true`");
        for (index, status) in route.charge_on.iter().enumerate() {
            let expected = "expected a class like \"2xx\" or a status like \"404\"";
            check.that(statuses(status).is_some(), &charged.index(index), expected);
        }
        let max_body = key.name("max_body");
        check.that(route.max_body > 0, &max_body, "expected a size above zero");
        let held = route.max_body <= config.limits.max_buffered;
        check.that(held, &max_body, "expected at most `limits.max_buffered`");
        let refusal = route.exhausted_status.is_none_or(|status| matches!(status, 402 | 403 | 429));
        check.that(refusal, &key.name("exhausted_status"), "expected 402, 403 or 429");
    }
}

/// Paths parse, and no request could belong to two routes.
fn paths(check: &mut Check<'_>, key: &Key, routes: &[Route]) {
    let mut entries = Vec::new();
    let mut places = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        let key = key.index(index).name("path");
        let form = route.path.starts_with('/')
            && !route.path.contains("//")
            && route.path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
        if !form {
            check.that(false, &key, "expected a path like \"/v1/images/{name}\"");
            continue;
        }
        let reserved = route.path == "/.tollgate" || route.path.starts_with("/.tollgate/");
        check.that(!reserved, &key, "expected a path outside the reserved prefix /.tollgate/");
        let same =
            |earlier: &Route| (&earlier.method, &earlier.path) == (&route.method, &route.path);
        let method = route.method.as_ref().map(|text| http::Method::from_bytes(text.as_bytes()));
        // What is wrong with these is said elsewhere.
        if routes[..index].iter().any(same) || matches!(method, Some(Err(_))) {
            continue;
        }
        entries.push((method.and_then(Result::ok), &*route.path, ()));
        places.push(key);
    }
    for (index, error) in Table::new(&entries).1 {
        let expected = match error {
            matchit::InsertError::Conflict { with } => {
                format!("expected a path that does not conflict with {with:?}")
            }
            error => {
                let expected = "expected matchit's syntax, {name} or {*rest} at the end";
                format!("{expected}: {}", error.to_string().to_lowercase())
            }
        };
        check.that(false, &places[index], expected);
    }
    let method_and_path = routes.iter().enumerate().map(|(index, route)| {
        (key.index(index).name("path"), (&*route.path, route.method.as_deref()))
    });
    check.unique(method_and_path, "a method and path");
}

fn method(check: &mut Check<'_>, key: &Key, method: Option<&str>) {
    let Some(text) = method else { return };
    let token = http::Method::from_bytes(text.as_bytes()).is_ok();
    check.that(token, key, "expected a method like \"POST\"");
    let capitals = text.to_ascii_uppercase();
    let misspelt = text != capitals && USUAL.contains(&&*capitals);
    check.that(!misspelt, key, format!("expected \"{capitals}\", methods are case-sensitive"));
    check.that(text != "CONNECT", key, "expected another method, CONNECT is refused");
}

/// What is metered has a feature; what is free has nothing that could suggest it is metered.
fn metering(check: &mut Check<'_>, key: &Key, route: &Route) {
    let feature = key.name("feature");
    let meter = key.name("meter");
    if route.free {
        let free = "expected no such key on a free route";
        check.that(route.feature.is_none(), &feature, free);
        check.that(route.quantity.is_none(), &key.name("quantity"), free);
        check.that(route.usage.is_none(), &key.name("usage"), free);
        check.that(route.meter.is_empty(), &meter, free);
        check.that(route.idempotency.is_none(), &key.name("idempotency"), free);
        check.that(route.mode.is_none(), &key.name("mode"), free);
        check.that(route.hold.is_none(), &key.name("hold"), free);
        check.that(!route.sse_receipt, &key.name("sse_receipt"), free);
    } else {
        check.that(route.feature.is_some(), &feature, "expected a feature, or `free = true`");
    }
    if !route.meter.is_empty() {
        let own = "expected no such key beside [[route.meter]], each meter has its own";
        check.that(route.quantity.is_none(), &key.name("quantity"), own);
        check.that(route.usage.is_none(), &key.name("usage"), own);
        check.that(route.progress.is_none(), &key.name("progress"), own);
    }
    slices(check, key, route);
    amounts(check, key, route, route.quantity.as_ref(), route.usage.as_ref());
    let mut told = route.usage.iter().chain(route.meter.iter().filter_map(|m| m.usage.as_ref()));
    let streamed = route.pick.is_none() || told.any(Usage::is_streamed);
    let expected = "expected no such key where no usage is told in a stream";
    check.that(streamed, &key.name("pick"), expected);
    let names = route.meter.iter().enumerate();
    check.unique(names.map(|(index, one)| (meter.index(index).name("name"), &one.name)), "a name");
    for (index, one) in route.meter.iter().enumerate() {
        amounts(check, &meter.index(index), route, one.quantity.as_ref(), one.usage.as_ref());
    }
    let one_kind = !route.reads_form() || route.pointers().next().is_none();
    check.that(one_kind, key, "expected pointers or fields of a form, a body is not both");
}

/// What is held in slices shows in the events of a stream how far it has come.
fn slices(check: &mut Check<'_>, key: &Key, route: &Route) {
    let sliced = route.hold == Some(Hold::Slice);
    let expected = "expected no such key without `hold = \"slice\"`";
    let own = route.progress.is_none() || sliced;
    check.that(own, &key.name("progress"), expected);
    for (index, meter) in route.meter.iter().enumerate() {
        let fine = meter.progress.is_none() || sliced;
        check.that(fine, &key.name("meter").index(index).name("progress"), expected);
    }
    let shows = |usage: &Option<Usage>, progress: Option<Progress>| {
        let told = usage.as_ref().is_some_and(|usage| usage.sse_json.is_some());
        told || progress == Some(Progress::Events)
    };
    let own = shows(&route.usage, route.progress);
    let measured = own || route.meter.iter().any(|one| shows(&one.usage, one.progress));
    let expected = "expected `usage.sse_json` or `progress = \"events\"`, by which it is topped up";
    check.that(!sliced || route.free || measured, &key.name("hold"), expected);
}

fn amounts(
    check: &mut Check<'_>,
    key: &Key,
    route: &Route,
    quantity: Option<&Quantity>,
    usage: Option<&Usage>,
) {
    if let Some(quantity) = quantity {
        self::quantity(check, &key.name("quantity"), quantity, route);
    }
    if let Some(usage) = usage {
        let key = key.name("usage");
        let Usage { json, sse_json, ndjson_json, header, trailer } = usage;
        check.that(usage.is_one_place(), &key, format!("expected {}", Usage::EXPECTED));
        let pointers = [("json", json), ("sse_json", sse_json), ("ndjson_json", ndjson_json)];
        for (name, text) in pointers {
            check.that(text.as_deref().is_none_or(is_pointer), &key.name(name), POINTER);
        }
        let header = header.as_deref().is_none_or(is_header);
        check.that(header, &key.name("header"), "expected a header's name");
        let trailer = trailer.as_deref().is_none_or(|name| is_header(name) && !is_taken(name));
        check.that(trailer, &key.name("trailer"), "expected the name of a header that may trail");
    }
}

fn quantity(check: &mut Check<'_>, key: &Key, quantity: &Quantity, route: &Route) {
    let one = quantity.is_one_place();
    check.that(one, key, format!("expected {}", Quantity::EXPECTED));
    let Quantity { json, count, header, query, path, form, form_bytes, form_files, .. } = quantity;
    Sources { json, header, query, path, form }.check(check, key, route);
    check.that(count.as_deref().is_none_or(is_pointer), &key.name("count"), POINTER);
    for (name, field) in [("form_bytes", form_bytes), ("form_files", form_files)] {
        check.that(field.as_deref().is_none_or(is_field), &key.name(name), FIELD);
    }
    for (name, number) in [("const", &quantity.constant), ("default", &quantity.default)] {
        let fine = number.as_ref().is_none_or(is_amount);
        let expected = "expected an exact decimal with at most six decimals";
        check.that(fine, &key.name(name), expected);
    }
    let Some(factors) = &quantity.times else { return };
    let own = "expected no such key beside `times`, each factor has its own";
    check.that(quantity.default.is_none(), &key.name("default"), own);
    let key = key.name("times");
    let few = Quantity::FACTORS.contains(&factors.len());
    check.that(few, &key, "expected two to four factors");
    for (index, factor) in factors.iter().enumerate() {
        let key = key.index(index);
        if factor.times.is_some() {
            check.that(false, &key.name("times"), "expected no product in a product");
        } else {
            self::quantity(check, &key, factor, route);
        }
    }
}

fn attribute(check: &mut Check<'_>, key: &Key, attribute: &Attribute, route: &Route) {
    let one = attribute.is_one_place();
    check.that(one, key, format!("expected {}", Attribute::EXPECTED));
    let Attribute { json, header, query, path, form, map, .. } = attribute;
    Sources { json, header, query, path, form }.check(check, key, route);
    let listed = map.as_ref().is_none_or(|map| !map.is_empty());
    check.that(listed, &key.name("map"), "expected at least one value, others are refused");
}

/// What is set in a body is set in a JSON object, and decides nothing that was priced before.
fn injecting(check: &mut Check<'_>, route_key: &Key, route: &Route) {
    let key = route_key.name("inject");
    let metered = route.inject.is_empty() || !route.free;
    check.that(metered, &key, "expected no such key on a free route");
    let json = route.inject.is_empty() || !route.reads_form();
    check.that(json, &key, "expected no such key where a form is read");
    for (index, (pointer, value)) in route.inject.iter().enumerate() {
        let key = key.name(pointer);
        if !is_pointer(pointer) || pointer.is_empty() {
            check.that(false, &key, POINTER);
            continue;
        }
        check.that(is_json(value), &key, "expected a value that JSON has");
        let priced = route.pointers().any(|other| leads_into_one(pointer, other));
        check.that(!priced, &key, "expected a place that decides no price");
        let mut earlier = route.inject.keys().take(index);
        let other = earlier.find(|other| leads_into_one(pointer, other));
        if let Some(other) = other {
            check.that(false, &key, format!("expected a place outside of {other:?}"));
        }
    }
    let Some(when) = &route.inject_when else { return };
    let key = route_key.name("inject_when");
    check.that(!route.inject.is_empty(), &key, "expected no such key without `inject`");
    check.that(is_pointer(&when.json), &key.name("json"), POINTER);
}

/// Whether two pointers are one, or one leads into what the other names.
fn leads_into_one(one: &str, other: &str) -> bool {
    let into = |one: &str, other: &str| {
        one.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    into(one, other) || into(other, one)
}

fn is_json(value: &toml::Value) -> bool {
    match value {
        toml::Value::Datetime(_) => false,
        toml::Value::Float(number) => number.is_finite(),
        toml::Value::Array(items) => items.iter().all(is_json),
        toml::Value::Table(table) => table.values().all(is_json),
        toml::Value::String(_) | toml::Value::Integer(_) | toml::Value::Boolean(_) => true,
    }
}

/// The places of a request that can be read.
struct Sources<'a> {
    json: &'a Option<String>,
    header: &'a Option<String>,
    query: &'a Option<String>,
    path: &'a Option<String>,
    form: &'a Option<String>,
}

impl Sources<'_> {
    fn check(&self, check: &mut Check<'_>, key: &Key, route: &Route) {
        let &Self { json, header, query, path, form } = self;
        check.that(json.as_deref().is_none_or(is_pointer), &key.name("json"), POINTER);
        let header = header.as_deref().is_none_or(is_header);
        check.that(header, &key.name("header"), "expected a header's name");
        let named = query.as_deref().is_none_or(|name| !name.is_empty());
        check.that(named, &key.name("query"), "expected a query parameter's name");
        let parameter = |name: &str| parameters(&route.path).any(|known| known == name);
        let there = path.as_deref().is_none_or(parameter);
        let expected = "expected the name of a parameter in the route's path";
        check.that(there, &key.name("path"), expected);
        check.that(form.as_deref().is_none_or(is_field), &key.name("form"), FIELD);
    }
}

const FIELD: &str = "expected the name of a form's field";

/// A name that a form can have, as the gateway reads forms.
fn is_field(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_control() || "\"\\;".contains(c))
}

const POINTER: &str = "expected a JSON pointer like \"/a/b\" (RFC 6901)";

fn is_amount(number: &Number) -> bool {
    match number {
        Number::Whole(whole) => parse_micro(&whole.to_string()).is_ok(),
        Number::Decimal(text) => parse_micro(text).is_ok(),
    }
}
