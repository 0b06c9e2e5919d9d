//! OpenAI's own client for Python, plain and streaming, against the real binary in front of the
//! sample backend. It is installed from PyPI under `target/`; without Python the tests fail.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the gateway's tests need more of it")]
mod support;

use std::process::Command;

use serde_json::{Value, json};

use crate::support::org::STUDIO;
use crate::support::sample::Sample;
use crate::support::{Access, Org, Setup, World, run};

fn routes(sample: &Sample) -> String {
    let chat = |path: &str, more: &str| {
        format!(
            "[[route]]\nmethod = \"POST\"\npath = \"{path}\"\nupstream = \"sample\"\n\
             feature = \"chat\"\ncompat = \"openai\"\n{more}\n\
             [[route.meter]]\nname = \"in\"\nquantity = {{ const = 9 }}\n\
             usage = {{ json = \"/usage/prompt_tokens\", sse_json = \"/usage/prompt_tokens\" }}\n\
             [[route.meter]]\nname = \"out\"\nquantity = {{ json = \"/max_tokens\", default = 12 }}\n\
             usage = {{ json = \"/usage/completion_tokens\", sse_json = \"/usage/completion_tokens\" }}\n"
        )
    };
    format!(
        "[[upstream]]\nname = \"sample\"\nurls = [\"http://{}\"]\n{}{}\
         [[route]]\nmethod = \"POST\"\npath = \"/v1/images/generations\"\nupstream = \"sample\"\n\
         feature = \"image\"\nquantity = {{ json = \"/n\", default = 1 }}\n\
         usage = {{ json = \"/usage/images\" }}\ncompat = \"openai\"\n",
        sample.address,
        chat("/v1/chat/completions", ""),
        chat("/v1/limited/chat/completions", "exhausted_status = 429"),
    )
}

