use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};

use super::*;
use crate::config;

fn card() -> Arc<RateCard> {
    let text = r#"
        version = "1"
        operations_per_credit = "0.02"
        [[rate]]
        feature = "chat"
        meter = "input"
        credits = "0.001"
        [[rate]]
        feature = "chat"
        meter = "output"
        credits = "0.002"
    "#;
    Arc::new(RateCard::new(toml::from_str(text).unwrap()).unwrap())
}

fn pricing(text: &str) -> Result<Pricing, String> {
    let quantity: config::Quantity = toml::from_str(text).unwrap();
    let mut pricing = Pricing::default();
    let quantity = pricing.quantity(Some(&quantity))?;
    pricing.meters.push(Meter { name: Some("input".parse().unwrap()), quantity });
    Ok(pricing)
}

fn read(
    pricing: &Pricing,
    headers: &HeaderMap,
    query: Option<&str>,
    body: &str,
) -> Result<Vec<u64>, (Code, String)> {
    let params = matchit::Params::new();
    let (body, length) = (body.as_bytes(), body.len() as u64);
    let asked = Asked { headers, query, params: &params, body, length };
    let quoted = pricing.quote("chat", &card(), &asked);
    let fail = |refused: Refused| (refused.refusal.code, refused.refusal.detail.into_owned());
    quoted.map(|quoted| quoted.quantities.to_vec()).map_err(fail)
}

#[test]
fn d41_the_cost_is_the_exact_sum_over_meters() {
    let mut pricing = pricing("json = '/in'").unwrap();
    let quantity: config::Quantity = toml::from_str("json = '/out'\ndefault = 10").unwrap();
    let quantity = pricing.quantity(Some(&quantity)).unwrap();
    pricing.meters.push(Meter { name: Some("output".parse().unwrap()), quantity });
    let (headers, params) = (HeaderMap::new(), matchit::Params::new());
    let body = b"{\"in\": 3}";
    let asked = Asked { headers: &headers, query: None, params: &params, body, length: 9 };
    let quoted = pricing.quote("chat", &card(), &asked).unwrap_or_else(|_| panic!());
    assert_eq!(quoted.quote.price.cost.to_string(), "0.023");
}

#[test]
fn headers_and_parameters_that_are_there_twice_are_refused() {
    let by_header = pricing("header = 'x-n'").unwrap();
    let mut headers = HeaderMap::new();
    assert!(read(&by_header, &headers, None, "").is_err());
    headers.append("x-n", HeaderValue::from_static(" 2 "));
    assert_eq!(read(&by_header, &headers, None, ""), Ok(vec![2_000_000]));
    headers.append("x-n", HeaderValue::from_static("2"));
    assert!(read(&by_header, &headers, None, "").is_err());
    let by_query = pricing("query = 'n m'\ndefault = 7").unwrap();
    let query = |text| read(&by_query, &HeaderMap::new(), Some(text), "");
    assert_eq!(query("a=1"), Ok(vec![7_000_000]));
    assert_eq!(query("a=1&n+m=%32"), Ok(vec![2_000_000]));
    assert!(query("n+m=1&n%20m=1").is_err());
    assert!(query("n+m=").is_err());
}

#[test]
fn f74_an_encoded_body_is_not_priced() {
    let pricing = pricing("json = '/n'").unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let refused = read(&pricing, &headers, None, "{\"n\": 1}").unwrap_err();
    assert_eq!(refused.0, Code::Unquotable);
}

#[test]
fn f56_what_is_no_amount_is_refused_and_shown_short() {
    let pricing = pricing("json = '/n'").unwrap();
    for number in ["-1", "1e3", "1.0000001", "\"NaN\"", "\"\"", "[1]", "{}", "null", "9007199255"] {
        let body = format!("{{\"n\": {number}}}");
        let refused = read(&pricing, &HeaderMap::new(), None, &body);
        assert_eq!(refused.unwrap_err().0, Code::Unquotable, "{number}");
    }
    let long = format!("{{\"n\": \"{}\"}}", "x".repeat(1000));
    assert!(read(&pricing, &HeaderMap::new(), None, &long).unwrap_err().1.len() < 150);
    assert!(read(&pricing, &HeaderMap::new(), None, "{}").is_err());
}

