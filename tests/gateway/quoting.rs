//! Quantities beyond a flat JSON member, and what is set in requests: what the backend received,
//! and what was charged for it.

use serde_json::{Value, json};

use super::usage::{SSE, Step, event, head, metered_for};
use crate::support::{Access, Answer, Call, Org, Script, Setup, World, run};

const ROUTES: &str = r#"
[[route]]
method = "POST"
path = "/v1/clips"
upstream = "media"
feature = "video"
quantity = { times = [{ json = "/n", default = 1 }, { json = "/seconds" }] }
attributes.resolution = { const = "720p" }
[[route]]
method = "POST"
path = "/v1/variations"
upstream = "media"
feature = "image"
quantity = { count = "/images", default = 1 }
[[route]]
method = "POST"
path = "/v1/edits"
upstream = "media"
feature = "video"
quantity = { form = "n", default = 1 }
attributes.resolution = { form = "size", map = { big = "1080p", small = "720p" }, default = "720p" }
max_body = "64KiB"
[[route]]
method = "POST"
path = "/v1/transcripts"
upstream = "media"
feature = "image"
quantity = { form_bytes = "file" }
[[route]]
method = "POST"
path = "/v1/albums"
upstream = "media"
feature = "image"
quantity = { form_files = "image" }
[[route]]
method = "POST"
path = "/v1/bytes"
upstream = "media"
feature = "image"
quantity = { body = "bytes" }
max_body = "1KiB"
[[route]]
method = "POST"
path = "/v1/chat/completions"
upstream = "media"
feature = "chat"
inject = { "/stream_options/include_usage" = true, "/user" = "gateway" }
inject_when = { json = "/stream", equals = true }
[[route.meter]]
name = "in"
quantity = { body = "bytes" }
usage = { json = "/usage/in" }
[[route.meter]]
name = "out"
quantity = { json = "/max_tokens", default = 9 }
usage = { json = "/usage/out" }
[[route]]
method = "POST"
path = "/v1/always"
upstream = "media"
feature = "image"
inject = { "/seed" = 7 }
"#;

fn world() -> World {
    let setup = Setup { limits: ROUTES.to_owned(), ..Setup::default() };
    World::with(setup, &Org::new().user("alice", "100000", Access::None))
}

fn json_to(path: &str, body: impl Into<String>) -> Call {
    Call::post(path, body.into()).user("alice").header("content-type", "application/json")
}

fn form_to(path: &str, body: impl Into<String>) -> Call {
    let kind = "multipart/form-data; boundary=b-1";
    Call::post(path, body.into()).user("alice").header("content-type", kind)
}

/// A form of fields, by name, and files, by name and the file's name.
fn form(parts: &[(&str, &str)]) -> String {
    let part = |(name, content): &(&str, &str)| {
        format!("--b-1\r\nContent-Disposition: form-data; name={name}\r\n\r\n{content}\r\n")
    };
    parts.iter().map(part).collect::<String>() + "--b-1--\r\n"
}

async fn costs(world: &World, call: Call, cost: &str) -> Answer {
    let answer = world.send(&call).await;
    answer.is(200).tells(&[("state", "captured"), ("cost", cost)]);
    answer
}

/// What the backend was sent last, as text, of the length that it was told.
fn received(world: &World) -> String {
    let seen = world.backend.last();
    let length = seen.header("content-length").map(|length| length.parse::<usize>().unwrap());
    assert_eq!(length, Some(seen.body.len()));
    String::from_utf8(seen.body).unwrap()
}

