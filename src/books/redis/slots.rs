//! Which server has which keys: slots of a Cluster, and the master that Sentinels name.

use std::ops::RangeInclusive;

use redis::{Arg, Cmd, Value};

use super::node::{CallError, Node};
use super::place::Address;

/// How many slots a Cluster has.
const SLOTS: u16 = 16_384;

/// Slots, and who has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) slots: RangeInclusive<u16>,
    pub(super) master: Address,
}

impl Range {
    pub(super) fn all(master: Address) -> Self {
        Self { slots: 0..=SLOTS - 1, master }
    }
}

/// The first key of a command; all keys of one command are in one slot. Of a script (`EVAL`) it is none of
/// them: whoever has its slot says who has its keys.
pub(super) fn key(command: &Cmd) -> Option<&[u8]> {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    match words.next()? {
        // The function, and how many keys.
        b"FCALL" => words.nth(2),
        b"TIME" | b"INFO" | b"FUNCTION" | b"CONFIG" | b"CLUSTER" | b"SENTINEL" | b"WAIT" => None,
        _ => words.next(),
    }
}

/// The slot of a key: of what stands between its first braces, if something does.
pub(super) fn of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}').filter(|close| *close > 0)?;
        Some(&rest[..close])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM, as Clusters use it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        let shifted = sum ^ u16::from(*byte) << 8;
        (0..8).fold(shifted, |sum, _| match sum & 0x8000 {
            0 => sum << 1,
            _ => sum << 1 ^ 0x1021,
        })
    })
}

fn odd() -> CallError {
    CallError::NotExecuted("a Redis that tells of masters in another way than expected".into())
}

/// What a server of a Cluster knows of who has which slots.
pub(super) async fn ranges_by(node: &Node) -> Result<Vec<Range>, CallError> {
    let told = node.ask(redis::cmd("CLUSTER").arg("SLOTS")).await.map_err(|error| match error {
        CallError::Unknown(why) if why.contains("cluster support disabled") => {
            CallError::NotExecuted(format!(
                "{} is no server of a Cluster, and several URLs in books.url are one",
                node.address
            ))
        }
        other => other,
    })?;
    let ranges = ranges(told, &node.address).ok_or_else(odd)?;
    match ranges.is_empty() {
        true => Err(CallError::NotExecuted(format!("{} knows of no masters", node.address))),
        false => Ok(ranges),
    }
}

/// Each range: its first and last slot, its master (host, port, and more), its replicas.
fn ranges(told: Value, asked: &Address) -> Option<Vec<Range>> {
    let Value::Array(told) = told else { return None };
    let range = |range: Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else {
            return None;
        };
        let [host, Value::Int(port), ..] = &master[..] else { return None };
        let host = match host {
            Value::BulkString(host) => String::from_utf8(host.clone()).ok()?,
            Value::SimpleString(host) => host.clone(),
            _ => String::new(),
        };
        // One that does not know its own name is the one that was asked.
        let host = if matches!(&*host, "" | "?") { asked.host.clone() } else { host };
        let slots = u16::try_from(*first).ok()?..=u16::try_from(*last).ok()?;
        Some(Range { slots, master: Address { host, port: u16::try_from(*port).ok()? } })
    };
    told.into_iter().map(range).collect()
}

/// The master that a Sentinel names.
pub(super) async fn master_by(node: &Node, master: &str) -> Result<Address, CallError> {
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    let told = node.ask(&command).await.map_err(|error| match error {
        CallError::Unknown(why) if why.contains("unknown command") => {
            CallError::NotExecuted(format!("{} is no Sentinel", node.address))
        }
        other => other,
    })?;
    let named: Option<(String, u16)> = redis::from_redis_value(told).map_err(|_| odd())?;
    let (host, port) = named.ok_or_else(|| {
        let sentinel = &node.address;
        CallError::NotExecuted(format!("the Sentinel {sentinel} knows of no master {master}"))
    })?;
    Ok(Address { host, port })
}

/// Sees that a server is a master: Sentinels may name one that is not yet, or not any more.
pub(super) async fn is_master(node: &Node) -> Result<(), CallError> {
    let told = node.ask(redis::cmd("INFO").arg("replication")).await?;
    let told: String = redis::from_redis_value(told).map_err(|_| odd())?;
    match told.lines().any(|line| line.trim_end() == "role:master") {
        true => Ok(()),
        false => {
            let server = &node.address;
            Err(CallError::NotExecuted(format!("{server} is named as master, and is a replica")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_slots_are_those_of_the_specification() {
        // The check value of the algorithm, and keys that servers were asked for.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(of(b"foo"), 12182);
        assert_eq!(of(b"a{foo}b{c}"), of(b"foo"));
        assert_eq!(of(b"{}foo"), crc16(b"{}foo") % SLOTS);
        assert_eq!(of(b"{foo"), crc16(b"{foo") % SLOTS);
        assert_eq!(of(b"{{foo}}"), of(b"{foo"));
    }

    #[test]
    fn f32_the_key_of_a_call_is_its_first() {
        let mut call = redis::cmd("FCALL");
        call.arg("f").arg(2).arg("k1").arg("k2").arg("argument");
        assert_eq!(key(&call), Some(&b"k1"[..]));
        assert_eq!(key(redis::cmd("HGET").arg("k").arg("field")), Some(&b"k"[..]));
        assert_eq!(key(&redis::cmd("TIME")), None);
        assert_eq!(key(redis::cmd("FUNCTION").arg("LIST")), None);
    }

    #[test]
    fn f32_what_a_server_tells_of_slots_is_read_or_refused() {
        let asked = Address { host: "a".into(), port: 1 };
        let text = |text: &str| Value::BulkString(text.into());
        let range = |first, last, host, port| {
            let master = Value::Array(vec![host, Value::Int(port), text("id")]);
            Value::Array(vec![Value::Int(first), Value::Int(last), master.clone(), master])
        };
        let told = vec![range(0, 9, text("b"), 7), range(10, 16_383, Value::Nil, 8)];
        let read = ranges(Value::Array(told), &asked).unwrap();
        let expected = [(0..=9, "b", 7), (10..=16_383, "a", 8)].map(|(slots, host, port)| Range {
            slots,
            master: Address { host: host.into(), port },
        });
        assert_eq!(read, expected);
        for odd in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(-1, 9, text("b"), 7)]),
            Value::Array(vec![range(0, 9, text("b"), 70_000)]),
        ] {
            assert_eq!(ranges(odd, &asked), None);
        }
    }
}
