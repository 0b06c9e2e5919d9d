//! A connection to one server of Redis, made when it is needed and again when it broke, and what
//! the errors of a call mean: that it was certainly not executed, or that nobody knows.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::Mutex;

use super::place::Address;

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// It was not executed: it may be asked again, or given up.
    NotExecuted(String),
    /// It was not executed, because the library is not there (f31).
    NoLibrary,
    /// It was not executed, because it needs memory and there is none (f28).
    NoMemory,
    /// It may have been executed, or may still be (f26): only the same again can tell.
    Unknown(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotExecuted(why) | Self::Unknown(why) => f.write_str(why),
            Self::NoLibrary => f.write_str("Redis does not have the books' library"),
            Self::NoMemory => f.write_str("Redis has no memory left (maxmemory)"),
        }
    }
}

/// What else a failed call says of where to ask.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// Nothing: this server is the right one.
    Stay,
    /// Another server may be master by now (f27, f29).
    Look,
    /// Another server has the slot from now on (f32).
    Moved(Address),
    /// Another server has the slot's key for this one call (f32).
    Ask(Address),
}

/// One connection, shared by whoever asks this server.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: Address,
    client: Client,
    timeout: Duration,
    slot: Mutex<Slot>,
    /// Connections of calls that wait for a replica, as many as there were at once: a server that waits
    /// serves nobody else behind it. Nothing is awaited under it.
    idle: parking_lot::Mutex<Vec<MultiplexedConnection>>,
}

/// Where the connection is.
#[derive(Debug, Default)]
struct Slot {
    /// Its number: who finds it broken takes away no newer one.
    number: u64,
    connection: Option<MultiplexedConnection>,
    /// When none could be made, and why.
    away: Option<(Instant, String)>,
}

/// For how long a server that was not there is not asked again: whoever waited for his turn
/// meanwhile is told at once, and not one after the other.
const REST: Duration = Duration::from_millis(250);

impl Node {
    /// To this server; `timeout` is that of connecting and that of each reply.
    pub(super) fn new(address: Address, client: Client, timeout: Duration) -> Self {
        let (slot, idle) = Default::default();
        Self { address, client, timeout, slot, idle }
    }

