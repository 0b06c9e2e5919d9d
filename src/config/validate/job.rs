//! What is wrong with the job of a route.

use std::time::Duration;

use super::super::document::Key;
use super::super::{Job, OnDisconnect, Report, Route, Table, Usage, is_pointer};
use super::Check;

/// The longest hold that there is, and the longest wait between two looks at one.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);
const POLLS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
/// An id as a job may have it, and that no route names.
const AN_ID: &str = "01a1fb54-b3cc-7d3b-8096-b6d771eb1dcb";

pub(super) fn job(check: &mut Check<'_>, route_key: &Key, route: &Route) {
    let Some(job) = &route.job else { return };
    let key = route_key.name("job");
    check.that(!route.free, &key, "expected no such key on a free route");
    for (name, pointer) in [("id", &job.id), ("status", &job.status)] {
        let leads = is_pointer(pointer) && !pointer.is_empty();
        check.that(leads, &key.name(name), "expected a JSON pointer like \"/id\" (RFC 6901)");
    }
    let expected = "expected a path like \"/v1/videos/{job}\", with {job} once and no query";
    check.that(is_template(&job.status_path), &key.name("status_path"), expected);
    for (name, words) in [("succeeded", &job.succeeded), ("failed", &job.failed)] {
        check.that(!words.is_empty(), &key.name(name), "expected at least one value");
    }
    for (index, word) in job.failed.iter().enumerate() {
        let both = job.succeeded.contains(word);
        let key = key.name("failed").index(index);
        check.that(!both, &key, "expected a value that does not stand in `succeeded`");
    }
    let poll = POLLS.contains(&job.poll) && job.poll <= job.deadline;
    let expected = "expected a duration from \"100ms\" to \"1h\", and at most `deadline`";
    check.that(poll, &key.name("poll"), expected);
    let bounded = (Duration::from_secs(1)..=MAX_DEADLINE).contains(&job.deadline);
    check.that(bounded, &key.name("deadline"), "expected a duration from \"1s\" to \"24h\"");
    if let Some(Report { env, file }) = &job.report {
        let key = key.name("report");
        check.that(env.is_some() != file.is_some(), &key, "expected exactly one of env, file");
        let variable =
            env.as_deref().is_none_or(|env| !env.is_empty() && !env.contains(['=', '\0']));
        check.that(variable, &key.name("env"), "expected the name of an environment variable");
    }
    beside(check, route_key, route);
}

/// Jobs whose clients could not ask how they stand: no free route to the same upstream takes that.
pub(super) fn polls(check: &mut Check<'_>, key: &Key, routes: &[Route]) {
    let method = |route: &Route| Some(http::Method::from_bytes(route.method.as_ref()?.as_bytes()));
    let entries: Vec<_> = (routes.iter())
        .map(|route| (method(route).and_then(Result::ok), &*route.path, route))
        .collect();
    let (table, _) = Table::new(&entries);
    for (index, route) in routes.iter().enumerate() {
        let Some(job) = &route.job else { continue };
        let path = job.status_path.replace(Job::PLACE, AN_ID);
        let taken = table.find(&http::Method::GET, &path).is_ok_and(|found| {
            let poll = *found.value;
            poll.free && poll.upstream == route.upstream
        });
        let key = key.index(index).name("job").name("status_path");
        let expected = "expected a free route to the same upstream that takes GET of this path: \
                        without one clients cannot ask how their jobs stand";
        check.that(taken, &key, expected);
    }
}

/// What does not go with a job: its usage is told by its status document, and who leaves before
/// its id is known would have it for nothing.
fn beside(check: &mut Check<'_>, key: &Key, route: &Route) {
    let finishes = route.on_disconnect == OnDisconnect::Finish;
    let expected = "expected \"finish\" beside `job`: the backend may have begun it";
    check.that(finishes, &key.name("on_disconnect"), expected);
    for (name, there) in [
        ("pick", route.pick.is_some()),
        ("hold", route.hold.is_some()),
        ("sse_receipt", route.sse_receipt),
        ("front", route.front.is_some()),
    ] {
        check.that(!there, &key.name(name), "expected no such key beside `job`");
    }
    let meters = route.meter.iter().enumerate();
    let meters = meters.map(|(at, meter)| (key.name("meter").index(at), meter.usage.as_ref()));
    for (key, usage) in std::iter::once((key.clone(), route.usage.as_ref())).chain(meters) {
        let Some(usage) = usage else { continue };
        let Usage { json, sse_json, ndjson_json, header, trailer } = usage;
        let others = [sse_json, ndjson_json, header, trailer];
        let plain = json.is_some() && others.into_iter().all(Option::is_none);
        let expected = "expected `json` alone: the usage of a job is in its status document";
        check.that(plain, &key.name("usage"), expected);
    }
}

/// A path that every backend reads as one, with the id in one place.
fn is_template(text: &str) -> bool {
    let mut parts = text.split(Job::PLACE);
    let (before, after) = (parts.next().unwrap_or_default(), parts.next());
    let is_plain = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/-._~:@!$&'()*+,=".contains(&byte))
            && !part.contains("//")
    };
    let dots = |segment: &str| matches!(segment, "." | "..");
    before.starts_with('/')
        && after.is_some_and(is_plain)
        && parts.next().is_none()
        && is_plain(before)
        && !text.split('/').any(dots)
        && !text.starts_with("/.tollgate/")
}
