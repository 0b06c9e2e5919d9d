//! What a backend is told of the way a request came: `Forwarded` (RFC 7239) and `X-Forwarded-*`.
//!
//! A proxy in `trusted_proxies` is believed, and its own address is added to what it says.
//! Whatever anyone else says of it is replaced by what the gateway sees.

use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};

use super::screen::looks_like;
use super::worker::Connection;

const X_FORWARDED: &str = "x-forwarded-";
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: &str = "x-real-ip";

/// True for headers that say where a request came from and that this connection is not believed;
/// from a believed one, for those that only look like such a header.
pub fn is_unbelieved(connection: &Connection, name: &HeaderName) -> bool {
    if *name == FORWARDED {
        return !connection.trusted;
    }
    let bytes = name.as_str().as_bytes();
    if bytes.first() != Some(&b'x') {
        return false;
    }
    let stem = bytes.get(..X_FORWARDED.len()).unwrap_or(bytes);
    let told = looks_like(stem, X_FORWARDED.as_bytes()) || looks_like(bytes, X_REAL_IP.as_bytes());
    told && (!connection.trusted || !bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-'))
}

/// Says where the request came from, behind what a believed proxy said.
pub fn announce(connection: &Connection, headers: &mut HeaderMap) {
    let mut way = connection.peer.clone();
    if connection.trusted {
        let before = headers.get_all(X_FORWARDED_FOR).iter();
        let mut chain: Vec<&[u8]> = before.map(HeaderValue::as_bytes).collect();
        chain.push(way.as_bytes());
        way = HeaderValue::from_bytes(&chain.join(&b", "[..])).unwrap_or(way);
    }
    headers.insert(X_FORWARDED_FOR, way);
    if !connection.trusted || !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let Some(host) = headers.remove(HOST)
        && (!connection.trusted || !headers.contains_key(X_FORWARDED_HOST))
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
}
