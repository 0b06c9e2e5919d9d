//! The OpenAPI 3.1 document: made of the table of endpoints, and of `schemas.json`, which says
//! what bodies look like. Tests send what it describes, and compare what comes back.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::call::{Call, Reply};
use super::endpoint::{Endpoint, Gives, Scope};
use super::problem::{Code, Problem};
use super::table::endpoints;

/// The document.
pub async fn document(_: Call) -> Result<Reply, Problem> {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(build);
    Ok(Reply::of(DOCUMENT.clone()))
}

/// Bodies of PUT and PATCH are derived from these, so that a key is described once.
const DERIVED: &[&str] =
    &["Org", "Term", "Plan", "Group", "Profile", "RateCard", "NewKey", "User", "Licence"];

fn build() -> Value {
    // A test reads it, so it is JSON.
    let mut schemas: Map<String, Value> =
        serde_json::from_str(include_str!("schemas.json")).unwrap_or_default();
    for name in DERIVED {
        let whole = schemas.get(*name).cloned().unwrap_or_default();
        schemas.insert(format!("{name}Body"), without_id(whole.clone(), false));
        schemas.insert(format!("{name}Patch"), without_id(whole, true));
    }
    let words: Vec<&str> = Code::ALL.iter().map(|code| code.word()).collect();
    if let Some(problem) = schemas.get_mut("Problem") {
        problem["properties"]["code"] = json!({ "enum": words });
    }
    for endpoint in endpoints() {
        if let Some(Gives::Page(of)) = endpoint.gives {
            schemas.insert(format!("{of}Page"), page(of));
        }
    }
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for endpoint in endpoints() {
        let methods = paths.entry(&endpoint.path).or_default();
        methods.insert(endpoint.method.to_lowercase(), operation(endpoint));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tollgate admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "Amounts are texts with at most six decimals, times RFC 3339. \
                            Every refusal is a problem document (RFC 9457).",
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas,
        },
    })
}

