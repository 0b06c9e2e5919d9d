//! A proxy between a gateway and a server that does what networks do: cuts a connection after the
//! request and before the reply, delivers a request after its sender has given it up, delays,
//! splits, and goes silent. Which of it happens comes from a seed. It also keeps what goes one way,
//! for as long as a test wants it to, and can be pointed at another server.

#![expect(
    clippy::disallowed_methods,
    reason = "a proxy that delays sleeps, on a thread of its own"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

/// A running proxy. Its threads end with the test's process.
pub struct FaultProxy {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    /// Where to.
    server: AtomicU16,
    /// What was connected there.
    carried: Mutex<Vec<TcpStream>>,
    /// Nothing goes wrong as long as this is false.
    active: AtomicBool,
    random: AtomicU64,
    /// How often each kind of fault happened.
    counts: [AtomicU64; KINDS.len()],
    /// What is kept: requests or replies, that have this in them.
    keeps: Mutex<Option<(bool, &'static str)>>,
    /// How many pieces were kept.
    kept: AtomicU64,
}

/// What can happen to a piece of a connection.
pub const KINDS: [&str; 6] =
    ["request cut", "reply cut", "request late", "reply late", "split", "silence"];

/// How many pieces of a thousand meet each kind of fault.
const PERMILLE: [u64; KINDS.len()] = [15, 15, 15, 10, 60, 8];

impl FaultProxy {
    pub fn start(server: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (active, random) = (AtomicBool::new(false), AtomicU64::new(seed));
        let (carried, counts, keeps, kept) = Default::default();
        let server = AtomicU16::new(server);
        let shared = Arc::new(Shared { server, carried, active, random, counts, keeps, kept });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Some(server) = own.connect() else { continue };
                for is_request in [true, false] {
                    let (client, server) =
                        (client.try_clone().unwrap(), server.try_clone().unwrap());
                    let (from, to) = if is_request { (client, server) } else { (server, client) };
                    let shared = Arc::clone(&own);
                    std::thread::spawn(move || shared.carry(from, to, is_request));
                }
            }
        });
        Self { port, shared }
    }

    /// From now on things go wrong, or no longer.
    pub fn set_active(&self, active: bool) {
        self.shared.active.store(active, Ordering::SeqCst);
    }

    /// What was connected is cut, and from now on another server is behind the port.
    pub fn point_to(&self, server: u16) {
        self.shared.server.store(server, Ordering::SeqCst);
        for carried in self.shared.carried.lock().unwrap().drain(..) {
            // One that has ended already.
            let _ = carried.shutdown(Shutdown::Both);
        }
    }

    /// From now on requests that have this in them get no farther.
    pub fn keep_requests(&self, with: &'static str) {
        *self.shared.keeps.lock().unwrap() = Some((true, with));
    }

    /// From now on no reply comes.
    pub fn keep_replies(&self) {
        self.keep_replies_with("");
    }

    /// From now on no reply comes that has this in it.
    pub fn keep_replies_with(&self, with: &'static str) {
        *self.shared.keeps.lock().unwrap() = Some((false, with));
    }

    /// What was kept goes on.
    pub fn release(&self) {
        *self.shared.keeps.lock().unwrap() = None;
    }

    /// How many pieces were kept so far.
    pub fn kept(&self) -> u64 {
        self.shared.kept.load(Ordering::SeqCst)
    }

    /// How often each kind of fault happened.
    pub fn counts(&self) -> [u64; KINDS.len()] {
        std::array::from_fn(|at| self.shared.counts[at].load(Ordering::SeqCst))
    }
}

impl Shared {
    fn connect(&self) -> Option<TcpStream> {
        let mut carried = self.carried.lock().unwrap();
        let server = TcpStream::connect(("127.0.0.1", self.server.load(Ordering::SeqCst))).ok()?;
        carried.push(server.try_clone().unwrap());
        Some(server)
    }

    fn word(&self) -> u64 {
        let mut word = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// What happens to the next piece in one direction.
    fn fault(&self, is_request: bool) -> Option<usize> {
        let mut at = self.word() % 1000;
        for (kind, permille) in PERMILLE.iter().enumerate() {
            if at < *permille {
                let other = if is_request { [1, 3] } else { [0, 2] };
                let happens = self.active.load(Ordering::SeqCst) && !other.contains(&kind);
                if happens {
                    self.counts[kind].fetch_add(1, Ordering::SeqCst);
                }
                return happens.then_some(kind);
            }
            at -= permille;
        }
        None
    }

    fn is_kept(&self, piece: &[u8], is_request: bool) -> bool {
        self.keeps.lock().unwrap().is_some_and(|(requests, with)| {
            let has = || piece.windows(with.len()).any(|window| window == with.as_bytes());
            requests == is_request && (with.is_empty() || has())
        })
    }

    /// Waits for as long as a piece is kept.
    fn keep(&self, piece: &[u8], is_request: bool) {
        if self.is_kept(piece, is_request) {
            self.kept.fetch_add(1, Ordering::SeqCst);
        }
        while self.is_kept(piece, is_request) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, is_request: bool) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let piece = match from.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => &buffer[..count],
            };
            self.keep(piece, is_request);
            let carried = match self.fault(is_request).map(|kind| KINDS[kind]) {
                Some("request cut" | "reply cut") => {
                    // A part of it may have gone before.
                    let part = self.word() as usize % (piece.len() + 1);
                    let _ = to.write_all(&piece[..part]);
                    break;
                }
                Some("request late") => {
                    // Its sender gives up, and asks again elsewhere; then this one comes.
                    let _ = from.shutdown(Shutdown::Both);
                    std::thread::sleep(Duration::from_millis(self.word() % 50));
                    let _ = to.write_all(piece);
                    std::thread::sleep(Duration::from_millis(20));
                    break;
                }
                Some("reply late") => {
                    std::thread::sleep(Duration::from_millis(100 + self.word() % 200));
                    to.write_all(piece)
                }
                Some("split") => piece.chunks(1 + self.word() as usize % 64).try_for_each(|part| {
                    to.flush()?;
                    to.write_all(part)
                }),
                Some("silence") => {
                    // From here on nothing comes, and nobody says so.
                    while from.read(&mut buffer).is_ok_and(|count| count > 0) {}
                    break;
                }
                _ => to.write_all(piece),
            };
            if carried.is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