#[test]
fn d21_factors_are_multiplied_and_items_counted() {
    run(async {
        let world = world();
        for (path, body, cost) in [
            ("/v1/clips", "{\"n\":3,\"seconds\":\"0.5\"}", "75"),
            ("/v1/clips", "{\"seconds\":2}", "100"),
            ("/v1/clips", "{\"n\":0,\"seconds\":2}", "0"),
            ("/v1/variations", "{\"images\":[\"a\",[\"b\",\"c\"],{}]}", "3"),
            ("/v1/variations", "{\"images\":[]}", "0"),
            ("/v1/variations", "{}", "1"),
        ] {
            costs(&world, json_to(path, body), cost).await;
            assert_eq!(received(&world), body);
        }
        let count = world.backend.count();
        for (path, body) in [
            ("/v1/clips", "{\"n\":3}"),
            ("/v1/clips", "{\"n\":9007199254,\"seconds\":2}"),
            ("/v1/clips", "{\"n\":9007199254,\"seconds\":9007199254}"),
            ("/v1/clips", "{\"n\":-1,\"seconds\":-1}"),
            ("/v1/variations", "{\"images\":null}"),
            ("/v1/variations", "{\"images\":{\"length\":1}}"),
            ("/v1/variations", "{\"images\":[],\"images\":[1]}"),
        ] {
            world.send(&json_to(path, body)).await.refused(400, "unquotable");
        }
        assert_eq!(world.backend.count(), count);
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d19_a_form_s_fields_and_files_decide_its_price() {
    run(async {
        let world = world();
        let clip = "\"clip\"; filename=\"a.mp4\"";
        for (path, parts, cost) in [
            ("/v1/edits", &[("\"n\"", "2"), ("\"size\"", "big"), (clip, "n=9")][..], "200"),
            ("/v1/edits", &[(clip, "\r\n\r\n--b\r\n"), ("n", "0.5")], "25"),
            ("/v1/edits", &[("\"prompt\"", "a"), ("\"prompt\"", "b")], "50"),
            ("/v1/edits", &[], "50"),
            ("/v1/transcripts", &[("\"file\"; filename=\"a\"", "12345")], "5"),
            ("/v1/albums", &[("\"image\"; filename=\"a\"", "1")], "1"),
            (
                "/v1/albums",
                &[("\"image[]\"; filename=\"a\"", "1"), ("\"image[]\"; filename=\"b\"", "")],
                "2",
            ),
        ] {
            let body = form(parts);
            costs(&world, form_to(path, &body), cost).await;
            assert_eq!(received(&world), body);
        }
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn f70_a_form_that_a_backend_could_read_otherwise_is_refused() {
    run(async {
        let world = world();
        let plain = form(&[("\"n\"", "1")]);
        for body in [
            // A field twice, or one that is taken for it.
            form(&[("\"n\"", "1"), ("\"n\"", "60")]),
            form(&[("\"n\"", "1"), ("\"N\"", "60")]),
            form(&[("\"n\"", "1"), ("\" n\"", "60")]),
            form(&[("\"n\"", "1"), ("\"n[]\"", "60")]),
            form(&[("\"n\"", "1"), ("\"%6E\"", "60")]),
            form(&[("\"n[0]\"", "60")]),
            form(&[("\"size\"", "big"), ("\"size\"", "small")]),
            // A file, or in another encoding.
            form(&[("\"n\"; filename=\"n\"", "1")]),
            form(&[("\"x\"; filename*=utf-8''n", "1")]),
            form(&[("\"n\"\r\nContent-Transfer-Encoding: base64", "NjA=")]),
            form(&[("\"n\"\r\nContent-Type: text/plain; charset=utf-16", "1")]),
            form(&[("\"n\"", "1"), ("\"_charset_\"", "utf-7")]),
            form(&[("\"n\"", "1"), ("\"_method\"", "DELETE")]),
            // Boundaries.
            plain.replace("\r\n", "\n"),
            format!("preamble\r\n{plain}"),
            format!("--b-1\r\nx: y\r\n{plain}"),
            format!("{plain}{plain}"),
            format!("{plain}epilogue"),
            plain.replace("--b-1--", "--b-1"),
            plain.replace("1\r\n--b-1--", "1\n--b-1--"),
            plain.replace("1\r\n--b-1--", "1\r\n--b-1 \r\n--b-1--"),
            form(&[("\"x\"\r\nContent-Type: multipart/mixed; boundary=c", "--c--")]),
            // No amount, no value of the map, and no form.
            form(&[("\"n\"", "-1")]),
            form(&[("\"n\"", "1e3")]),
            form(&[("\"n\"", "1 ")]),
            form(&[("\"size\"", "huge")]),
            "{\"n\":1}".to_owned(),
            String::new(),
        ] {
            let answer = world.send(&form_to("/v1/edits", &*body)).await;
            assert_eq!(answer.refused(400, "unquotable")["code"], "unquotable", "{body:?}");
        }
        for kind in [
            "application/x-www-form-urlencoded",
            "application/json",
            "multipart/mixed; boundary=b-1",
            "multipart/form-data; boundary=b-1; boundary=c",
            "multipart/form-data; boundary=b-1; charset=utf-16",
            "multipart/form-data",
        ] {
            let call = Call::post("/v1/edits", plain.clone()).user("alice");
            let answer = world.send(&call.clone().header("content-type", kind)).await;
            answer.refused(400, "unquotable");
            let beside = form_to("/v1/edits", &*plain).header("content-type", kind);
            world.send(&beside).await.refused(400, "unquotable");
        }
        let encoded = form_to("/v1/edits", &*plain).header("content-encoding", "gzip");
        world.send(&encoded).await.refused(400, "unquotable");
        let large = form(&[("\"n\"", "1"), ("\"x\"; filename=\"x\"", &"x".repeat(64 << 10))]);
        world.send(&form_to("/v1/edits", large)).await.refused(413, "body_too_large");
        for body in [
            form(&[("\"file\"", "12345")]),
            form(&[("\"file\"; filename=\"\"", "12345")]),
            form(&[("\"other\"; filename=\"a\"", "12345")]),
        ] {
            world.send(&form_to("/v1/transcripts", body)).await.refused(400, "unquotable");
        }
        assert_eq!(world.backend.count(), 0);
        world.seat("alice", "0", "100000", "0");
    });
}

#[test]
fn d29_the_bytes_of_a_body_are_counted_held_or_not() {
    run(async {
        let world = world();
        let post = |body: String| Call::post("/v1/bytes", body).user("alice");
        costs(&world, post(String::new()), "0").await;
        costs(&world, post("12345".to_owned()), "5").await;
        // Its length is told, so that it passes through, however large it is.
        let large = "x".repeat(5000);
        costs(&world, post(large.clone()), "5000").await;
        assert_eq!(received(&world), large);
        world
            .send(&post("x".to_owned()).header("content-encoding", "br"))
            .await
            .refused(400, "unquotable");
        let head = "POST /v1/bytes HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\n\
                    tollgate-user: alice\r\nauthorization: Bearer ";
        let chunked = |body: &str| {
            let key = crate::support::org::STUDIO;
            let size = body.len();
            format!(
                "{head}{key}\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n"
            )
        };
        let answer = crate::support::raw(world.gateway(), chunked("1234567").as_bytes()).await;
        assert!(answer.contains("cost=\"7\""), "{answer}");
        assert_eq!(received(&world), "1234567");
        let answer = crate::support::raw(world.gateway(), chunked(&large).as_bytes()).await;
        assert!(answer.contains("body_too_large"), "{answer}");
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d29_a_chat_call_is_held_at_its_upper_bound_and_charged_at_its_usage() {
    run(async {
        let world = world();
        let body = "{\"messages\":[{\"role\":\"user\",\"content\":\"hey!\"}],\"max_tokens\":30}";
        let usage = Script::body("{\"usage\":{\"in\":6,\"out\":3}}");
        let call = json_to("/v1/chat/completions", body);
        costs(&world, call.clone().script(&usage), "4").await;
        assert_eq!(world.last_charge()["quantity"], json!({"in": "6", "out": "3"}));
        // Without usage the whole bound is: 63 bytes at a third of a credit, and 30 at two.
        assert_eq!(body.len(), 63);
        let answer = world.send(&call).await;
        answer.is(200).tells(&[("cost", "41")]);
        assert_eq!(world.last_charge()["quantity"], json!({"in": "63", "out": "30"}));
        assert_eq!(received(&world), body);
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn d41_what_is_set_in_a_stream_s_request_arrives_and_nothing_else_changes() {
    run(async {
        let world = world();
        let set = "\"stream_options\":{\"include_usage\":true},\"user\":\"gateway\"";
        for (body, expected) in [
            ("{\"stream\":true}".to_owned(), format!("{{{set},\"stream\":true}}")),
            (
                " {\"n\": 1.0e0,\"stream\" :true,\"a\":\"\\u00e9\u{e9}\" }\n".to_owned(),
                format!(" {{{set},\"n\": 1.0e0,\"stream\" :true,\"a\":\"\\u00e9\u{e9}\" }}\n"),
            ),
            (
                "{\"stream_options\":{\"include_usage\":false,\"x\":1},\"stream\":true,\"user\":5}"
                    .to_owned(),
                "{\"stream_options\":{\"include_usage\":true,\"x\":1},\"stream\":true,\
                 \"user\":\"gateway\"}"
                    .to_owned(),
            ),
            (
                "{\"stream\":false,\"user\":5}".to_owned(),
                "{\"stream\":false,\"user\":5}".to_owned(),
            ),
            ("{\"user\":5}".to_owned(), "{\"user\":5}".to_owned()),
        ] {
            let call = json_to("/v1/chat/completions", &*body).header("content-digest", "x=:x:");
            let answer = world.send(&call).await;
            answer.is(200);
            assert_eq!(received(&world), expected);
            let _: Value = serde_json::from_str(&expected).unwrap();
            // It is priced as it came.
            let bytes = body.len().to_string();
            assert_eq!(world.last_charge()["quantity"], json!({"in": bytes, "out": "9"}));
            let digest = world.backend.last().header("content-digest").is_some();
            assert_eq!(digest, body == expected, "a digest is of the bytes that it came with");
        }
        costs(&world, json_to("/v1/always", "{ }"), "1").await;
        assert_eq!(received(&world), "{\"seed\":7 }");
        let padded = format!("{{\"seed\":1}}{}", " ".repeat(40_000));
        costs(&world, json_to("/v1/always", &*padded), "1").await;
        assert_eq!(received(&world), padded.replace(":1", ":7"));
        world.accounts_for(&["alice"]).await;
    });
}

#[test]
fn f70_no_caller_turns_off_what_is_set() {
    run(async {
        let world = world();
        for (path, body) in [
            ("/v1/chat/completions", "{\"stream\":true,\"stream\":false}"),
            ("/v1/chat/completions", "{\"stream\":true,\"Stream\":false}"),
            ("/v1/chat/completions", "{\"stream\":\"true\"}"),
            ("/v1/chat/completions", "{\"stream\":1}"),
            (
                "/v1/chat/completions",
                "{\"stream\":true,\"stream_options\":{},\"stream_options\":{\"include_usage\":false}}",
            ),
            (
                "/v1/chat/completions",
                "{\"stream\":true,\"stream_options\":{},\"stream\\u005foptions\":{}}",
            ),
            (
                "/v1/chat/completions",
                "{\"stream\":true,\"STREAM_OPTIONS\":{\"include_usage\":false}}",
            ),
            (
                "/v1/chat/completions",
                "{\"stream\":true,\"stream_options\":{\"include_usage\":true,\"include_usage\":0}}",
            ),
            ("/v1/chat/completions", "{\"stream\":true,\"stream_options\":[]}"),
            ("/v1/always", "{\"seed\":7,\"seed\":8}"),
            ("/v1/always", "{\"Seed\":8}"),
            ("/v1/always", "[]"),
            ("/v1/always", "seed=8"),
            ("/v1/always", ""),
        ] {
            let answer = world.send(&json_to(path, body)).await;
            assert_eq!(answer.refused(400, "unquotable")["code"], "unquotable", "{body}");
        }
        let encoded = json_to("/v1/always", "{}").header("content-encoding", "gzip");
        world.send(&encoded).await.refused(400, "unquotable");
        let form = Call::post("/v1/always", "{}").user("alice");
        let form = form.header("content-type", "application/x-www-form-urlencoded");
        world.send(&form).await.refused(400, "unquotable");
        assert_eq!(world.backend.count(), 0);
        world.seat("alice", "0", "100000", "0");
    });
}

#[test]
fn d29_a_stream_in_slices_never_begins_for_nothing() {
    run(async {
        let slice = "hold = \"slice\"\nprogress = \"events\"\nquantity = { json = \"/max\" }";
        let plays = vec![("chat", vec![head(SSE), event("1"), event("2"), Step::End("")])];
        let org = Org::new().user("alice", "3", Access::None).user("zed", "", Access::None);
        let (world, backend, _go) = metered_for(&org, plays, &[("/chat", slice)]);
        let chat =
            |user: &str, max: &str| Call::post("/chat", format!("{{\"max\":{max}}}")).user(user);
        for max in ["0", "0.5"] {
            world.send(&chat("zed", max)).await.refused(402, "seat_exhausted");
        }
        assert!(backend.heads().is_empty());
        world.send(&chat("alice", "0")).await.is(200).tells(&[("state", "held"), ("cost", "1")]);
        world.settled().await;
        world.seat("alice", "2", "1", "0");
    });
}
