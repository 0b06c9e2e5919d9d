//! Whom a call is sent to: the one server, the master of a Cluster that has the key's slot, or the
//! master that Sentinels name; who that is is looked up when it is not known, and again when a
//! server says or shows that it is not (any more).
//!
//! A call is sent again by itself only where a server said *in its reply* that another one has the
//! slot, so that it was certainly not executed. Everything else is told to whoever called: what
//! may have been executed is never told as not executed, whatever came before or after it. This is
//! why the crate's own clients of Clusters and Sentinels are not used
//! (docs/decisions/036-which-redis.md).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{Cmd, Value};

pub(super) use super::node::CallError;
use super::node::{Hint, Node};
use super::place::{Address, Kind, Place};
use super::slots::{self, Range};

/// How often a call follows a server's word that another one has its slot.
const MOST_STEPS: usize = 4;
/// For how long at least what was looked up is believed, whatever calls show.
const REST: Duration = Duration::from_millis(50);

/// The connections to a place.
#[derive(Debug)]
pub(super) struct Link {
    place: Place,
    timeout: Duration,
    /// Connections, by address. Nothing is awaited under it.
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    /// Whom to ask, as it was looked up last. Nothing is awaited under it.
    masters: Mutex<Option<Arc<Masters>>>,
    /// Held by the one who looks.
    looking: tokio::sync::Mutex<()>,
    /// Who is asked first by the next one who looks: one that knows less than others is not asked
    /// for ever.
    turn: AtomicUsize,
}

/// Who has which slots.
#[derive(Debug)]
struct Masters {
    ranges: Vec<Range>,
    /// Servers that calls were sent on to, and which are masters of nothing yet.
    importing: Mutex<Vec<Address>>,
    /// Whether a call has shown that this is not so any more.
    is_doubtful: AtomicBool,
    since: Instant,
}

impl Masters {
    fn new(ranges: Vec<Range>) -> Self {
        let (importing, is_doubtful) = (Mutex::default(), AtomicBool::new(false));
        Self { ranges, importing, is_doubtful, since: Instant::now() }
    }

    fn are_believed(&self) -> bool {
        !self.is_doubtful.load(Ordering::Relaxed) || self.since.elapsed() < REST
    }

    fn sent_on_to(&self, address: &Address) {
        let mut importing = self.importing.lock();
        if !importing.contains(address) {
            importing.push(address.clone());
        }
    }

    fn of(&self, slot: u16) -> Option<&Address> {
        let range = self.ranges.iter().find(|range| range.slots.contains(&slot))?;
        Some(&range.master)
    }
}

impl Link {
    /// To this place; `timeout` is that of connecting and that of each reply.
    pub(super) fn new(place: Place, timeout: Duration) -> Self {
        let (nodes, masters, looking, turn) = Default::default();
        Self { place, timeout, nodes, masters, looking, turn }
    }