    /// Sends a command to this very server, whatever it says of others.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, CallError> {
        self.send(command, false, None).await.map_err(|(error, _)| error)
    }

    /// Sends a command once, and waits for its reply. `importing`: a slot that is on its way here
    /// is asked too, as the server said that it leaves. `replica`: it is a reply only when a replica
    /// has what the command did, for which the server waits so long.
    pub(super) async fn send(
        &self,
        command: &Cmd,
        importing: bool,
        replica: Option<Duration>,
    ) -> Result<Value, (CallError, Hint)> {
        let connected = match replica {
            None => self.connection().await,
            Some(_) => self.idle_connection().await,
        };
        let (number, mut connection) = connected.map_err(|error| (error, Hint::Look))?;
        let sent = match (importing, replica) {
            (false, None) => connection.send_packed_command(command).await.map(|value| (value, 1)),
            _ => together(&mut connection, command, importing, replica).await,
        };
        match sent.and_then(|(value, replicas)| Ok((value.extract_error()?, replicas))) {
            Ok((value, replicas)) => {
                if replica.is_some() {
                    self.idle.lock().push(connection);
                }
                match replicas {
                    // Only the same again can tell when one has it.
                    0 => Err((CallError::Unknown(self.no_replica()), Hint::Stay)),
                    _ => Ok(value),
                }
            }
            Err(error) => {
                let (meaning, hint) = (self.meaning(&error), hint(&error, &self.address));
                // Another server may be behind the same name now, or this one goes on without us.
                let is_down = error.kind() == ErrorKind::Server(ServerErrorKind::ClusterDown);
                if hint == Hint::Look && !is_down {
                    self.broken(number).await;
                    self.idle.lock().clear();
                }
                Err((meaning, hint))
            }
        }
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), CallError> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.number, connection.clone()));
        }
        let connection = self.connect(&mut slot).await?;
        let number = slot.number + 1;
        *slot = Slot { number, connection: Some(connection.clone()), away: None };
        Ok((number, connection))
    }

    /// One that nobody else uses; it has no number.
    async fn idle_connection(&self) -> Result<(u64, MultiplexedConnection), CallError> {
        if let Some(connection) = self.idle.lock().pop() {
            return Ok((0, connection));
        }
        let mut slot = self.slot.lock().await;
        Ok((0, self.connect(&mut slot).await?))
    }

    async fn connect(&self, slot: &mut Slot) -> Result<MultiplexedConnection, CallError> {
        if let Some((since, told)) = &slot.away
            && since.elapsed() < REST
        {
            return Err(CallError::NotExecuted(told.clone()));
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await;
        connected.map_err(|error| {
            let told = self.refused(&error);
            slot.away = Some((Instant::now(), told.clone()));
            CallError::NotExecuted(told)
        })
    }

    async fn broken(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.number == number {
            slot.connection = None;
        }
    }

    fn no_replica(&self) -> String {
        format!("{}: no replica has what was asked (books.durability)", self.address)
    }

    /// Why there is no connection, and what may be done about it.
    fn refused(&self, error: &RedisError) -> String {
        let told = format!("{}: {error}", self.address);
        let help = match error.kind() {
            ErrorKind::AuthenticationFailed => "the user or the password in books.url is wrong",
            _ if told.contains("UnknownIssuer") => {
                "its certificate is not signed by whom this system trusts: name the CA's file with \
                 ?sslrootcert= in books.url"
            }
            _ if told.contains("not valid for name") => {
                "its certificate is not for the host in books.url"
            }
            _ if told.contains("InvalidContentType") => {
                "it speaks no TLS there: redis:// instead of rediss://, or another port"
            }
            _ => return told,
        };
        format!("{told}; {help}")
    }

    /// What an error says of the command that met it. Redis looks at all that is listed here before
    /// it runs a command; an error out of the middle of a function is not among it.
    fn meaning(&self, error: &RedisError) -> CallError {
        let told = format!("{}: {error}", self.address);
        match error.kind() {
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::CrossSlot
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::NoPerm,
            )
            | ErrorKind::AuthenticationFailed
            | ErrorKind::InvalidClientConfig => CallError::NotExecuted(told),
            _ => match error.code() {
                Some("OOM") => CallError::NoMemory,
                Some("NOAUTH") => CallError::NotExecuted(format!(
                    "{told}; it asks for a password: name one in books.url"
                )),
                Some("MISCONF" | "BUSY" | "NOREPLICAS" | "WRONGPASS") => {
                    CallError::NotExecuted(told)
                }
                Some("ERR") if told.contains("Function not found") => CallError::NoLibrary,
                _ => CallError::Unknown(told),
            },
        }
    }
}

/// A command, what lets it see a slot that is on its way, and what waits for a replica, in one piece:
/// nobody else who shares the connection comes between them, and nothing is asked twice. How many
/// replicas have it.
async fn together(
    connection: &mut MultiplexedConnection,
    command: &Cmd,
    importing: bool,
    replica: Option<Duration>,
) -> Result<(Value, u64), RedisError> {
    let mut all = redis::pipe();
    if importing {
        all.add_command(redis::cmd("ASKING"));
    }
    all.add_command(command.clone());
    if let Some(wait) = replica {
        all.cmd("WAIT").arg(1).arg(wait.as_millis() as u64);
    }
    let mut replies = connection.send_packed_commands(&all, 0, all.len()).await?.into_iter();
    let mut next = || match replies.next() {
        Some(reply) => reply.extract_error(),
        None => Err((ErrorKind::UnexpectedReturnType, "a reply is missing").into()),
    };
    if importing {
        next()?;
    }
    let reply = next()?;
    let replicas = if replica.is_some() { redis::from_redis_value(next()?)? } else { 1 };
    Ok((reply, replicas))
}

fn hint(error: &RedisError, asked: &Address) -> Hint {
    let to = || error.redirect_node().and_then(|(to, _)| Address::read(to, asked));
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved) => to().map_or(Hint::Look, Hint::Moved),
        ErrorKind::Server(ServerErrorKind::Ask) => to().map_or(Hint::Look, Hint::Ask),
        // A slot of which some keys are here and some are there: it takes a moment.
        ErrorKind::Server(ServerErrorKind::TryAgain | ServerErrorKind::CrossSlot) => Hint::Stay,
        _ if error.code() == Some("OOM") => Hint::Stay,
        _ if error.to_string().contains("Function not found") => Hint::Stay,
        _ => Hint::Look,
    }
}
