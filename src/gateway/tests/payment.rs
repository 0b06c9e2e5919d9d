//! Holding and capturing: who pays, and what callers are told.

use super::bench::*;
use crate::books::{
    Abandoned, Adjusted, Adjustment, Amended, Amendment, Ask, Books, BooksError, KnownCharge,
    OpenCharge, Posted, Resolution, Resolved, embedded,
};
use crate::core::account::{Account, AccountKey, View};
use crate::core::amount::Credits;
use crate::core::charge::{OutcomeMemo, State};
use crate::core::ids::ChargeId;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use jiff::Timestamp;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

#[tokio::test]
async fn d01_a_request_is_priced_forwarded_captured_and_receipted() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK\r\ncontent-type: image/png", "an image");
    let answer = bench.post("/v1/images?x=1", "alice", r#"{"n": 2, "size": "4096"}"#).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"an image"[..]));
    let receipt = answer.receipt();
    for (key, value) in [
        ("state", "captured"),
        ("cost", "20"),
        ("seat", "20"),
        ("pool", "0"),
        ("overage", "0"),
        ("seat-remaining", "83"),
        ("resets", "2026-12-01T00:00:00Z"),
        ("rate-card", "2026-11"),
    ] {
        assert_eq!(receipt[key], value, "{key}");
    }
    assert!(!receipt.contains_key("pool-remaining"));
    assert_eq!(answer.header("ratelimit-policy"), r#""seat";q=103;qu="credits";w=2592000"#);
    assert_eq!(answer.header("ratelimit"), r#""seat";r=83;t=1771200"#);

    let seen = &bench.backend.seen()[0];
    assert!(seen.head.starts_with("POST /v1/images?x=1 HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.body, br#"{"n": 2, "size": "4096"}"#);
    assert_eq!(seen.header("tollgate-org"), ["acme"]);
    assert_eq!(seen.header("tollgate-user"), ["alice"]);
    assert_eq!(seen.header("tollgate-charge"), [receipt["charge"].as_str()]);
    assert_eq!(seen.header("x-request-id"), [answer.header("x-request-id")]);
    assert_eq!(seen.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.header("x-forwarded-host"), ["gate"]);
    assert!(seen.header("authorization").is_empty());

    let charge = bench.charge(&receipt["charge"]).await;
    assert_eq!(charge.state, crate::core::charge::State::Captured);
    assert_eq!((charge.cost.to_string().as_str(), charge.route.as_str()), ("20", "/v1/images"));
    assert_eq!(charge.quantity, "2");
    assert_eq!(bench.seat("alice").await, "83");
    assert_eq!(bench.engine.open_holds().0, 0);
}

#[tokio::test]
async fn d25_a_charge_is_split_over_seat_and_pool_then_the_limit_refuses() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    let answer = bench.post("/v1/images", "dora", r#"{"n": 13}"#).await;
    let receipt = answer.receipt();
    assert_eq!((receipt["seat"].as_str(), receipt["pool"].as_str()), ("3", "0.2"));
    assert_eq!(receipt["pool-remaining"], "9.8");
    assert!(!answer.headers.contains_key("ratelimit"));

    let answer = bench.post("/v1/images", "dora", r#"{"n": 50}"#).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (402, "pool_limit_reached"));
    assert_eq!(answer.json()["decided_by"], "profile");
    assert_eq!(answer.json()["available"]["operations"], "0.8");
    assert_eq!(answer.header("x-should-retry"), "false");
    assert!(!answer.headers.contains_key("tollgate-receipt"));
    assert_eq!(bench.backend.seen().len(), 1);
}

#[tokio::test]
async fn d14_an_exhausted_seat_without_access_is_refused_and_nothing_is_forwarded() {
    let bench = Bench::new().await;
    let answer = bench.post("/v1/images", "alice", r#"{"n": 104}"#).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (402, "seat_exhausted"));
    let problem = answer.json();
    assert_eq!(problem["required"]["credits"], "104");
    assert_eq!(problem["available"]["credits"], "103");
    assert_eq!(problem["pool"]["access"], false);
    assert_eq!(problem["pool"]["missing"], serde_json::json!(["offer", "base"]));
    assert_eq!(problem["resets_at"], "2026-12-01T00:00:00Z");
    assert_eq!(problem["request_id"], answer.header("x-request-id"));
    assert!(bench.backend.seen().is_empty());
    assert_eq!(bench.engine.open_holds().0, 0);
    assert_eq!(bench.seat("alice").await, "103");
}

fn as_robot(secret: &str, body: &str) -> Request<Full<Bytes>> {
    let request = Request::post("/v1/images").header("tollgate-key", secret);
    request.body(Full::from(body.to_owned())).unwrap()
}

#[tokio::test]
async fn d18_a_principal_draws_on_the_pool_or_is_denied() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    let answer = bench.send(as_robot("tg_robot_0123456789abcdef0", r#"{"n": 5}"#)).await;
    let receipt = answer.receipt();
    assert_eq!((receipt["cost"].as_str(), receipt["seat"].as_str()), ("5", "0"));
    assert_eq!((receipt["pool"].as_str(), receipt["pool-remaining"].as_str()), ("0.1", "9.9"));
    assert!(!receipt.contains_key("seat-remaining") && !receipt.contains_key("resets"));
    assert!(bench.backend.seen()[0].header("tollgate-user").is_empty());

    let answer = bench.send(as_robot("tg_robotoff_0123456789abcd", "{}")).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "pool_access_denied"));
    assert_eq!(bench.backend.seen().len(), 1);
}

#[tokio::test]
async fn standard_features_are_recorded_at_zero_and_free_routes_not_at_all() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    let answer = bench.post("/v1/recolor", "alice", "").await;
    let receipt = answer.receipt();
    assert_eq!((receipt["state"].as_str(), receipt["cost"].as_str()), ("captured", "0"));
    assert_eq!(receipt["seat-remaining"], "103");
    assert_eq!(bench.charge(&receipt["charge"]).await.feature, "recolor");

    let answer = bench.post("/v1/models", "alice", "").await;
    assert_eq!(answer.status, 200);
    assert!(!answer.headers.contains_key("tollgate-receipt"));
    assert!(bench.backend.seen()[1].header("tollgate-charge").is_empty());
    let metrics = bench.telemetry.expose();
    assert!(metrics.contains(r#"route="/v1/models",outcome="free",status_class="2xx"} 1"#));
}

#[tokio::test]
async fn d38_metrics_count_what_the_ledger_records() {
    let bench = Bench::new().await;
    bench.backend.answers("200 OK", "x");
    bench.post("/v1/images", "dora", r#"{"n": 13}"#).await;
    bench.post("/v1/images", "dora", r#"{"n": 1000}"#).await;
    bench.backend.answers("500 Oh", "x");
    bench.post("/v1/images", "alice", "{}").await;
    let metrics = bench.telemetry.expose();
    for line in [
        r#"tollgate_requests_total{org="acme",route="/v1/images",outcome="captured",status_class="2xx"} 1"#,
        r#"tollgate_requests_total{org="acme",route="/v1/images",outcome="refused",status_class="4xx"} 1"#,
        r#"tollgate_requests_total{org="acme",route="/v1/images",outcome="voided",status_class="5xx"} 1"#,
        r#"tollgate_credits_captured_total{org="acme",feature="image"} 3.0"#,
        r#"tollgate_operations_captured_total{org="acme",feature="image",source="pool"} 0.2"#,
        r#"tollgate_refusals_total{org="acme",code="pool_limit_reached"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

/// What of books goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They do not say what they held.
    Mute,
    /// They resolve nothing.
    Unresolved,
    /// They amend nothing.
    Unamended,
    /// Somebody captures a charge as soon as it was amended, five credits of it.
    Captured,
    /// An excess is beyond what they can hold.
    Range,
    /// They do not hear of the gateway any more after it has asked them so often ([`MAY`]).
    Unheard,
}

/// How often what is held may be forwarded.
pub static MAY: AtomicUsize = AtomicUsize::new(0);

/// Books of which that goes wrong.
pub struct Faulty(pub embedded::Session, pub Fault);

impl Books for Faulty {
    fn hold(
        &self,
        ask: &Ask<'_>,
    ) -> impl Future<Output = Result<Posted, BooksError>> + Send + use<> {
        let (holding, fault) = (self.0.hold(ask), self.1);
        async move {
            let posted = holding.await?;
            match fault {
                Fault::Mute => Err(BooksError::Unavailable("the answer is lost".into())),
                _ => Ok(posted),
            }
        }
    }

    fn resolve(
        &self,
        charge: ChargeId,
        resolution: &Resolution<'_>,
    ) -> impl Future<Output = Result<Resolved, BooksError>> + Send + use<> {
        let is_beyond = self.1 == Fault::Range && resolution.extra.is_some();
        let resolves = self.1 != Fault::Unresolved && !is_beyond;
        let resolving = resolves.then(|| self.0.resolve(charge, resolution));
        async move {
            match resolving {
                None if is_beyond => Err(BooksError::Range),
                Some(resolving) => resolving.await,
                None => Err(BooksError::Unavailable("it is not resolved".into())),
            }
        }
    }

    fn amend(
        &self,
        charge: ChargeId,
        amendment: &Amendment<'_>,
    ) -> impl Future<Output = Result<Amended, BooksError>> + Send + use<> {
        let (session, fault, now) = (self.0.clone(), self.1, amendment.now);
        let is_beyond = fault == Fault::Range && amendment.extra.is_some();
        let amends = fault != Fault::Unamended && !is_beyond;
        let amending = amends.then(|| session.amend(charge, amendment));
        async move {
            if is_beyond {
                return Err(BooksError::Range);
            }
            let Some(amending) = amending else {
                return Err(BooksError::Unavailable("it is not amended".into()));
            };
            let amended = amending.await?;
            if fault == Fault::Captured {
                let cost = Credits::from_micro(5_000_000).unwrap();
                let memo = OutcomeMemo { cost, ..OutcomeMemo::default() };
                let whole = Resolution::plain(State::Captured, &[5_000_000], now, &memo);
                session.resolve(charge, &whole).await?;
            }
            Ok(amended)
        }
    }

    fn abandon(
        &self,
        charge: ChargeId,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<Abandoned>, BooksError>> + Send + use<> {
        self.0.abandon(charge, now)
    }

    async fn known(&self, scope: u64, key: &[u8; 16]) -> Result<Option<KnownCharge>, BooksError> {
        self.0.known(scope, key).await
    }

    async fn adjust(&self, adjustment: &Adjustment<'_>) -> Result<Adjusted, BooksError> {
        self.0.adjust(adjustment).await
    }

    async fn balances(&self, accounts: &[Account<'_>]) -> Result<View, BooksError> {
        self.0.balances(accounts).await
    }

    fn may_forward(&self, _charge: ChargeId, _held: Instant) -> bool {
        let one_less = |may: usize| may.checked_sub(1);
        self.1 != Fault::Unheard || MAY.fetch_update(SeqCst, SeqCst, one_less).is_ok()
    }

    fn is_closed(&self, org: &str, key: &AccountKey) -> bool {
        self.0.is_closed(org, key)
    }

    async fn open_charge(&self, charge: ChargeId) -> Result<Option<OpenCharge>, BooksError> {
        self.0.open_charge(charge).await
    }
}

#[tokio::test]
async fn d38_a_request_whose_hold_fails_is_voided_and_counted_once_as_refused() {
    let bench = Bench::over("", |session| Faulty(session, Fault::Mute)).await;
    let answer = bench.post("/v1/images", "alice", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "books_unavailable"));
    bench.settled().await;
    assert_eq!(bench.seat("alice").await, "103");
    assert!(bench.backend.seen().is_empty());
    let metrics = bench.telemetry.expose();
    let counted: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("tollgate_requests_total") && line.contains("/v1/images"))
        .filter(|line| !line.ends_with(" 0"))
        .collect();
    let expected = r#"tollgate_requests_total{org="acme",route="/v1/images",outcome="refused",status_class="5xx"} 1"#;
    assert_eq!(counted, [expected]);
}

/// It is asked when the work begins, and again before each time that something is sent.
#[tokio::test]
async fn f36_what_took_long_to_send_is_not_sent_and_not_sent_again() {
    let got = "[[route]]\npath = \"/v1/got\"\nupstream = \"media\"\nfeature = \"image\"\n";
    let bench = Bench::over(got, |session| Faulty(session, Fault::Unheard)).await;
    bench.backend.answers("200 OK", "x");
    let ask = || {
        bench.send(get("/v1/got").header("tollgate-user", "alice").body(Full::default()).unwrap())
    };
    let refused = |answer: &Answer| {
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "books_unavailable"));
    };
    for (may, sent) in [(0, 0), (1, 0)] {
        MAY.store(may, SeqCst);
        refused(&ask().await);
        assert_eq!(bench.backend.seen().len(), sent, "{may}");
    }
    MAY.store(2, SeqCst);
    assert_eq!(ask().await.receipt()["state"], "captured");
    // A connection that was idle ends when it is used: what is safe would be sent again.
    bench.backend.plays([Step::Close]);
    MAY.store(2, SeqCst);
    refused(&ask().await);
    assert_eq!(bench.backend.seen().len(), 2);
    bench.settled().await;
    assert_eq!(bench.seat("alice").await, "102");
}

#[tokio::test]
async fn d36_what_was_taken_for_a_kept_answer_is_charged_where_its_capture_is_lost() {
    let bench = Bench::over("", |session| Faulty(session, Fault::Unresolved)).await;
    bench.backend.answers("200 OK", r#"{"usage": {"images": 9}}"#);
    let mut request = post("/v1/used", "alice", "");
    request.headers_mut().insert("idempotency-key", "k".parse().unwrap());
    let answer = bench.send(request).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "books_unavailable"));
    let charge = bench.backend.seen()[0].header("tollgate-charge")[0].to_owned();
    let session = &bench.worker.books.0;
    let now = bench.worker.clock.now();
    let abandoned = session.abandon(charge.parse().unwrap(), now).await.unwrap().unwrap();
    let legs: Vec<u64> = abandoned.charge.legs.iter().map(|leg| leg.amount).collect();
    assert_eq!((abandoned.state, &legs[..]), (State::Captured, &[9_000_000][..]));
    let document = bench.charge(&charge).await;
    assert_eq!((document.cost.to_string(), &document.quantity), ("9".into(), &"9".into()));
    assert_eq!(document.flags, ["in_doubt"]);
}

#[tokio::test]
async fn f57_an_excess_beyond_what_accounts_hold_is_given_up_and_the_hold_charged_flagged() {
    let bench = Bench::over("", |session| Faulty(session, Fault::Range)).await;
    bench.backend.answers("200 OK", r#"{"usage": {"images": 9}}"#);
    let mut charges = Vec::new();
    // One that is captured at once, and one whose answer is kept.
    for key in [None, Some("k")] {
        let mut request = post("/v1/used", "alice", "");
        if let Some(key) = key {
            request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        }
        let receipt = bench.send(request).await.receipt();
        assert_eq!(
            (&*receipt["state"], &*receipt["cost"], &*receipt["seat"]),
            ("captured", "5", "5")
        );
        charges.push(receipt["charge"].clone());
    }
    // One that is settled by somebody who did not make it.
    let ask = r#"{"user": "alice", "feature": "image", "quantity": 5}"#;
    let made = bench.post("/.tollgate/v1/holds", "alice", ask).await;
    assert_eq!(made.status, 201, "{made:?}");
    let charge = made.json()["charge"].as_str().unwrap().to_owned();
    let capture = format!("/.tollgate/v1/holds/{charge}/capture");
    let captured = bench.post(&capture, "alice", r#"{"quantity": 9}"#).await;
    assert_eq!(captured.status, 200, "{captured:?}");
    charges.push(charge);
    for charge in charges {
        let found = bench.charge(&charge).await;
        let cost = (found.state, found.cost.to_string());
        assert_eq!(cost, (State::Captured, "5".to_owned()));
        // What is shown is what was held, and that it is not what was used.
        assert_eq!((found.quantity, found.flags), ("5".into(), vec!["usage_missing".to_owned()]));
    }
    assert_eq!(bench.seat("alice").await, "88");
}
