use super::*;
use http::header::HeaderValue;

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
    let asked = Asked { headers, query, params: &params, body: body.as_bytes() };
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
    let asked = Asked { headers: &headers, query: None, params: &params, body: b"{\"in\": 3}" };
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
    assert!(!constant.reads_body());
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