/// The schema of a thing whose id is in the path; for a patch with every key optional, and `null`
/// to remove one (RFC 7396).
fn without_id(mut schema: Value, patch: bool) -> Value {
    let id = if schema["properties"].get("version").is_some() { "version" } else { "id" };
    let Some(map) = schema.as_object_mut() else { return schema };
    for example in map.get_mut("examples").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(example) = example.as_object_mut() {
            example.remove(id);
        }
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove(id);
        for property in properties.values_mut().filter(|_| patch) {
            *property = json!({ "anyOf": [property, { "type": "null" }] });
        }
    }
    if patch {
        map.remove("required");
    } else if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|key| key != id);
    }
    schema
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn page(of: &str) -> Value {
    json!({
        "type": "object",
        "required": ["items", "next_cursor", "as_of", "time_zone"],
        "additionalProperties": false,
        "properties": {
            "items": { "type": "array", "items": reference(of) },
            "next_cursor": { "type": ["string", "null"] },
            "as_of": { "type": "string", "format": "date-time" },
            "time_zone": { "type": "string" },
        },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let roles: Vec<&str> = endpoint.roles.iter().map(|role| role.word()).collect();
    let narrowed = match endpoint.scope {
        Scope::User | Scope::Profile | Scope::Listed => {
            " A profile-admin reaches its own profiles and their members only."
        }
        Scope::All | Scope::Org => "",
    };
    let tag = endpoint.path.trim_start_matches("/v1/orgs/{org}/").trim_start_matches("/v1/");
    let tag = tag.split('/').find(|part| !part.is_empty()).unwrap_or_default();
    let mut operation = json!({
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "description": format!("Roles: {}.{narrowed}", roles.join(", ")),
        "tags": [tag],
        "x-roles": roles,
        "parameters": parameters(endpoint),
        "responses": responses(endpoint),
    });
    if let Some(takes) = &endpoint.takes {
        let content: Map<String, Value> = takes
            .media
            .iter()
            .map(|media| {
                let schema = if media.ends_with("json") {
                    reference(takes.schema)
                } else {
                    json!({ "type": "string", "description": "The same as an org file." })
                };
                ((*media).to_owned(), json!({ "schema": schema }))
            })
            .collect();
        operation["requestBody"] = json!({ "required": takes.required, "content": content });
    }
    operation
}

fn parameters(endpoint: &Endpoint) -> Vec<Value> {
    let in_path = endpoint.params().map(|name| {
        let schema = match name {
            "charge" => reference("ChargeId"),
            "secret" => reference("SecretId"),
            _ => reference("Id"),
        };
        json!({ "name": name, "in": "path", "required": true, "schema": schema })
    });
    let in_query = endpoint.query.iter().map(|known| {
        let (name, about, schema) = (known.name, known.about, known.shape.schema());
        json!({ "name": name, "in": "query", "description": about, "schema": schema })
    });
    let header = |name: &str, about: &str, schema: &str| {
        let schema = reference(schema);
        json!({ "name": name, "in": "header", "description": about, "schema": schema })
    };
    let mut all: Vec<Value> = in_path.chain(in_query).collect();
    if endpoint.conditional {
        all.push(header("If-Match", "Only where it still has this tag.", "IfMatch"));
        all.push(header("If-None-Match", "Only where it is not there.", "IfNoneMatch"));
    }
    if endpoint.once {
        let about = "The same request under the same key happens once, for 24 hours.";
        all.push(header("Idempotency-Key", about, "IdempotencyKey"));
    }
    all
}

fn responses(endpoint: &Endpoint) -> Map<String, Value> {
    let mut headers = json!({ "X-Request-Id": { "schema": { "type": "string" } } });
    let named = json!(headers);
    if endpoint.is_safe() || endpoint.conditional {
        headers["ETag"] = json!({ "schema": { "type": "string" } });
    }
    let schema = endpoint.gives.as_ref().map(|gives| match gives {
        Gives::One(schema) => reference(schema),
        Gives::Page(schema) => reference(&format!("{schema}Page")),
    });
    let mut success = json!({ "description": endpoint.summary, "headers": headers });
    if let Some(schema) = schema {
        success["content"] = json!({ "application/json": { "schema": schema } });
    }
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in endpoint.codes() {
        by_status.entry(code.status()).or_default().push(code);
    }
    let problems = by_status.into_iter().map(|(status, codes)| {
        let words: Vec<String> = codes
            .iter()
            .map(|code| format!("`{}`: {}", code.word(), code.title().to_lowercase()))
            .collect();
        let mut problem = json!({
            "description": words.join("; "),
            "headers": named,
            "content": { "application/problem+json": { "schema": reference("Problem") } },
        });
        if codes.contains(&Code::Unauthenticated) {
            problem["headers"]["WWW-Authenticate"] = json!({ "schema": { "const": "Bearer" } });
        }
        (status.to_string(), problem)
    });
    std::iter::once((endpoint.status.to_string(), success)).chain(problems).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::api::{adjustments, quotes};
    use crate::directory::{file, token};

    fn references(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value.as_str().filter(|_| key == "$ref") {
                        Some(to) => drop(into.insert(to.to_owned())),
                        None => references(value, into),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, into)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = build();
        let mut used = BTreeSet::new();
        references(&document, &mut used);
        for to in &used {
            let pointer = to.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some_and(|found| !found.is_null()), "{to}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            let derived = DERIVED.iter().any(|of| {
                name.strip_prefix(of).is_some_and(|rest| ["Body", "Patch"].contains(&rest))
            });
            let here = used.contains(&format!("#/components/schemas/{name}"));
            assert!(here || derived, "{name} is not used");
        }
    }

    #[test]
    fn every_endpoint_is_described_once_under_a_name_of_its_own() {
        let document = build();
        let paths = document["paths"].as_object().unwrap();
        let described: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(described, endpoints().len());
        let names: BTreeSet<&str> = endpoints().iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), endpoints().len());
        for endpoint in endpoints() {
            assert!(!endpoint.roles.is_empty(), "{}: nobody may use it", endpoint.name);
            assert_eq!(endpoint.gives.is_none(), endpoint.status == 204, "{}", endpoint.name);
        }
    }

    #[test]
    fn schemas_have_the_keys_that_are_read() {
        let document = build();
        let schemas = &document["components"]["schemas"];
        for (name, keys) in [
            ("Document", file::SECTIONS),
            ("Org", file::ORG_KEYS),
            ("Term", file::TERM_KEYS),
            ("Plan", file::PLAN_KEYS),
            ("Group", file::GROUP_KEYS),
            ("User", file::USER_KEYS),
            ("UserLicence", file::LICENCE_KEYS),
            ("Profile", file::PROFILE_KEYS),
            ("RateCard", file::RATE_CARD_KEYS),
            ("Rate", file::RATE_KEYS),
            ("NewToken", token::TOKEN_KEYS),
            ("QuoteRequest", quotes::QUOTE_KEYS),
            ("AdjustmentRequest", adjustments::ADJUST_KEYS),
            ("RefundRequest", adjustments::REFUND_KEYS),
        ] {
            let found: BTreeSet<&str> = schemas[name]["properties"]
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            assert_eq!(found, keys.iter().copied().collect(), "{name}");
            assert_eq!(schemas[name]["additionalProperties"], false, "{name}");
        }
    }
}
