//! A backend that does byte for byte what a test tells it: every request's head is given to the
//! test's own code, together with the connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// A connection as the test's code has it. It closes when that ends.
pub struct Wire {
    stream: TcpStream,
    /// How many requests came over it before this one.
    pub turn: usize,
    buffer: Vec<u8>,
}

impl Wire {
    /// Sends these bytes; false where nobody takes them any more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Reads so many bytes of the body; false where there are not so many.
    pub fn read(&mut self, count: usize) -> bool {
        while self.buffer.len() < count {
            if !self.more() {
                return false;
            }
        }
        self.buffer.drain(..count);
        true
    }

    /// Waits so long, or until there is something to read.
    pub fn rest(&mut self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).unwrap();
        self.more();
        self.stream.set_read_timeout(None).unwrap();
    }

    /// Waits until the other side has closed the connection.
    pub fn closed(&mut self) {
        while self.more() {}
    }

    fn more(&mut self) -> bool {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&piece[..count]);
                true
            }
        }
    }

    fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|part| part == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.more() {
                return None;
            }
        }
    }
}

/// The backend.
pub struct Wild {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Wild {
    /// A backend that plays this for each request, and goes on while it is true. Bodies are the
    /// player's to read.
    pub fn start(play: impl Fn(&str, &mut Wire) -> bool + Send + Sync + 'static) -> Self {
        Self::listening(1024, true, play)
    }

    /// The same with a queue of so many connections, and, unless it is `parallel`, one connection
    /// at a time.
    pub fn listening(
        backlog: i32,
        parallel: bool,
        play: impl Fn(&str, &mut Wire) -> bool + Send + Sync + 'static,
    ) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(backlog).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let (heads, connections, closed, stop): (Arc<Mutex<Vec<_>>>, Arc<_>, Arc<_>, Arc<_>) =
            Default::default();
        let wild = Self {
            address,
            heads: Arc::clone(&heads),
            connections: Arc::clone(&connections),
            closed: Arc::clone(&closed),
            stop: Arc::clone(&stop),
        };
        let play = Arc::new(play);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                connections.fetch_add(1, Ordering::AcqRel);
                let (heads, closed, play) =
                    (Arc::clone(&heads), Arc::clone(&closed), Arc::clone(&play));
                let serve = move || {
                    let stream = stream.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let mut wire = Wire { stream, turn: 0, buffer: Vec::new() };
                    while let Some(head) = wire.head() {
                        heads.lock().unwrap().push(head.clone());
                        if !play(&head, &mut wire) {
                            break;
                        }
                        wire.turn += 1;
                    }
                    drop(wire);
                    closed.fetch_add(1, Ordering::AcqRel);
                };
                if parallel {
                    // It ends with its connection, which ends with the gateway.
                    std::thread::spawn(serve);
                } else {
                    serve();
                }
            }
        });
        wild
    }

    /// The heads of all requests.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// How many of them are over.
    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::Acquire)
    }
}

impl Drop for Wild {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The listener's thread sees the end when it accepts; one that serves one connection at a
        // time sees it when the gateway has closed that.
        drop(TcpStream::connect(self.address));
    }
}
