//! Workers: one thread, one event loop and one listening socket per core, all on one port.
//!
//! The kernel spreads connections over the sockets (`SO_REUSEPORT`), so workers share nothing on
//! the way of a request but the books' accounts, the directory's snapshot and the limits.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::books::Books;
use crate::gateway::admit::TIDY_INTERVAL;
use crate::gateway::pace::SWEEP_INTERVAL;
use crate::gateway::{self, Worker};

/// How many connections wait to be accepted, per worker.
const BACKLOG: i32 = 4096;
/// How long a worker rests when no connection can be accepted, because the process has no file
/// descriptor left, say; twice as long each time, up to a bound.
const FIRST_REST: Duration = Duration::from_millis(5);
const LONGEST_REST: Duration = Duration::from_secs(1);

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
    /// How long they may take for that.
    pub drain_timeout: Duration,
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
        workers: Vec<Worker<B>>,
        stop: &Stop,
    ) -> io::Result<Self> {
        let mut threads = Vec::new();
        for (index, (socket, worker)) in listeners.sockets.into_iter().zip(workers).enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let stop = stop.clone();
            let work = move || runtime.block_on(work(socket, Arc::new(worker), stop));
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

async fn work<B: Books + 'static>(socket: Socket, worker: Arc<Worker<B>>, stop: Stop) {
    let listener = match TcpListener::from_std(socket.into()) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a worker cannot listen");
            return;
        }
    };
    let mut tidy = tokio::time::interval(TIDY_INTERVAL);
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rest = FIRST_REST;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    rest = FIRST_REST;
                    take(&worker, stream, peer);
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
            _ = tidy.tick() => worker.limits.tidy(),
            _ = sweep.tick() => worker.pulse.sweep(),
            () = stop.accepting.cancelled() => break,
        }
    }
    drop(listener);
    worker.drain.cancel();
    worker.tasks.close();
    let drained = async {
        loop {
            tokio::select! {
                () = worker.tasks.wait() => break,
                _ = sweep.tick() => worker.pulse.sweep(),
            }
        }
    };
    if tokio::time::timeout(stop.drain_timeout, drained).await.is_err() {
        let left = worker.tasks.len();
        tracing::warn!(left, "not everything was finished in time; what is held is in doubt");
    }
}

fn take<B: Books + 'static>(worker: &Arc<Worker<B>>, stream: TcpStream, peer: SocketAddr) {
    let Some(place) = worker.limits.connect() else {
        return gateway::turn_away(worker, stream);
    };
    let serving = gateway::serve_connection(Arc::clone(worker), stream, peer);
    worker.tasks.spawn(async move {
        serving.await;
        drop(place);
    });
}
