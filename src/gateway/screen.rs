//! What is refused before anything else looks at a request: heads that two readers could read in
//! two ways, and what the gateway does not do. docs/http.md lists it, with reasons.

use http::header::{HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{Method, Version};

use super::head::Facts;
use super::{Refused, route};
use crate::core::refusal::{Code, Refusal};

/// Headers that some backends take for the method or the path, whatever the request line says.
const OVERRIDES: [&str; 5] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];

/// Refuses what no stage should see. `facts` are what the head's bytes showed.
///
/// # Errors
/// `bad_request`, `not_implemented`, `misdirected`.
pub fn screen(parts: &Parts, facts: Facts) -> Result<(), Refused> {
    framing(facts)?;
    let (mut host, mut upgrade, mut coded) = (None, false, false);
    for (name, value) in &parts.headers {
        if *name == HOST {
            if host.replace(value).is_some() {
                return bad("the header host is there twice");
            }
        } else if *name == TRANSFER_ENCODING {
            if coded || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return bad("the only transfer coding is `chunked`, once");
            }
            coded = true;
        } else if *name == UPGRADE {
            upgrade = true;
        } else if is_override(name) {
            return bad("a header could be taken for another method or path");
        }
    }
    if parts.method == Method::CONNECT {
        return not_implemented("the gateway opens no tunnels");
    }
    route::check_path(parts.uri.path())?;
    if parts.uri.query().is_some_and(overrides_method) {
        return bad("a parameter could be taken for another method");
    }
    let Some(host) = host.map(HeaderValue::as_bytes) else {
        if parts.version == Version::HTTP_11 {
            return bad("the header host is missing");
        }
        return target(parts, None, upgrade);
    };
    if !is_host(host) {
        return bad("the header host is no host");
    }
    target(parts, Some(host), upgrade)
}

/// What the lines of the head say of where the request ends (RFC 9112, 6.3).
fn framing(facts: Facts) -> Result<(), Refused> {
    if facts == Facts::SEEN || facts == Facts::SEEN_WITH_LENGTH {
        return Ok(());
    }
    if !facts.has(Facts::SEEN) {
        return bad("a request behind one in chunks must wait for its answer");
    }
    if facts.has(Facts::BARE_LF) {
        return bad("a line of the head does not end with CR LF");
    }
    if facts.has(Facts::LENGTHS) {
        return bad("the header content-length is there twice");
    }
    if facts.has(Facts::CODING) && facts.has(Facts::LENGTH) {
        return bad("there are both content-length and transfer-encoding");
    }
    if facts.has(Facts::FRAGMENT) {
        return bad("the request's target has a fragment");
    }
    Ok(())
}

/// What the gateway does not do, and where a target in absolute form leads (RFC 9112, 3.2.2).
fn target(parts: &Parts, host: Option<&[u8]>, upgrade: bool) -> Result<(), Refused> {
    if upgrade {
        return not_implemented("the gateway upgrades to nothing");
    }
    if parts.method == Method::TRACE {
        return not_implemented("the gateway sends no request back");
    }
    let Some(authority) = parts.uri.authority() else { return Ok(()) };
    if authority.as_str().contains('@') {
        return bad("the request's target has user information");
    }
    let own = parts.uri.scheme() == Some(&Scheme::HTTP)
        && host.is_none_or(|host| without_port(host) == without_port_of(authority));
    if own {
        return Ok(());
    }
    let detail = "the request's target and its header host name two authorities";
    Err(Refusal::new(Code::Misdirected, detail).into())
}

/// A host in lower case, without the port that `http` has anyway.
fn without_port(host: &[u8]) -> Vec<u8> {
    host.strip_suffix(b":80").unwrap_or(host).to_ascii_lowercase()
}

fn without_port_of(authority: &Authority) -> Vec<u8> {
    without_port(authority.as_str().as_bytes())
}

/// A host with or without a port, as far as one look at each byte tells (RFC 3986, 3.2.2).
fn is_host(host: &[u8]) -> bool {
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(byte);
    !host.is_empty() && host.iter().all(fine)
}

fn is_override(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    name.first() == Some(&b'x') && OVERRIDES.iter().any(|known| looks_like(name, known.as_bytes()))
}

/// The parameter that some frameworks take for the method of a POST.
const METHOD: &[u8] = b"_method";

/// True for a query with a parameter that a backend could take for the method: escaped once or
/// twice, in either case, as a list, or as another name that becomes this variable's. Unlike what
/// is priced, a query that cannot be read is nobody's business here and is passed on.
fn overrides_method(query: &str) -> bool {
    query.split(['&', ';']).any(|pair| {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let mut name = unescape(&unescape(name.as_bytes()));
        let spaces = name.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        name.drain(..spaces);
        // What follows names a place in a list, or is cut off; a bracket at the beginning does not.
        let end = name.iter().skip(1).position(|byte| matches!(byte, b'[' | 0));
        name.truncate(end.map_or(name.len(), |end| end + 1));
        looks_like(&name.trim_ascii().to_ascii_lowercase(), METHOD)
    })
}

