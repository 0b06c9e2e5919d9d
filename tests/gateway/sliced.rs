//! Streams that are held a slice at a time, where they end otherwise than a stream should, and what
//! is none of them: D29, D30, D36, D38, f74, f82.

use super::slices::{FIVE, open, read_on};
use super::upstreams::read_until;
use super::usage::{Step, charge, chunk, head, is, metered_for, missing};
use crate::support::{Access, Call, Org, run};

const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"usage\":{\"n\":2}}";
const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                    content-length: 17\r\n\r\n{\"usage\":{\"n\":2}}";

#[test]
fn d29_d30_what_is_no_stream_passes_as_it_is_wherever_streams_tell_usage() {
    run(async {
        let org = Org::new().user("alice", "100", Access::None);
        let tells = "sse_receipt = true\nquantity = { const = 5 }\n\
                     usage = { sse_json = \"/usage/n\" }";
        let both = format!("sse_receipt = true\n{FIVE}");
        // It goes on being sent after its first piece is there.
        let slow =
            vec![head("content-type: application/json\r\n"), chunk("{\"usage\":"), Step::Wait];
        let slow = slow.into_iter().chain([chunk("{\"n\":2}}"), Step::End("")]).collect();
        let plays = vec![
            ("plain", vec![Step::Whole(PLAIN)]),
            ("json", vec![Step::Whole(JSON)]),
            ("plain-slices", vec![Step::Whole(PLAIN)]),
            ("json-slices", vec![Step::Whole(JSON)]),
            ("slow", slow),
        ];
        let routes = [
            ("/plain", tells),
            ("/json", tells),
            ("/plain-slices", &*both),
            ("/json-slices", &*both),
            ("/slow", &*both),
        ];
        let (world, backend, go) = metered_for(&org, plays, &routes);
        for path in ["/plain", "/json", "/plain-slices", "/json-slices"] {
            let call = Call::post(path, "").user("alice").header("idempotency-key", path);
            let answer = world.client().await.send(&call).await;
            assert_eq!(answer.is(200).body, "{\"usage\":{\"n\":2}}", "{path}");
            assert_eq!(answer.header("content-length"), Some("17"), "{path}");
            is(&charge(&world, &backend).await, "captured", "5", &missing());
            // What is kept for who asks again is what was sent.
            let again = world.send(&call).await;
            assert_eq!(again.header("idempotency-replayed"), Some("true"), "{path}");
            assert_eq!(again.is(200).body, answer.body, "{path}");
            assert_eq!(again.header("content-length"), Some("17"), "{path}");
        }
        let mut stream = open(&world, "/slow").await;
        let mut got = read_until(&mut stream, "{\"usage\":\r\n").await;
        go.send(()).unwrap();
        read_on(&mut stream, &mut got, "0\r\n\r\n").await;
        assert!(got.ends_with("{\"n\":2}}\r\n0\r\n\r\n"), "{got}");
        is(&charge(&world, &backend).await, "captured", "5", &missing());
    });
}
