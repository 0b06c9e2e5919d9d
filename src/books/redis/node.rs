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
        Self { address, client, timeout, slot: Mutex::default() }
    }

    /// Sends a command to this very server, whatever it says of others.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, CallError> {
        self.send(command, false).await.map_err(|(error, _)| error)
    }

    /// Sends a command once, and waits for its reply. `importing`: a slot that is on its way here
    /// is asked too, as the server said that it leaves.
    pub(super) async fn send(
        &self,
        command: &Cmd,
        importing: bool,
    ) -> Result<Value, (CallError, Hint)> {
        let (number, mut connection) =
            self.connection().await.map_err(|error| (error, Hint::Look))?;
        let sent = match importing {
            false => connection.send_packed_command(command).await,
            true => together(&mut connection, command).await,
        };
        match sent.and_then(Value::extract_error) {
            Ok(value) => Ok(value),
            Err(error) => {
                let (meaning, hint) = (self.meaning(&error), hint(&error, &self.address));
                // Another server may be behind the same name now, or this one goes on without us.
                let is_down = error.kind() == ErrorKind::Server(ServerErrorKind::ClusterDown);
                if hint == Hint::Look && !is_down {
                    self.broken(number).await;
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
                let told = self.refused(&error);
                slot.away = Some((Instant::now(), told.clone()));
                return Err(CallError::NotExecuted(told));
            }
        };
        let number = slot.number + 1;
        *slot = Slot { number, connection: Some(connection.clone()), away: None };
        Ok((number, connection))
    }

    async fn broken(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.number == number {
            slot.connection = None;
        }
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

/// A command and what lets it see a slot that is on its way, in one piece: nobody else who shares
/// the connection comes between them.
async fn together(
    connection: &mut MultiplexedConnection,
    command: &Cmd,
) -> Result<Value, RedisError> {
    let mut both = redis::pipe();
    both.add_command(redis::cmd("ASKING")).add_command(command.clone());
    let replies = connection.send_packed_commands(&both, 0, 2).await?;
    let mut replies = replies.into_iter();
    match (replies.next(), replies.next()) {
        (Some(Value::ServerError(error)), _) => Err(error.into()),
        (Some(_), Some(reply)) => Ok(reply),
        _ => Err((ErrorKind::UnexpectedReturnType, "two replies were expected").into()),
    }
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