    /// Calls a command that changes something. Its reply is one string of bytes.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Vec<u8>, CallError> {
        self.call_kept(command, None).await
    }

    /// As [`Link::call`]. With `replica` it has a reply only when a replica has what it did; the server
    /// waits so long for one.
    pub(super) async fn call_kept(
        &self,
        command: &Cmd,
        replica: Option<Duration>,
    ) -> Result<Vec<u8>, CallError> {
        match self.send_kept(command, replica).await? {
            Value::BulkString(bytes) => Ok(bytes),
            other => Err(CallError::Unknown(format!("a reply of another kind: {other:?}"))),
        }
    }

    /// Sends a command to the master that has its key, and waits for its reply. One without a key
    /// goes to any.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, CallError> {
        self.send_kept(command, None).await
    }

    async fn send_kept(
        &self,
        command: &Cmd,
        replica: Option<Duration>,
    ) -> Result<Value, CallError> {
        let slot = slots::key(command).map_or(0, slots::of);
        let masters = self.masters().await?;
        let address = masters.of(slot).cloned().ok_or_else(|| {
            masters.is_doubtful.store(true, Ordering::Relaxed);
            CallError::NotExecuted(format!("the Cluster has no master for the slot {slot}"))
        })?;
        let (mut node, mut importing) = (self.node(&address)?, false);
        let mut steps = 1;
        loop {
            let (error, hint) = match node.send(command, importing, replica).await {
                Ok(value) => return Ok(value),
                Err(told) => told,
            };
            if matches!(hint, Hint::Moved(_) | Hint::Look) {
                masters.is_doubtful.store(true, Ordering::Relaxed);
            }
            let (next, is_importing) = match hint {
                Hint::Moved(next) if steps < MOST_STEPS => (next, false),
                Hint::Ask(next) if steps < MOST_STEPS => (next, true),
                _ => return Err(error),
            };
            masters.sent_on_to(&next);
            (node, importing) = (self.node(&next)?, is_importing);
            steps += 1;
        }
    }

    /// All masters, and whoever is about to be one.
    pub(super) async fn everyone(&self) -> Result<Vec<Arc<Node>>, CallError> {
        let masters = self.masters().await?;
        let mut addresses: Vec<Address> = Vec::new();
        let importing = masters.importing.lock().clone();
        for address in masters.ranges.iter().map(|range| range.master.clone()).chain(importing) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.iter().map(|address| self.node(address)).collect()
    }

    /// What it connects to.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Gives all connections up.
    pub(super) fn reset(&self) {
        self.nodes.lock().clear();
    }

    fn node(&self, address: &Address) -> Result<Arc<Node>, CallError> {
        self.known(address, || self.place.server(address))
    }

    fn known(
        &self,
        address: &Address,
        client: impl FnOnce() -> redis::RedisResult<redis::Client>,
    ) -> Result<Arc<Node>, CallError> {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get(address) {
            return Ok(Arc::clone(node));
        }
        let client = client().map_err(|error| CallError::NotExecuted(error.to_string()))?;
        let node = Arc::new(Node::new(address.clone(), client, self.timeout));
        nodes.insert(address.clone(), Arc::clone(&node));
        Ok(node)
    }

    /// Who has which slots. One looks it up at a time; the others go on with what is known.
    async fn masters(&self) -> Result<Arc<Masters>, CallError> {
        let known = self.masters.lock().clone();
        let _turn = match &known {
            Some(masters) if masters.are_believed() => return Ok(Arc::clone(masters)),
            Some(masters) => match self.looking.try_lock() {
                Ok(turn) => turn,
                Err(_) => return Ok(Arc::clone(masters)),
            },
            None => self.looking.lock().await,
        };
        let now_known = self.masters.lock().clone();
        if let Some(masters) = now_known.filter(|masters| masters.are_believed()) {
            return Ok(masters);
        }
        let found = match (self.look().await, known) {
            (Ok(ranges), _) => Arc::new(Masters::new(ranges)),
            // Whoever could tell is away, and who was master may be there all the same.
            (Err(error), Some(known)) => {
                tracing::debug!(%error, "who is master cannot be looked up");
                Arc::new(Masters::new(known.ranges.clone()))
            }
            (Err(error), None) => return Err(error),
        };
        *self.masters.lock() = Some(Arc::clone(&found));
        self.forget(&found);
        Ok(found)
    }

    /// Closes connections to servers that are masters no more.
    fn forget(&self, masters: &Masters) {
        let seeds = match &self.place.kind {
            Kind::Server(_) => return,
            Kind::Cluster(seeds) => seeds,
            Kind::Sentinel { sentinels, .. } => sentinels,
        };
        let is_of_use = |address: &Address| {
            seeds.contains(address) || masters.ranges.iter().any(|range| range.master == *address)
        };
        self.nodes.lock().retain(|address, _| is_of_use(address));
    }

    /// Asks whoever can tell, one after the other, beginning with another one each time.
    async fn look(&self) -> Result<Vec<Range>, CallError> {
        let candidates = self.candidates()?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % candidates.len().max(1);
        let (later, first) = candidates.split_at(turn);
        let mut why = "nobody can tell who is master".to_owned();
        for node in first.iter().chain(later) {
            match self.told_by(node).await {
                Ok(ranges) => return Ok(ranges),
                Err(error) => why = error.to_string(),
            }
        }
        // Looking changes nothing, so what called was certainly not executed.
        Err(CallError::NotExecuted(why))
    }

    fn candidates(&self) -> Result<Vec<Arc<Node>>, CallError> {
        match &self.place.kind {
            Kind::Server(address) => Ok(vec![self.node(address)?]),
            Kind::Sentinel { sentinels, .. } => {
                let node = |address| self.known(address, || self.place.sentinel(address));
                sentinels.iter().map(node).collect()
            }
            Kind::Cluster(seeds) => {
                let mut addresses = seeds.clone();
                let known = self.masters.lock().clone();
                for range in known.iter().flat_map(|known| &known.ranges) {
                    if !addresses.contains(&range.master) {
                        addresses.push(range.master.clone());
                    }
                }
                addresses.iter().map(|address| self.node(address)).collect()
            }
        }
    }

    async fn told_by(&self, node: &Node) -> Result<Vec<Range>, CallError> {
        match &self.place.kind {
            Kind::Server(address) => Ok(vec![Range::all(address.clone())]),
            Kind::Cluster(_) => slots::ranges_by(node).await,
            Kind::Sentinel { master, .. } => {
                let named = slots::master_by(node, master).await?;
                slots::is_master(&*self.node(&named)?).await?;
                Ok(vec![Range::all(named)])
            }
        }
    }
}