#[test]
fn f60_a_header_that_a_backend_could_take_for_the_priced_one_is_refused() {
    let pricing = pricing("header = 'x-image-count'\ndefault = 1").unwrap();
    for (name, quantity) in [
        ("x-image-count", Some(3_000_000)),
        ("x-image_count", None),
        ("x_image_count", None),
        ("x-image.count", None),
        ("x-image-counts", Some(1_000_000)),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), 3.into());
        let quantities = read(&pricing, &headers, None, "").ok();
        assert_eq!(quantities, quantity.map(|quantity| vec![quantity]), "{name}");
    }
}

#[test]
fn places_are_exactly_one_and_constants_are_amounts() {
    for text in ["", "default = 1", "json = '/a'\nquery = 'b'", "const = 1\njson = '/a'"] {
        assert!(pricing(text).is_err(), "{text}");
    }
    assert!(pricing("const = '1.0000001'").is_err());
    assert!(pricing("header = 'no header'").is_err());
    let constant = pricing("const = '0.5'").unwrap();
    assert!(!constant.holds_body(None));
    assert_eq!(read(&constant, &HeaderMap::new(), None, ""), Ok(vec![500_000]));
}

#[test]
fn f70_a_body_that_is_no_object_never_gets_the_default() {
    let pricing = pricing("json = '/n'\ndefault = 1").unwrap();
    for body in ["[]", "[{\"n\": 60}]", "\"n=60\"", "60", "true", "null"] {
        let refused = read(&pricing, &HeaderMap::new(), None, body);
        assert_eq!(refused.unwrap_err().0, Code::Unquotable, "{body}");
    }
    assert_eq!(read(&pricing, &HeaderMap::new(), None, "{}"), Ok(vec![1_000_000]));
}

#[test]
fn f70_the_empty_pointer_takes_what_is_no_object() {
    let pricing = pricing("json = ''").unwrap();
    assert_eq!(read(&pricing, &HeaderMap::new(), None, " 2.5 "), Ok(vec![2_500_000]));
}

#[test]
fn f70_a_form_is_not_priced_as_json() {
    let pricing = pricing("json = '/n'\ndefault = 1").unwrap();
    for (name, kind, priced) in [
        ("content-type", "application/x-www-form-urlencoded", false),
        ("content-type", "Application/X-WWW-Form-Urlencoded ; charset=utf-8", false),
        ("content-type", "multipart/form-data; boundary=x", false),
        ("content-type", "Multipart/Mixed", false),
        ("content-type", "application/json, multipart/form-data", false),
        ("content_type", "multipart/form-data", false),
        ("content-type", "application/json; charset=utf-8", true),
        ("content-type", "application/json;Charset=\"UTF-8\"", true),
        ("content-type", "application/json; charset=utf-7", false),
        ("content-type", "application/json; v=1; CHARSET=utf-16le", false),
        ("content-type", "text/plain", true),
        ("content-type", "multipart", true),
        ("content-type", "", true),
        ("x-content-type", "multipart/form-data", true),
    ] {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name.clone(), HeaderValue::from_static(kind));
        assert_eq!(read(&pricing, &headers, None, "{}").is_ok(), priced, "{name}: {kind}");
    }
    let mut headers = HeaderMap::new();
    headers.append(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.append(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data"));
    assert_eq!(read(&pricing, &headers, None, "{}").unwrap_err().0, Code::Unquotable);
    let by_query = self::pricing("query = 'n'\ndefault = 1").unwrap();
    assert!(read(&by_query, &headers, None, "a=1").is_ok(), "its body decides nothing");
}

#[test]
fn f70_a_parameter_that_a_backend_could_take_for_the_priced_one_is_refused() {
    let by = |name: &str| pricing(&format!("query = '{name}'\ndefault = 7")).unwrap();
    let read = |pricing: &Pricing, query| read(pricing, &HeaderMap::new(), Some(query), "");
    let seconds = by("max_seconds");
    for query in [
        "max_seconds=1&max_seconds=1",
        "Max_Seconds=60",
        "max_seconds=1&MAX_SECONDS=60",
        "max_second%73=60",
        "max%5Fseconds=60",
        "max_second%2573=60",
        "max_%C5%BFeconds=60",
        "max_seconds[]=60",
        "max_seconds%5B%5D=60",
        "max_seconds[0]=60",
        "MAX_SECONDS[a]=60",
        "max_seconds[",
        "max.seconds=60",
        "max-seconds=60",
        "+max_seconds=60",
        "max_seconds%20=60",
        "max_seconds%00=60",
        "a=%00",
        "a=1;max_seconds=60",
        ";",
    ] {
        assert_eq!(read(&seconds, query).unwrap_err().0, Code::Unquotable, "{query}");
    }
    for query in ["", "a=1&a=2", "max_second=60&max_seconds_more=1", "x[max_seconds]=1", "a=%3B"] {
        assert_eq!(read(&seconds, query), Ok(vec![7_000_000]), "{query}");
    }
    assert_eq!(read(&seconds, "A=1&max_seconds=%31"), Ok(vec![1_000_000]));
    // What cannot be written otherwise may be escaped.
    let listed = by("n[a]");
    for query in ["n[a]=1", "n%5Ba%5D=1&n[b]=2&n=3"] {
        assert_eq!(read(&listed, query), Ok(vec![1_000_000]), "{query}");
    }
    for query in ["n[a]=1&n%5Ba%5D=1", "n[A]=1", "%6E[a]=1", "n[a][]=1"] {
        assert_eq!(read(&listed, query).unwrap_err().0, Code::Unquotable, "{query}");
    }
}

const MULTIPART: &str = "multipart/form-data; boundary=b";

fn of_form(pricing: &Pricing, body: &str) -> Result<Vec<u64>, (Code, String)> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MULTIPART));
    read(pricing, &headers, None, body)
}

