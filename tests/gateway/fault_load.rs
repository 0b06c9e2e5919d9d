//! Load over several gateways, and what its clients were told.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::world::micro;
use crate::support::{Answer, Call, Client, Script, run};

const FAST: usize = 6;
const SLOW: usize = 6;
/// How long a client waits for an answer, or asks again, before something is wrong.
const PATIENCE: Duration = Duration::from_secs(100);
/// Between two requests of a client.
const REST: Duration = Duration::from_millis(15);

/// The same numbers for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % bound as u64) as usize
    }
}

/// Something that somebody wanted once, however often it was asked for.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The `X-Request-Id` of all its requests.
    pub id: String,
    /// The charges of which it was told that they are captured, with what they cost.
    pub charged: BTreeSet<(String, u64)>,
    /// Charges of streams that were read to their end.
    pub read: BTreeSet<String>,
    /// It was asked for once, and refused with this status.
    pub refused: Option<u16>,
    /// How it went, for the figures.
    pub end: &'static str,
}

/// Who uses which gateways, for as long as it runs.
struct Shared {
    org: String,
    /// A gateway that is started again has other ports.
    gateways: Arc<Mutex<Vec<SocketAddr>>>,
    stop: AtomicBool,
    next: AtomicUsize,
    seed: u64,
}

pub struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<Vec<Wanted>>,
}

impl Load {
    /// Begins, on a thread of its own: faults are made while it goes on. What is slow waits for the gate
    /// that is called like the org.
    pub fn start(org: &str, gateways: &Arc<Mutex<Vec<SocketAddr>>>, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            org: org.to_owned(),
            gateways: Arc::clone(gateways),
            stop: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            seed,
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            run(async move {
                let mut clients = JoinSet::new();
                for at in 0..FAST + SLOW {
                    clients.spawn(Arc::clone(&own).client(at));
                }
                clients.join_all().await.into_iter().flatten().collect()
            })
        });
        Self { shared, thread }
    }

    /// Ends it when everybody has what he waits for.
    pub fn stop(self) -> Vec<Wanted> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("a client met something that must not be")
    }
}

/// The secret of an org's service key.
pub fn secret(org: &str) -> String {
    format!("tg_test_studio_of_{org:_>20}")
}

fn code(answer: &Answer) -> String {
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    problem["code"].as_str().unwrap_or_default().to_owned()
}

impl Shared {
    fn gateway(&self, at: usize) -> SocketAddr {
        let gateways = self.gateways.lock().unwrap();
        gateways[at % gateways.len()]
    }

    async fn client(self: Arc<Self>, at: usize) -> Vec<Wanted> {
        let mut all = Vec::new();
        while !self.stop.load(Ordering::SeqCst) {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            let mut random = Random(self.seed ^ ((number as u64 + 1) << 20));
            let user = ["alice", "bob", "carol", "carol", "carol"][random.below(5)];
            let id = format!("{}-{number}", self.org);
            let mut wanted = Wanted { id, ..Wanted::default() };
            match (at >= FAST, random.below(10)) {
                (true, kind) => self.slow(at, kind, user, &mut wanted).await,
                (false, 0..4) => self.plain(at, user, &mut wanted).await,
                (false, 4..8) => self.keyed(at, user, &mut wanted).await,
                (false, kind) => self.held(at, kind == 8, user, &mut wanted).await,
            }
            all.push(wanted);
            tokio::time::sleep(REST).await;
        }
        all
    }

    fn call(&self, path: &str, body: String, user: &str, wanted: &Wanted) -> Call {
        let call = Call::post(path, body).header("x-request-id", &wanted.id);
        call.key(&secret(&self.org)).header("tollgate-user", user)
    }

