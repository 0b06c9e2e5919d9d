//! Workers: one thread, one event loop and one listening socket per core, all on one port.
//!
//! The kernel spreads connections over the sockets (`SO_REUSEPORT`), so workers share nothing on
//! the way of a request but the books' accounts, the directory's snapshot and the limits.

mod control;

pub use control::{Deadlines, control};

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::books::Books;
use crate::gateway;
use crate::gateway::Worker;
use crate::gateway::current::Current;
use crate::gateway::pace::SWEEP_INTERVAL;

/// How many connections wait to be accepted, per worker.
const BACKLOG: i32 = 4096;
/// How long a worker rests when no connection can be accepted, because the process has no file
/// descriptor left, say; twice as long each time, up to a bound.
const FIRST_REST: Duration = Duration::from_millis(5);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// How long a connection that was not accepted before the drain may take to ask for something.
const LAST_CALL: Duration = Duration::from_secs(1);

/// One listening socket per worker.
pub struct Listeners {
    sockets: Vec<Socket>,
    address: SocketAddr,
}

impl Listeners {
    /// Binds `count` sockets to one address. Port 0 picks a free port for all of them.
    ///
    /// # Errors
    /// When the address is taken, also by sockets that would share it: a second gateway on the
    /// same port would take half of the first one's connections.
    pub fn bind(address: SocketAddr, count: usize) -> io::Result<Self> {
        if address.port() != 0 {
            drop(std::net::TcpListener::bind(address)?);
        }
        let first = bind(address)?;
        let address = first.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(bind(address)?);
        }
        Ok(Self { sockets, address })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Where they listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// When workers stop.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Cancelled: no more connections are accepted, and those there are finish what they serve.
    pub accepting: CancellationToken,
    /// Cancelled: nothing is waited for any more.
    pub now: CancellationToken,
    /// How long they may take to finish, in milliseconds; a reload may change it.
    drain_timeout: Arc<AtomicU64>,
}

impl Stop {
    /// Not stopped.
    pub fn new(drain_timeout: Duration) -> Self {
        let stop = Self {
            accepting: CancellationToken::new(),
            now: CancellationToken::new(),
            drain_timeout: Arc::default(),
        };
        stop.set_drain_timeout(drain_timeout);
        stop
    }

    /// How long requests may take to finish.
    pub fn set_drain_timeout(&self, timeout: Duration) {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.drain_timeout.store(millis, Relaxed);
    }

    fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout.load(Relaxed))
    }
}

/// The threads of the workers.
pub struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    /// Starts a thread per listener.
    ///
    /// # Errors
    /// When a thread or its event loop cannot be made.
    pub fn start<B: Books + 'static>(
        listeners: Listeners,
        workers: Vec<Arc<Current<B>>>,
        stop: &Stop,
    ) -> io::Result<Self> {
        let mut threads = Vec::new();
        for (index, (socket, worker)) in listeners.sockets.into_iter().zip(workers).enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let stop = stop.clone();
            let work = move || runtime.block_on(work(socket, worker, stop));
            threads.push(std::thread::Builder::new().name(format!("worker-{index}")).spawn(work)?);
        }
        Ok(Self(threads))
    }

    /// Waits until all of them have drained. Blocks.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

async fn work<B: Books + 'static>(socket: Socket, current: Arc<Current<B>>, stop: Stop) {
    let listener = match TcpListener::from_std(socket.into()) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a worker cannot listen");
            return;
        }
    };
    // Reloads leave these as they are.
    let (tasks, drain, cut_off, pulse) = {
        let worker = current.load();
        let Worker { tasks, drain, cut_off, pulse, .. } = &*worker;
        (tasks.clone(), drain.clone(), cut_off.clone(), Arc::clone(pulse))
    };
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rest = FIRST_REST;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    rest = FIRST_REST;
                    take(&current, &tasks, stream, peer);
                }
                // The client gave up before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, ?rest, "no connection can be accepted");
                    tokio::select! {
                        () = tokio::time::sleep(rest) => {}
                        () = stop.accepting.cancelled() => break,
                    }
                    rest = (rest * 2).min(LONGEST_REST);
                }
            },
            _ = sweep.tick() => {
                pulse.sweep();
                gateway::jobs::ask_those_due(&current.load());
            }
            () = stop.accepting.cancelled() => break,
        }
    }
    // From here on requests are refused as `draining`.
    tasks.close();
    drain.cancel();
    // The kernel has taken some connections already; closing the socket would reset them.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            let Ok(stream) = stream else { continue };
            let current = Arc::clone(&current);
            tasks.spawn(async move {
                // A draining connection that has not sent anything is closed at once.
                if tokio::time::timeout(LAST_CALL, stream.readable()).await.is_ok() {
                    gateway::serve_connection(current, stream, peer).await;
                }
            });
        }
    }
    let drained = async {
        loop {
            tokio::select! {
                () = tasks.wait() => break,
                _ = sweep.tick() => pulse.sweep(),
            }
        }
    };
    tokio::select! {
        () = drained => return,
        () = tokio::time::sleep(stop.drain_timeout()) => {}
        () = stop.now.cancelled() => {}
    }
    // What is dropped with the event loop voids, or settles as its route's `in_doubt` says.
    cut_off.cancel();
    let after = stop.drain_timeout();
    tracing::warn!(
        left = tasks.len(),
        ?after,
        "not everything was finished in time; it is cut off"
    );
}

fn take<B: Books + 'static>(
    current: &Arc<Current<B>>,
    tasks: &TaskTracker,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let worker = current.load();
    let Some(place) = worker.limits.connect() else {
        return gateway::turn_away(&worker, stream);
    };
    let serving = gateway::serve_connection(Arc::clone(current), stream, peer);
    tasks.spawn(async move {
        serving.await;
        drop(place);
    });
}