fn of_json(pricing: &Pricing, body: &str) -> Result<Vec<u64>, Code> {
    read(pricing, &HeaderMap::new(), None, body).map_err(|(code, _)| code)
}

#[test]
fn d21_quantities_are_multiplied() {
    let product =
        pricing("times = [{ json = '/n', default = 1 }, { json = '/seconds' }, { const = '0.5' }]")
            .unwrap();
    for (body, expected) in [
        (r#"{"n":2,"seconds":5}"#, Some(5_000_000)),
        (r#"{"seconds":"0.000001"}"#, Some(1)),
        (r#"{"n":0,"seconds":9007199254}"#, Some(0)),
        // A factor that is absent without a default, or no amount.
        (r#"{"n":2}"#, None),
        (r#"{"n":0,"seconds":-1}"#, None),
        (r#"{"n":null,"seconds":1}"#, None),
        // Beyond the bound of an amount.
        (r#"{"n":9007199254,"seconds":3}"#, None),
        (r#"{"n":9007199254,"seconds":9007199254}"#, None),
    ] {
        let expected = expected.map(|quantity| vec![quantity]).ok_or(Code::Unquotable);
        assert_eq!(of_json(&product, body), expected, "{body}");
    }
    for text in [
        "times = []",
        "times = [{ json = '/a' }]",
        "times = [{ const = 1 }, { const = 1 }, { const = 1 }, { const = 1 }, { const = 1 }]",
        "times = [{ json = '/a' }, {}]",
        "times = [{ json = '/a' }, { json = '/b', query = 'b' }]",
        "times = [{ json = '/a' }, { times = [{ json = '/b' }, { json = '/c' }] }]",
        "json = '/a'\ntimes = [{ json = '/a' }, { json = '/b' }]",
        "default = 1\ntimes = [{ json = '/a' }, { json = '/b' }]",
    ] {
        assert!(pricing(text).is_err(), "{text}");
    }
}

#[test]
fn d19_items_of_an_array_are_counted() {
    let count = pricing("count = '/images'\ndefault = 1").unwrap();
    for (body, expected) in [
        (r#"{"images":["a",{"b":[1,2]},null]}"#, Some(3_000_000)),
        (r#"{"images":[ ]}"#, Some(0)),
        ("{}", Some(1_000_000)),
        (r#"{"images":null}"#, None),
        (r#"{"images":{"0":"a"}}"#, None),
        (r#"{"images":"a"}"#, None),
        (r#"{"images":2}"#, None),
        (r#"{"images":["a"],"images":[]}"#, None),
        (r#"{"Images":["a","b"]}"#, None),
        (r#"{"images":["a",]}"#, None),
    ] {
        let expected = expected.map(|quantity| vec![quantity]).ok_or(Code::Unquotable);
        assert_eq!(of_json(&count, body), expected, "{body}");
    }
}

#[test]
fn f70_fields_of_a_form_are_priced_and_what_could_be_read_otherwise_is_refused() {
    let by_field = pricing("form = 'n'\ndefault = 7").unwrap();
    let field = |head: &str, content: &str| format!("--b\r\n{head}\r\n\r\n{content}\r\n");
    let n = |content: &str| field("Content-Disposition: form-data; name=\"n\"", content);
    let prompt = field("Content-Disposition: form-data; name=\"prompt\"", "n=5");
    let whole = |parts: &[&str]| format!("{}--b--\r\n", parts.concat());
    for (body, expected) in [
        (whole(&[&prompt, &n("2.5")]), Some(2_500_000)),
        (whole(&[&prompt]), Some(7_000_000)),
        (whole(&[&n("-2")]), None),
        (whole(&[&n("")]), None),
        (whole(&[&n(" 2")]), None),
        (whole(&[&n("2"), &n("2")]), None),
        ("{\"n\":2}".to_owned(), None),
        (String::new(), None),
    ] {
        let expected = expected.map(|quantity| vec![quantity]).ok_or(Code::Unquotable);
        assert_eq!(of_form(&by_field, &body).map_err(|(code, _)| code), expected, "{body}");
    }
    let body = whole(&[&n("2")]);
    for (kinds, priced) in [
        (&[MULTIPART][..], true),
        (&[MULTIPART, MULTIPART], false),
        (&["application/json"], false),
        (&["application/x-www-form-urlencoded"], false),
        (&["multipart/mixed; boundary=b"], false),
        (&[], false),
    ] {
        let mut headers = HeaderMap::new();
        kinds.iter().for_each(|kind| {
            headers.append(CONTENT_TYPE, HeaderValue::from_static(kind));
        });
        assert_eq!(read(&by_field, &headers, None, &body).is_ok(), priced, "{kinds:?}");
        headers.insert("content_type", HeaderValue::from_static(MULTIPART));
        assert!(read(&by_field, &headers, None, &body).is_ok() == kinds.is_empty(), "{kinds:?}");
    }
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MULTIPART));
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    assert!(read(&by_field, &headers, None, &body).is_err());
}

#[test]
fn d19_what_is_uploaded_is_counted_in_files_and_bytes() {
    let file = |name: &str, content: &str| {
        let head = format!("Content-Disposition: form-data; name=\"{name}\"; filename=\"f\"");
        format!("--b\r\n{head}\r\n\r\n{content}\r\n")
    };
    let bytes = pricing("form_bytes = 'image'\ndefault = 0").unwrap();
    let files = pricing("form_files = 'image'").unwrap();
    for (parts, size, count) in [
        (vec![file("image", "abc")], 3_000_000, Some(1_000_000)),
        // Whichever of them a backend takes, all of them are counted.
        (vec![file("image", "abc"), file("image", "d")], 4_000_000, Some(2_000_000)),
        (vec![file("image[]", "abc"), file("Image", "")], 3_000_000, Some(2_000_000)),
        (vec![file("mask", "abc")], 0, None),
    ] {
        let body = format!("{}--b--\r\n", parts.concat());
        assert_eq!(of_form(&bytes, &body).unwrap(), [size], "{body}");
        assert_eq!(of_form(&files, &body).ok(), count.map(|count| vec![count]), "{body}");
    }
    let text = "--b\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\nabc\r\n--b--\r\n";
    assert!(of_form(&bytes, text).is_err());
    assert!(of_form(&bytes, &text.replace("image\"", "image\"; filename=\"\"")).is_err());
}

#[test]
fn d29_the_bytes_of_a_body_are_an_upper_bound_beside_other_meters() {
    let mut pricing = pricing("body = 'bytes'").unwrap();
    assert!(pricing.holds_body(None) && !pricing.holds_body(Some(7)));
    let quantity: config::Quantity = toml::from_str("json = '/max_tokens'").unwrap();
    let quantity = pricing.quantity(Some(&quantity)).unwrap();
    pricing.meters.push(Meter { name: Some("output".parse().unwrap()), quantity });
    assert!(pricing.holds_body(Some(7)));
    assert_eq!(of_json(&pricing, "{\"max_tokens\": 5}"), Ok(vec![17_000_000, 5_000_000]));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let bytes = self::pricing("body = 'bytes'").unwrap();
    assert!(read(&bytes, &headers, None, "x").is_err(), "what is in it may be larger");
    headers.clear();
    assert_eq!(read(&bytes, &headers, None, "any").unwrap(), [3_000_000]);
}
