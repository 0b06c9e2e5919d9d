//! The bench: one worker, one backend, one org.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::books::embedded::{Engine, Session};
use crate::books::{self, Books};
use crate::clock::Clock;
use crate::config::Config;
use crate::core::charge::ChargeDocument;
use crate::directory::Directory;
use crate::directory::file::Source;
use crate::gateway::admit::Limits;
use crate::gateway::current::Current;
use crate::gateway::health::Addresses;
use crate::gateway::pace::Pulse;
use crate::gateway::route::Routes;
use crate::gateway::upstream::Upstream;
use crate::gateway::{ChargeIds, Worker, serve_connection};
use crate::ledger::archive::Archive;
use crate::ledger::lookup::ChargeBook;
use crate::telemetry::{Labels, RouteLabels, Telemetry};

pub const ORG: &str = r#"
[org]
id = "acme"
contract = "etla"
products = ["firefly-services", "cce-4"]
[[term]]
id = "2026"
start = "2026-01-01"
end = "2027-01-01"
pool = "10"
[[plan]]
id = "cc-pro"
credits = "100"
[[plan]]
id = "small"
credits = "3"
[[group]]
id = "design"
[[user]]
id = "alice"
licences = [{ id = "lic-1", plan = "cc-pro" }, { id = "lic-2", plan = "small", priority = 2 }]
[[user]]
id = "dora"
licences = [{ id = "lic-3", plan = "small" }]
groups = ["design"]
[[user]]
id = "carl"
licences = [{ id = "lic-4", plan = "small" }]
suspended = true
[[profile]]
id = "ffs"
product = "firefly-services"
shared_credits = true
groups = ["design"]
pool_limit = "1"
[[profile]]
id = "cce"
product = "cce-4"
groups = ["design"]
[[profile]]
id = "ffs-off"
product = "firefly-services"
[[rate_card]]
version = "2026-11"
operations_per_credit = "0.02"
[[rate_card.rate]]
feature = "image"
credits = "1"
[[rate_card.rate]]
feature = "image"
when = { resolution = "4k" }
credits = "10"
[[rate_card.rate]]
feature = "recolor"
tier = "standard"
[[key]]
id = "studio"
kind = "service"
acts_for = "*"
secret = "tg_studio_0123456789abcdef"
[[key]]
id = "dora-only"
kind = "service"
acts_for = { users = ["dora"] }
secret = "tg_doraonly_0123456789abcd"
[[key]]
id = "alices"
kind = "user"
user = "alice"
secret = "tg_alice_0123456789abcdef0"
[[key]]
id = "robot"
kind = "principal"
profile = "ffs"
secret = "tg_robot_0123456789abcdef0"
[[key]]
id = "robot-off"
kind = "principal"
profile = "ffs-off"
secret = "tg_robotoff_0123456789abcd"
"#;

pub const STUDIO: &str = "Bearer tg_studio_0123456789abcdef";

/// Routes of every kind that tests need; `{urls}` is the backend's.
const ROUTES: &str = r#"
[[upstream]]
name = "media"
urls = ["{url}"]
[[upstream]]
name = "hasty"
urls = ["{url}"]
response_timeout = "300ms"
[[route]]
method = "POST"
path = "/v1/images"
upstream = "media"
feature = "image"
quantity = { json = "/n", default = 1 }
attributes.resolution = { json = "/size", map = { "1024" = "1k", "4096" = "4k" }, default = "1k" }
max_body = "1KiB"
[[route]]
method = "POST"
path = "/v1/used"
upstream = "media"
feature = "image"
quantity = { header = "x-images", default = 5 }
usage = { json = "/usage/images" }
[[route]]
method = "POST"
path = "/v1/told"
upstream = "media"
feature = "image"
quantity = { query = "n", default = 5 }
usage = { header = "x-used" }
[[route]]
method = "POST"
path = "/v1/hasty"
upstream = "hasty"
feature = "image"
quantity = { json = "/n", default = 1 }
[[route]]
method = "POST"
path = "/v1/patient"
upstream = "hasty"
feature = "image"
quantity = { query = "n" }
on_timeout = "capture"
[[route]]
method = "POST"
path = "/v1/cancel/{n}"
upstream = "media"
feature = "image"
quantity = { path = "n" }
on_disconnect = "cancel"
[[route]]
path = "/v1/recolor"
upstream = "media"
feature = "recolor"
[[route]]
path = "/v1/models"
upstream = "media"
free = true
"#;

