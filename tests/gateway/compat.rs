//! `compat = "openai"` over sockets: the same facts, where OpenAI's clients look for them.

use serde_json::{Value, json};

use crate::support::{Access, Call, Org, Setup, World, run};

const ROUTES: &str = r#"
[[route]]
method = "POST"
path = "/openai/v1/chat/completions"
upstream = "media"
feature = "image"
quantity = { json = "/n", default = 1 }
compat = "openai"
exhausted_status = 429
[[route]]
path = "/openai/v1/models"
upstream = "dead"
free = true
compat = "openai"
"#;

fn chat(body: &str) -> Call {
    Call::post("/openai/v1/chat/completions", body.to_owned())
}

#[test]
fn refusals_of_a_route_are_in_openai_s_error_body_at_every_stage() {
    run(async {
        let setup = Setup { limits: ROUTES.to_owned(), ..Setup::default() };
        let world = World::with(setup, &Org::new().user("alice", "0.5", Access::None));
        let get = Call::get("/openai/v1/models").user("alice");
        for (call, status, kind, code) in [
            (chat("{}").user("alice"), 429, "insufficient_quota", "seat_exhausted"),
            (chat("{\"n\":-1}").user("alice"), 400, "invalid_request_error", "unquotable"),
            (chat("{}").user("nobody"), 403, "permission_error", "unknown_user"),
            (
                chat("{}").key("tg_not-a-key-of-this-gateway"),
                401,
                "authentication_error",
                "unauthenticated",
            ),
            (get, 502, "server_error", "upstream_unreachable"),
        ] {
            let answer = world.send(&call).await;
            answer.is(status);
            assert_eq!(answer.header("content-type"), Some("application/json"));
            let body: Value = serde_json::from_slice(&answer.body).unwrap();
            let error = &body["error"];
            assert_eq!((&error["type"], &error["code"]), (&json!(kind), &json!(code)));
            assert_eq!(error["message"], error["problem"]["detail"]);
            assert_eq!(error["problem"]["type"], json!(format!("/.tollgate/problems/{code}")));
            assert_eq!(error["problem"]["status"], json!(status));
            assert_eq!(error["problem"]["request_id"].as_str(), answer.header("x-request-id"));
        }
        // Everyone else's refusals stay problem documents.
        let other = world.send(&Call::post("/v1/images", "{}").user("alice")).await;
        other.refused(402, "seat_exhausted");
        assert_eq!(other.header("content-type"), Some("application/problem+json"));
        assert_eq!(world.backend.count(), 0);
    });
}
