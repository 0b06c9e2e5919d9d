//! What a backend is shown of a request, and what a client is shown of a response.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Request, Version, response};
use smallvec::SmallVec;

use super::identify::{Caller, TOLLGATE_USER};
use super::outgoing::Outgoing;
use super::proxies;
use super::route::Route;
use super::screen::looks_like;
use super::upstream::Upstream;
use super::worker::Connection;

/// The request's id, in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What a caller is told of a charge.
pub const TOLLGATE_RECEIPT: HeaderName = HeaderName::from_static("tollgate-receipt");
/// What a seat without pool access has left.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// What that is counted against.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(super) const TOLLGATE_ORG: HeaderName = HeaderName::from_static("tollgate-org");
const TOLLGATE_CHARGE: HeaderName = HeaderName::from_static("tollgate-charge");

/// Removes what belongs to the connection it came over, and what only the gateway says
/// (f60, f61); `also` says what else goes. Run before a request is priced: a header that is not forwarded decides no price.
pub fn strip(headers: &mut HeaderMap, also: impl Fn(&HeaderName) -> bool) {
    let mut gone: SmallVec<[HeaderName; 8]> = SmallVec::new();
    for name in headers.keys() {
        if is_hop_by_hop(name) || is_ours(name) || is_disguised(name) || also(name) {
            gone.push(name.clone());
        }
    }
    for value in headers.get_all(CONNECTION) {
        for token in value.as_bytes().split(|byte| *byte == b',') {
            let token = token.trim_ascii();
            if !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"close") {
                gone.extend(HeaderName::from_bytes(token));
            }
        }
    }
    for name in gone {
        headers.remove(name);
    }
}

/// Whether a client takes trailers (RFC 9110, 6.5.1).
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter();
    let mut words = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    // Names that http knows compare as one number each.
    *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == TE
        || *name == TRAILER
        || *name == UPGRADE
        || *name == PROXY_AUTHENTICATE
        || *name == PROXY_AUTHORIZATION
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

/// `Tollgate-*` in any spelling that a backend could take for it: CGI and its heirs turn `-`, and
/// some of them everything that is no letter or digit, into `_`.
fn is_ours(name: &HeaderName) -> bool {
    let bytes = name.as_str().as_bytes();
    bytes.starts_with(b"tollgate") && bytes.get(8).is_some_and(|byte| !byte.is_ascii_alphanumeric())
}

/// Headers that frame a message or that the gateway itself sets, in the spelling of a backend
/// that makes the same variable of `_` and `-`.
const DISGUISED: [&str; 7] = [
    "content-length",
    "content-type",
    "transfer-encoding",
    "accept-encoding",
    "content-encoding",
    "x-request-id",
    "proxy-authorization",
];

/// True for a header that is none of those, but looks like one.
fn is_disguised(name: &HeaderName) -> bool {
    let bytes = name.as_str().as_bytes();
    let odd = |odd: bool, byte: &u8| odd | !(byte.is_ascii_alphanumeric() | (*byte == b'-'));
    bytes.iter().fold(false, odd)
        && DISGUISED.iter().any(|known| looks_like(bytes, known.as_bytes()))
}

/// The id a caller gave its request, if it may be passed on.
pub fn own_request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(X_REQUEST_ID)?;
    let visible = |bytes: &[u8]| bytes.iter().all(|byte| (0x21..=0x7e).contains(byte));
    ((1..=128).contains(&id.len()) && visible(id.as_bytes())).then(|| id.clone())
}

/// What a client says of its body's bytes and no other (RFC 9530, RFC 3230, RFC 2616).
const OF_ITS_BYTES: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// Removes what is not true of a body that was changed; its length is told by who sends it.
pub fn rewritten(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    for name in OF_ITS_BYTES {
        headers.remove(name);
    }
}

/// What a request gets on its way to the backend, beside what was stripped.
pub struct Dressing<'a> {
    /// Who asked.
    pub caller: &'a Caller,
    /// The connection it came over.
    pub connection: &'a Connection,
    /// The charge's id as text, if there is one.
    pub charge: Option<HeaderValue>,
    /// The request's id.
    pub request_id: HeaderValue,
}

/// Makes the request that goes to the backend. Headers are moved.
pub fn dress(
    mut parts: Parts,
    body: Outgoing,
    route: &Route,
    upstream: &Upstream,
    dressing: Dressing<'_>,
) -> Request<Outgoing> {
    let Dressing { caller, connection, charge, request_id } = dressing;
    let headers = &mut parts.headers;
    headers.reserve(8);
    if caller.by_authorization {
        headers.remove(AUTHORIZATION);
    }
    headers.remove(EXPECT);
    proxies::announce(connection, headers);
    headers.insert(TOLLGATE_ORG, id(caller.org.id.as_str()));
    if let Some(user) = &caller.user {
        headers.insert(TOLLGATE_USER, id(user.id()));
    }
    if let Some(charge) = charge {
        headers.insert(TOLLGATE_CHARGE, charge);
    }
    headers.insert(X_REQUEST_ID, request_id);
    if let Some((name, secret)) = &upstream.credential {
        remove_like(headers, name);
        headers.insert(name.clone(), secret.clone());
    }
    if let Some(metered) = &route.metered {
        let reads = metered.pricing.usage.reads_body() || metered.job.is_some();
        if reads || metered.appends() {
            // Usage is read from the body as it comes, and events are set behind its own, so it
            // should come as it is (f74).
            headers.remove(ACCEPT_ENCODING);
        }
        if metered.pricing.usage.reads_trailers() {
            // Some send none to whoever does not ask.
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map(http::Uri::from).unwrap_or_default();
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Request::from_parts(parts, body)
}

/// Removes what a backend could take for a header.
fn remove_like(headers: &mut HeaderMap, name: &HeaderName) {
    let like = |other: &&HeaderName| {
        *other != name && looks_like(other.as_str().as_bytes(), name.as_str().as_bytes())
    };
    let gone: SmallVec<[HeaderName; 1]> = headers.keys().filter(like).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

fn id(id: &str) -> HeaderValue {
    // Ids are visible ASCII.
    HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Removes from a response what belongs to the backend's connection and what only the gateway
/// says.
pub fn undress(head: &mut response::Parts) {
    strip(&mut head.headers, |_| false);
    head.headers.remove(RATE_LIMIT);
    head.headers.remove(RATE_LIMIT_POLICY);
    head.version = Version::HTTP_11;
    head.extensions.clear();
}