/// What a backend does with one request.
#[derive(Clone)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Waits until the test lets it go on.
    Wait,
    /// Closes the connection.
    Close,
}

/// A request as the backend saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    /// The values of a header, in lower case names.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }
}

#[derive(Default)]
struct Script {
    steps: Mutex<Vec<Step>>,
    seen: Mutex<Vec<Seen>>,
    connections: Mutex<usize>,
}

/// A backend that plays its script for each request.
#[derive(Clone)]
pub struct Backend {
    script: Arc<Script>,
    go: Arc<Semaphore>,
    url: String,
}

impl Backend {
    async fn start(tasks: &TaskTracker) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let backend = Self { script: Arc::default(), go: Arc::new(Semaphore::new(0)), url };
        let own = backend.clone();
        let spawner = tasks.clone();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *own.script.connections.lock() += 1;
                spawner.spawn(own.clone().play(stream));
            }
        });
        backend
    }

    /// What it does from now on.
    pub fn plays(&self, steps: impl IntoIterator<Item = Step>) {
        *self.script.steps.lock() = steps.into_iter().collect();
    }

    /// Answers each request with this head and body.
    pub fn answers(&self, head: &str, body: &str) {
        let length = body.len();
        let text = format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{body}");
        self.plays([Step::Send(text.into_bytes())]);
    }

    /// Lets it go on after a [`Step::Wait`].
    pub fn go_on(&self) {
        self.go.add_permits(1);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.script.seen.lock().clone()
    }

    pub fn connections(&self) -> usize {
        *self.script.connections.lock()
    }

    async fn play(self, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(seen) = read_request(&mut stream, &mut buffer).await {
            self.script.seen.lock().push(seen);
            let steps = self.script.steps.lock().clone();
            for step in steps {
                match step {
                    Step::Send(bytes) => {
                        if stream.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                    Step::Wait => self.go.acquire().await.unwrap().forget(),
                    Step::Close => return,
                }
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    loop {
        if let Some(end) = buffer.windows(4).position(|part| part == b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
            let seen = Seen { head, body: Vec::new() };
            let length = seen.header("content-length").first().map_or(0, |n| n.parse().unwrap());
            let start = end + 4;
            while buffer.len() < start + length {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            let body = buffer[start..start + length].to_vec();
            buffer.drain(..start + length);
            return Some(Seen { body, ..seen });
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// A response as a client got it.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether the body came to a clean end.
    pub whole: bool,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }

    /// The receipt as pairs.
    pub fn receipt(&self) -> std::collections::BTreeMap<String, String> {
        let text = self.header("tollgate-receipt");
        let pairs = text.split(", ").map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned())).collect()
    }

    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

pub struct Bench<B: Books + 'static = Session> {
    pub backend: Backend,
    pub worker: Arc<Worker<B>>,
    pub engine: Arc<Engine>,
    pub telemetry: Telemetry,
    address: std::net::SocketAddr,
    connections: Arc<AtomicUsize>,
    _dir: TempDir,
    _tasks: TaskTracker,
}

impl Bench {
    pub async fn new() -> Self {
        Self::with("").await
    }

    /// With more configuration.
    pub async fn with(more: &str) -> Self {
        Self::over(more, |session| session).await
    }
}

impl<B: Books + 'static> Bench<B> {
    /// With more configuration, over books that are made of an engine's session.
    pub async fn over(more: &str, books: impl FnOnce(Session) -> B) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tasks = TaskTracker::new();
        let clock = Clock::manual("2026-11-10T12:00:00Z".parse().unwrap());
        let engine = Arc::new(Engine::open(&dir.path().join("books"), clock.now()).unwrap());
        let directory = Directory::open(dir.path(), 0).await.unwrap();
        let document = Source::from_toml(ORG).unwrap().document();
        let org = "acme".parse().unwrap();
        directory.apply(&org, &document, false, "tests", clock.now()).await.unwrap();
        let archive =
            Archive::open(dir.path(), engine.dir(), 0, engine.records_written()).await.unwrap();
        let follower = archive.clone();
        tasks.spawn(async move { follower.follow(CancellationToken::new()).await.unwrap() });

        let backend = Backend::start(&tasks).await;
        let text = ROUTES.replace("{url}", &backend.url) + more;
        let config: Config = toml::from_str(&text).unwrap();
        let labels = config.route.iter().map(|route| RouteLabels {
            route: route.path.clone(),
            feature: route.feature.as_ref().map(ToString::to_string),
        });
        let telemetry = Telemetry::new(config.ops.org_label);
        let labels = Labels { routes: labels.collect(), upstreams: vec!["media".into()] };
        let upstreams = config.upstream.iter().enumerate();
        #[cfg(not(feature = "otel"))]
        let tracer = crate::gateway::span::Tracer::default();
        #[cfg(feature = "otel")]
        let tracer = {
            let exporter = crate::telemetry::spans::Exporter::start(&config.traces, None).unwrap();
            crate::gateway::span::Tracer::new(exporter.map(|(exporter, _)| exporter))
        };
        let worker = Arc::new(Worker {
            generation: 0,
            routes: Routes::new(&config.route, &config.upstream).unwrap(),
            upstreams: upstreams
                .map(|(index, entry)| {
                    let addresses = Arc::new(Addresses::new(entry));
                    Arc::new(Upstream::new(index, entry, None, addresses).unwrap())
                })
                .collect(),
            live: directory.live(),
            books: books(engine.session()),
            charges: Arc::new(ChargeBook::new(
                books::Engine::Embedded(Arc::clone(&engine)),
                archive,
            )),
            answers: Arc::default(),
            jobs: Arc::default(),
            reporters: Arc::new([]),
            limits: Arc::new(Limits::new(&config.limits)),
            clock,
            meters: telemetry.worker(&Arc::new(labels)),
            tasks: TaskTracker::new(),
            ids: ChargeIds::new().unwrap(),
            pulse: Arc::new(Pulse::new(&config.gateway)),
            trusted_proxies: config.gateway.trusted_proxies.clone(),
            tracer,
            access_log: false,
            drain: CancellationToken::new(),
            cut_off: CancellationToken::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Arc::new(Current::new(Arc::clone(&worker)));
        let spawner = tasks.clone();
        let connections = Arc::new(AtomicUsize::new(0));
        let open = Arc::clone(&connections);
        tasks.spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (serving, open) = (Arc::clone(&serving), Arc::clone(&open));
                open.fetch_add(1, Ordering::SeqCst);
                spawner.spawn(async move {
                    serve_connection(serving, stream, peer).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { connections, backend, worker, engine, telemetry, address, _dir: dir, _tasks: tasks }
    }

    /// How many connections are being served.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// A connection of its own, for whatever is not a well-behaved request.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request over a new connection and reads its response.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Answer {
        request.headers_mut().entry("host").or_insert(http::HeaderValue::from_static("gate"));
        let stream = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        self._tasks.spawn(async move {
            let _ = connection.await;
        });
        let response = sender.send_request(request).await.unwrap();
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        let whole = loop {
            match body.frame().await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(frame)) => bytes.extend(frame.into_data().unwrap()),
            }
        };
        Answer { status: head.status, headers: head.headers, body: bytes.into(), whole }
    }

    /// Posts JSON for a user, with the service key.
    pub async fn post(&self, path: &str, user: &str, body: &str) -> Answer {
        self.send(post(path, user, body)).await
    }

    /// What the user's seat has left.
    pub async fn seat(&self, user: &str) -> String {
        let request = get("/.tollgate/v1/me/credits").header("tollgate-user", user);
        let answer = self.send(request.body(Full::default()).unwrap()).await;
        answer.json()["seat"]["available"].as_str().unwrap().to_owned()
    }

    /// A charge by id, from the outside.
    pub async fn charge(&self, id: &str) -> ChargeDocument {
        let request = get(&format!("/.tollgate/v1/charges/{id}")).body(Full::default()).unwrap();
        let answer = self.send(request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, so: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("never: {what}");
    }

    /// Waits until no charge is open.
    pub async fn settled(&self) {
        self.until("every charge is settled", || self.engine.open_holds().0 == 0).await;
    }
}

pub fn post(path: &str, user: &str, body: &str) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("host", "gate").header("authorization", STUDIO);
    request.header("tollgate-user", user).body(Full::from(body.to_owned())).unwrap()
}

pub fn get(path: &str) -> http::request::Builder {
    Request::get(path).header("host", "gate").header("authorization", STUDIO)
}