    /// One request; `None` where its answer did not come.
    async fn send(&self, at: usize, call: &Call) -> Option<Answer> {
        let asking = async {
            let mut client = Client::try_connect(self.gateway(at)).await?;
            client.try_send(call).await.ok()
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never answered: {call:?}"))
    }

    async fn plain(&self, at: usize, user: &str, wanted: &mut Wanted) {
        let call = self.call("/v1/images", "{}".to_owned(), user, wanted);
        let answer = self.send(at, &call).await;
        wanted.once(answer.as_ref());
    }

    /// Open for as long as its gate is shut.
    async fn slow(&self, at: usize, kind: usize, user: &str, wanted: &mut Wanted) {
        let gate = Some(self.org.clone());
        let is_streamed = kind.is_multiple_of(2);
        let script = match is_streamed {
            true => Script { half: gate, chunked: true, pad: 200_000, ..Script::default() },
            false => Script { gate, ..Script::default() },
        };
        let path = if kind < 7 { "/v1/images" } else { "/v1/doubt" };
        let call = self.call(path, "{}".to_owned(), user, wanted).script(&script);
        let answer = self.send(at, &call).await;
        wanted.once(answer.as_ref());
    }

    /// Tried again, each time at another gateway, until there is an answer.
    async fn keyed(&self, at: usize, user: &str, wanted: &mut Wanted) {
        let call = self.call("/v1/images", "{}".to_owned(), user, wanted);
        let call = call.header("idempotency-key", &wanted.id);
        let answer = self.insist(at, &call, &[200, 402], wanted).await;
        match answer.status {
            402 => wanted.end = "refused at last",
            409 => wanted.told(&answer, "charged and not replayed"),
            _ => wanted.told(&answer, "charged under a key"),
        }
    }

    /// Asks again until the answer has one of these statuses, or says that it was charged already.
    async fn insist(&self, at: usize, call: &Call, ends: &[u16], wanted: &Wanted) -> Answer {
        let began = Instant::now();
        let mut last = None;
        for again in 0.. {
            if let Some(answer) = self.send(at + again, call).await.filter(|answer| answer.whole) {
                if ends.contains(&answer.status) || code(&answer) == "already_charged" {
                    return answer;
                }
                // A hold that Redis has lost is known again when its gateway has done it again.
                let passes = matches!(
                    code(&answer).as_str(),
                    "books_unavailable" | "idempotency_in_flight" | "unknown_route"
                );
                assert!(passes, "{wanted:?}: {answer:?}");
                last = Some(answer);
            }
            assert!(began.elapsed() < PATIENCE, "{wanted:?}: {last:?}");
            tokio::time::sleep(REST).await;
        }
        unreachable!("it ends above")
    }

    /// A hold of the holds API, which is ended at another gateway.
    async fn held(&self, at: usize, is_captured: bool, user: &str, wanted: &mut Wanted) {
        let body = json!({ "user": user, "feature": "image", "quantity": 2, "ttl": "1h" });
        let holds = "/.tollgate/v1/holds";
        let call = Call::post(holds, body.to_string()).header("x-request-id", &wanted.id);
        let call = call.key(&secret(&self.org)).header("idempotency-key", &wanted.id);
        let held = self.insist(at, &call, &[200, 201, 402], wanted).await;
        if held.status == 402 {
            wanted.end = "no hold";
            return;
        }
        let charge = held.json()["charge"].as_str().unwrap().to_owned();
        let verb = if is_captured { "capture" } else { "void" };
        let end = Call::post(&format!("{holds}/{charge}/{verb}"), "{}").key(&secret(&self.org));
        let ended = self.insist(at + 1, &end, &[200], wanted).await.json();
        wanted.end = if is_captured { "a hold captured" } else { "a hold voided" };
        if is_captured {
            // Held where Redis was silent to it: what it came to stands elsewhere.
            if ended["state"] == "held" {
                wanted.read.insert(charge);
                return;
            }
            assert_eq!(ended["state"], "captured", "{ended}");
            wanted.charged.insert((charge, micro(&ended["cost"])));
        }
    }
}

impl Wanted {
    fn told(&mut self, answer: &Answer, end: &'static str) {
        // Redis was silent, or its session was removed while it was asked: what it is stands elsewhere.
        if answer.told("state") == "held" {
            self.read.insert(answer.told("charge"));
            self.end = end;
            return;
        }
        assert_eq!(answer.told("state"), "captured", "{answer:?}");
        self.charged.insert((answer.told("charge"), micro(&json!(answer.told("cost")))));
        self.end = end;
    }

    /// What the only answer says.
    fn once(&mut self, answer: Option<&Answer>) {
        let Some(answer) = answer else {
            self.end = "no answer";
            return;
        };
        match answer.status {
            200 if answer.told("state") == "held" && answer.whole => {
                self.read.insert(answer.told("charge"));
                self.end = "streamed";
            }
            200 if answer.told("state") == "held" => self.end = "a stream cut",
            200 => self.told(answer, "charged"),
            402 | 503 => {
                self.refused = Some(answer.status);
                self.end = if answer.status == 402 { "refused" } else { "unavailable" };
            }
            _ => panic!("{self:?}: {answer:?}"),
        }
    }
}
