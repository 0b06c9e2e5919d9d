//! The function library: what it is, and how Redis comes to have it.

use super::link::{CallError, Link};
use super::node::Node;

/// The library, as Redis loads it. Its name and those of its functions end in a version, because code
/// under one name must not change while gateways use it: they look at its text only when they start and
/// when it is missing. It is compared as it stands, comments too. Two names could share a Redis only if
/// both knew all that the other one stores, which has no version of its own.
pub const CODE: &str = concat!(
    include_str!("lua/books.lua"),
    "\n",
    include_str!("lua/post.lua"),
    "\n",
    include_str!("lua/keys.lua"),
    "\n",
    include_str!("lua/holds.lua"),
    "\n",
    include_str!("lua/ended.lua"),
    "\n",
    include_str!("lua/look.lua"),
    "\n",
    include_str!("lua/cycles.lua"),
    "\n",
    include_str!("lua/batch.lua"),
    "\n",
    include_str!("lua/shard.lua"),
    "\n",
    include_str!("lua/terms.lua"),
    "\n",
    include_str!("lua/repair.lua"),
);

pub(super) const APPLY: &str = "tollgate_1_apply";
pub(super) const SETTLE: &str = "tollgate_1_settle";
pub(super) const AGAIN: &str = "tollgate_1_again";
pub(super) const CREATE: &str = "tollgate_1_create";
pub(super) const ENTER: &str = "tollgate_1_enter";
pub(super) const READY: &str = "tollgate_1_ready";
pub(super) const JOIN: &str = "tollgate_1_join";
pub(super) const LEAVE: &str = "tollgate_1_leave";
pub(super) const INSPECT: &str = "tollgate_1_inspect";
pub(super) const UNMAKE: &str = "tollgate_1_unmake";
pub(super) const REFILL: &str = "tollgate_1_refill";
pub(super) const REMAKE: &str = "tollgate_1_remake";
pub(super) const SUMS: &str = "tollgate_1_sums";
/// What stands in `meta` in front of the name of a session that was taken away: its last reply.
pub(super) const LAST_REPLY: &str = "the last reply of session ";
const NAME: &str = "tollgate_1";

/// Has each master load the library, unless it has it: where memory is short it loads nothing, and
/// a gateway has to start all the same. A master that fails keeps no other from having it.
pub(super) async fn load(link: &Link) -> Result<(), String> {
    let masters = link.everyone().await.map_err(|error| error.to_string())?;
    let mut failed = Ok(());
    for master in masters {
        failed = failed.and(load_at(&master).await);
    }
    failed
}

async fn load_at(master: &Node) -> Result<(), String> {
    if is_there(master).await? {
        return same(master).await;
    }
    let mut command = redis::cmd("FUNCTION");
    command.arg("LOAD").arg(CODE);
    match master.ask(&command).await {
        Ok(_) => Ok(()),
        Err(CallError::Unknown(why)) if why.contains("already exists") => same(master).await,
        Err(error) => Err(format!("the books' library cannot be loaded: {error}")),
    }
}

async fn is_there(master: &Node) -> Result<bool, String> {
    let mut command = redis::cmd("FUNCTION");
    command.arg("LIST").arg("LIBRARYNAME").arg(NAME);
    match master.ask(&command).await {
        Ok(redis::Value::Array(libraries)) => Ok(!libraries.is_empty()),
        Ok(_) => Ok(false),
        Err(error) => Err(format!("the books' library cannot be looked for: {error}")),
    }
}

/// Whether the library that is there is ours.
async fn same(master: &Node) -> Result<(), String> {
    let mut command = redis::cmd("FUNCTION");
    command.arg("LIST").arg("LIBRARYNAME").arg(NAME).arg("WITHCODE");
    let listed = master.ask(&command).await.map_err(|error| error.to_string())?;
    match code_of(&listed) {
        Some(code) if code == CODE.as_bytes() => Ok(()),
        _ => Err(format!(
            "{}: Redis has another library {NAME}: if no gateway of that build runs any more, \
             delete it with FUNCTION DELETE {NAME}",
            master.address
        )),
    }
}

/// The text behind `library_code`, wherever it stands: RESP2 lists pairs, RESP3 has maps.
fn code_of(value: &redis::Value) -> Option<&[u8]> {
    let text = |value: &redis::Value| match value {
        redis::Value::BulkString(bytes) => Some(bytes.clone()),
        redis::Value::SimpleString(text) => Some(text.clone().into_bytes()),
        _ => None,
    };
    match value {
        redis::Value::Array(values) => {
            for pair in values.windows(2) {
                if text(&pair[0]).is_some_and(|name| name == b"library_code")
                    && let redis::Value::BulkString(code) = &pair[1]
                {
                    return Some(code);
                }
            }
            values.iter().find_map(code_of)
        }
        redis::Value::Map(pairs) => pairs.iter().find_map(|(name, value)| match value {
            redis::Value::BulkString(code) if text(name)? == b"library_code" => Some(&code[..]),
            _ => code_of(value),
        }),
        _ => None,
    }
}