/// Resolves the escapes that there are. Nothing is wrong with any bytes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let escaped = digit(text.get(at + 1)).zip(digit(text.get(at + 2)));
        match (byte, escaped) {
            (b'%', Some((high, low))) => {
                bytes.extend(u8::try_from(high * 16 + low));
                at += 2;
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
        at += 1;
    }
    bytes
}

/// True for names that CGI and its heirs make the same variable of.
pub fn looks_like(one: &[u8], other: &[u8]) -> bool {
    let plain = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'_' };
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| plain(*a) == plain(*b))
}

fn bad(detail: &'static str) -> Result<(), Refused> {
    Err(Refusal::new(Code::BadRequest, detail).into())
}

fn not_implemented(detail: &'static str) -> Result<(), Refused> {
    Err(Refusal::new(Code::NotImplemented, detail).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screened(target: &str, headers: &[(&'static str, &'static str)]) -> Option<Code> {
        let mut request = http::Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        screen(&parts, Facts::SEEN).err().map(|refused| refused.refusal.code)
    }

    #[test]
    fn f66_a_target_and_its_host_are_one_authority() {
        for (target, host, code) in [
            ("/a", "gate.test", None),
            ("/a", "[::1]:8080", None),
            ("/a", "", Some(Code::BadRequest)),
            ("/a", "gate test", Some(Code::BadRequest)),
            ("/a", "gate/test", Some(Code::BadRequest)),
            ("/a", "user@gate", Some(Code::BadRequest)),
            ("http://gate.test/a", "gate.test", None),
            ("http://gate.test/a", "GATE.test:80", None),
            ("http://gate.test:80/a", "gate.test", None),
            ("http://gate.test/a", "other.test", Some(Code::Misdirected)),
            ("http://gate.test/a", "gate.test:81", Some(Code::Misdirected)),
            ("https://gate.test/a", "gate.test", Some(Code::Misdirected)),
            ("http://user@gate.test/a", "gate.test", Some(Code::BadRequest)),
        ] {
            assert_eq!(screened(target, &[("host", host)]), code, "{target} {host}");
        }
        assert_eq!(screened("/a", &[]), Some(Code::BadRequest));
        let twice = [("host", "gate.test"), ("host", "gate.test")];
        assert_eq!(screened("/a", &twice), Some(Code::BadRequest));
    }

    #[test]
    fn f63_f70_odd_codings_and_overrides_are_refused() {
        let bad = Some(Code::BadRequest);
        let host = ("host", "gate.test");
        for (header, code) in [
            (("transfer-encoding", "chunked"), None),
            (("transfer-encoding", "Chunked"), None),
            (("transfer-encoding", "gzip, chunked"), bad),
            (("transfer-encoding", "chunked, chunked"), bad),
            (("transfer-encoding", "chunked,"), bad),
            (("transfer-encoding", "identity"), bad),
            (("x-http-method-override", "GET"), bad),
            (("x_http_method_override", "GET"), bad),
            (("x-http-method", "GET"), bad),
            (("x-method.override", "GET"), bad),
            (("x-original-url", "/b"), bad),
            (("x-rewrite-url", "/b"), bad),
            (("x-original-uri", "/b"), None),
            (("upgrade", "websocket"), Some(Code::NotImplemented)),
        ] {
            assert_eq!(screened("/a", &[host, header]), code, "{header:?}");
        }
        let twice = [host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(screened("/a", &twice), bad);
    }

    #[test]
    fn f70_a_parameter_that_a_backend_could_take_for_the_method_is_refused() {
        for query in [
            "_method=DELETE",
            "_method",
            "a=1&_method=DELETE",
            "a=1;_method=DELETE",
            "_METHOD=DELETE",
            "%5Fmethod=DELETE",
            "%5fm%65thod=DELETE",
            "%255Fmethod=DELETE",
            "+_method=DELETE",
            "_method%20=DELETE",
            "_method%00x=DELETE",
            "_method[]=DELETE",
            "_method%5B0%5D=DELETE",
            // PHP makes an underscore of each.
            ".method=DELETE",
            "[method=DELETE",
            "-method=DELETE",
        ] {
            let target = format!("/a?{query}");
            let code = screened(&target, &[("host", "gate.test")]);
            assert_eq!(code, Some(Code::BadRequest), "{query}");
        }
        for query in [
            "",
            "method=DELETE",
            "_methods=DELETE",
            "a_method=DELETE",
            "a=_method",
            "a[_method]=DELETE",
            "x=%2F;a//..&y=%c0%ae",
            "%",
            "%5",
            "%zzmethod",
        ] {
            let target = format!("/a?{query}");
            assert_eq!(screened(&target, &[("host", "gate.test")]), None, "{query}");
        }
    }
}
