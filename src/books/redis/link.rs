//! A connection to Redis, made when it is needed and again when it broke, and what the errors of a
//! call mean: that it was certainly not executed, or that nobody knows.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::Mutex;

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

/// One connection, shared by whoever has the link.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    timeout: Duration,
    slot: Mutex<Slot>,
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

impl Link {
    /// To this server; `timeout` is that of connecting and that of each reply.
    pub(super) fn new(client: Client, timeout: Duration) -> Self {
        Self { client, timeout, slot: Mutex::default() }
    }

    /// Calls a command that changes something. Its reply is one string of bytes.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Vec<u8>, CallError> {
        match self.send(command).await? {
            Value::BulkString(bytes) => Ok(bytes),
            other => Err(CallError::Unknown(format!("a reply of another kind: {other:?}"))),
        }
    }

    /// Sends a command, and waits for its reply.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, CallError> {
        let (number, mut connection) = self.connection().await?;
        match connection.send_packed_command(command).await.and_then(Value::extract_error) {
            Ok(value) => Ok(value),
            Err(error) => {
                let meaning = meaning(&error);
                // Another server may be behind the same name now, or this one goes on without us.
                if !matches!(meaning, CallError::NoLibrary | CallError::NoMemory) {
                    self.broken(number).await;
                }
                Err(meaning)
            }
        }
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), CallError> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.number, connection.clone()));
        }
        if let Some((since, told)) = &slot.away
            && since.elapsed() < REST
        {
            return Err(CallError::NotExecuted(told.clone()));
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let connection = match connected {
            Ok(connection) => connection,
            Err(error) => {
                let told = error.to_string();
                slot.away = Some((Instant::now(), told.clone()));
                return Err(CallError::NotExecuted(told));
            }
        };
        let number = slot.number + 1;
        *slot = Slot { number, connection: Some(connection.clone()), away: None };
        Ok((number, connection))
    }

    /// Gives the connection up.
    pub(super) async fn reset(&self) {
        self.slot.lock().await.connection = None;
    }

    async fn broken(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.number == number {
            slot.connection = None;
        }
    }
}

/// What an error says of the command that met it. Redis looks at all that is listed here before it
/// runs a command; an error out of the middle of a function is not among it.
fn meaning(error: &RedisError) -> CallError {
    let told = error.to_string();
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
            Some("MISCONF" | "BUSY" | "NOREPLICAS" | "NOAUTH" | "WRONGPASS") => {
                CallError::NotExecuted(told)
            }
            Some("ERR") if told.contains("Function not found") => CallError::NoLibrary,
            _ => CallError::Unknown(told),
        },
    }
}