/// What came of each call.
fn calls(world: &World, names: &[&str]) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/install");
    let installed = Command::new(script).output().unwrap();
    assert!(installed.status.success(), "OpenAI's client cannot be installed: {installed:?}");
    let python = String::from_utf8(installed.stdout).unwrap().trim().to_owned();
    let output = Command::new(python)
        // Nothing of the environment says where to send it, or through what.
        .env_clear()
        .args(["-I", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/calls.py")])
        .args([&format!("http://{}/v1", world.gateway()), STUDIO])
        .args(names)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A call that was refused: what was raised, and that everything in it is the gateway's.
#[track_caller]
fn raised(came: &Value, name: &str, expected: [&str; 3], status: u16) {
    let came = &came[name];
    let found = [&came["raised"], &came["type"], &came["code"]];
    assert_eq!(found, expected, "{came}");
    assert_eq!(came["status"], status, "{came}");
    let problem = &came["problem"];
    assert_eq!(problem["code"], expected[2], "{came}");
    assert_eq!(problem["request_id"], came["request_id"], "{came}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(came["message"].as_str().unwrap().contains(detail), "{came}");
}

#[test]
fn openai_s_client_works_unchanged_and_reads_refusals() {
    run(async {
        let sample = Sample::start();
        let setup = Setup { limits: routes(&sample), ..Setup::default() };
        let org = Org::new()
            .user("alice", "100", Access::None)
            .user("bob", "100", Access::None)
            .user("carol", "1", Access::None)
            .user("dave", "100", Access::None);
        let world = World::with(setup, &org);
        let names = [
            "plain",
            "streamed",
            "silent",
            "left",
            "images",
            "exhausted",
            "exhausted_stream",
            "exhausted_429",
            "unquotable",
            "unknown_user",
            "unauthenticated",
            "failed",
        ];
        let came = calls(&world, &names);

        let plain = &came["plain"];
        assert_eq!(plain["content"], "word ".repeat(6));
        assert_eq!(plain["finish_reason"], "length");
        assert_eq!(plain["usage"], json!([3, 6, 9]));
        // Three words in at 1/3, six out at 2/3.
        let receipt = plain["receipt"].as_str().unwrap();
        assert!(receipt.contains("state=captured, cost=\"5\""), "{receipt}");

        let streamed = |usage: Value, chunks: u32| {
            json!({
                "tokens": ["word ", "word ", "word ", "word "],
                "finish": ["length"],
                "usage": usage,
                "chunks": chunks,
            })
        };
        assert_eq!(came["streamed"], streamed(json!([4]), 7));
        assert_eq!(came["silent"], streamed(json!([]), 6));
        assert_eq!(came["left"]["first"], "chat.completion.chunk");
        assert_eq!(came["images"], json!({ "images": 2, "url": "data:image/png;" }));

        let quota = ["APIStatusError", "insufficient_quota", "seat_exhausted"];
        raised(&came, "exhausted", quota, 402);
        raised(&came, "exhausted_stream", quota, 402);
        let quota = ["RateLimitError", "insufficient_quota", "seat_exhausted"];
        raised(&came, "exhausted_429", quota, 429);
        let invalid = ["BadRequestError", "invalid_request_error", "unquotable"];
        raised(&came, "unquotable", invalid, 400);
        let unknown = ["PermissionDeniedError", "permission_error", "unknown_user"];
        raised(&came, "unknown_user", unknown, 403);
        let nobody = ["AuthenticationError", "authentication_error", "unauthenticated"];
        raised(&came, "unauthenticated", nobody, 401);
        // Exhaustion is not tried again, under whatever status.
        assert_eq!(world.metric("tollgate_refusals_total", &["code=\"seat_exhausted\""]), 3.0);

        // The backend's own error is the backend's own.
        let failed = &came["failed"];
        assert_eq!(
            (&failed["raised"], &failed["status"]),
            (&json!("InternalServerError"), &json!(503))
        );
        assert_eq!((&failed["type"], &failed["problem"]), (&json!("server_error"), &Value::Null));
        // It was tried twice.
        let stats = sample.stats();
        assert_eq!(stats["failures"], 2, "{stats}");
        assert_eq!(stats["requests"]["/v1/chat/completions"], 6, "{stats}");

        world.settled().await;
        // The plain answer and two images; failures cost nothing.
        world.seat("alice", "7", "93", "0");
        // Three in and four out, told; and the whole hold, nine and four, where it was not.
        world.seat("bob", "9.333334", "90.666666", "0");
        world.seat("carol", "0", "1", "0");
        // Who left pays for what the backend finished.
        world.seat("dave", "3.666667", "96.333333", "0");
    });
}

#[test]
fn f82_openai_s_client_reads_why_a_stream_ended_and_no_receipt() {
    run(async {
        let sample = Sample::start();
        let limits = format!(
            "[[upstream]]\nname = \"sample\"\nurls = [\"http://{}\"]\n\
             [[route]]\nmethod = \"POST\"\npath = \"/v1/chat/completions\"\n\
             upstream = \"sample\"\nfeature = \"chat\"\ncompat = \"openai\"\n\
             hold = \"slice\"\nsse_receipt = true\n\
             inject = {{ \"/stream_options/include_usage\" = true }}\n\
             [[route.meter]]\nname = \"in\"\nquantity = {{ const = 9 }}\n\
             usage = {{ sse_json = \"/usage/prompt_tokens\" }}\n\
             [[route.meter]]\nname = \"out\"\nquantity = {{ const = 3 }}\n\
             usage = {{ sse_json = \"/usage/completion_tokens\" }}\nprogress = \"events\"\n",
            sample.address,
        );
        let setup = Setup { limits, ..Setup::default() };
        let org = Org::new().user("erin", "8", Access::None).user("frank", "100", Access::None);
        let world = World::with(setup, &org);
        let came = calls(&world, &["stopped", "received"]);
        let stopped = &came["stopped"];
        assert_eq!(
            [&stopped["raised"], &stopped["type"], &stopped["code"]],
            ["APIError", "insufficient_quota", "seat_exhausted"],
            "{stopped}"
        );
        assert_eq!(stopped["message"], stopped["problem"]["detail"], "{stopped}");
        // Six events of two slices and one more, and the first of them says whose turn it is.
        assert_eq!(stopped["tokens"], 6, "{stopped}");
        assert_eq!(came["received"], json!({ "raised": null, "tokens": 20 }));
        world.settled().await;
        // Nine in at a third as held, and seven out at two thirds as delivered.
        world.seat("erin", "7.666667", "0.333333", "0");
        // Three in and twenty out as told.
        world.seat("frank", "14.333334", "85.666666", "0");
    });
}
