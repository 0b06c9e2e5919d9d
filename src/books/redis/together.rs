//! Batches of several shards in one call, where one server has all of them: as long as a call is on its
//! way whatever comes waits, and goes together with the next one. No timer: what is alone goes alone.
//! On a Cluster, where a call is for one slot, each batch is a call
//! (docs/decisions/043-shards-share-calls.md).

use std::collections::VecDeque;

use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::sync::oneshot;

use super::link::{CallError, Link};
use super::{Keys, library};

/// How much goes in one call. The server serves nobody else meanwhile.
const MOST_CALLS: usize = 64;
const MOST_BYTES: usize = 1 << 20;

/// Of each of two functions whoever waits for a call of it.
#[derive(Debug, Default)]
pub(super) struct Together {
    applied: Waiting,
    settled: Waiting,
}

/// At most one batch of each of this gateway's sessions and shards.
#[derive(Debug, Default)]
struct Waiting {
    calls: Mutex<VecDeque<Call>>,
    /// Held by the one whose call is on its way.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Call {
    keys: Keys,
    args: [Vec<u8>; 2],
    reply: oneshot::Sender<Result<Vec<u8>, CallError>>,
}

impl Call {
    fn bytes(&self) -> usize {
        self.args.iter().map(Vec::len).sum()
    }
}

impl Together {
    /// Calls [`library::APPLY`] or [`library::SETTLE`] with a batch, together with whoever else does.
    pub(super) async fn call(
        &self,
        link: &Link,
        keys: &Keys,
        function: &'static str,
        args: [Vec<u8>; 2],
    ) -> Result<Vec<u8>, CallError> {
        let waiting = if function == library::SETTLE { &self.settled } else { &self.applied };
        let (sender, mut reply) = oneshot::channel();
        waiting.calls.lock().push_back(Call { keys: keys.clone(), args, reply: sender });
        loop {
            let _turn = tokio::select! {
                biased;
                told = &mut reply => return told.unwrap_or_else(|_| Err(CallError::Unknown(LEFT.into()))),
                turn = waiting.turn.lock() => turn,
            };
            let calls = waiting.take();
            if !calls.is_empty() {
                send(link, function, calls).await;
            }
        }
    }
}

/// Whoever sent it is not there any more, which happens where the books end.
const LEFT: &str = "the books are being closed";

impl Waiting {
    /// As many as one call takes, and one at least where there is one.
    fn take(&self) -> Vec<Call> {
        let mut calls = self.calls.lock();
        let mut bytes = 0;
        let fits = |call: &&Call| {
            bytes += call.bytes();
            bytes <= MOST_BYTES
        };
        let count = calls.iter().take(MOST_CALLS).take_while(fits).count();
        let count = count.max(usize::from(!calls.is_empty()));
        calls.drain(..count).collect()
    }
}

async fn send(link: &Link, function: &str, calls: Vec<Call>) {
    if let [call] = &calls[..] {
        let told = link.call(&call.keys.function(function, &call.args)).await;
        tell(calls, [told]);
        return;
    }
    match link.send(&together(function, &calls)).await {
        Ok(Value::Array(replies)) if replies.len() == calls.len() => {
            tell(calls, replies.into_iter().map(read));
        }
        Ok(other) => {
            let error = CallError::Unknown(format!("a reply of another kind: {other:?}"));
            tell(calls, std::iter::repeat(Err(error)));
        }
        Err(error) => tell(calls, std::iter::repeat(Err(error))),
    }
}

fn tell(calls: Vec<Call>, told: impl IntoIterator<Item = Result<Vec<u8>, CallError>>) {
    for (call, told) in calls.into_iter().zip(told) {
        // Nobody may wait for it any more.
        let _ = call.reply.send(told);
    }
}

fn together(function: &str, calls: &[Call]) -> Cmd {
    let mut command = redis::cmd("FCALL");
    let keys: usize = calls.iter().map(|call| call.keys.0.len()).sum();
    command.arg(format!("{function}_together")).arg(keys);
    for call in calls {
        command.arg(&call.keys.0[..]);
    }
    for call in calls {
        command.arg(&call.args[..]);
    }
    command
}

/// A reply behind the sign that it is one, or an error behind another.
fn read(told: Value) -> Result<Vec<u8>, CallError> {
    match told {
        Value::BulkString(mut bytes) if bytes.first() == Some(&b'+') => {
            bytes.remove(0);
            Ok(bytes)
        }
        Value::BulkString(bytes) if bytes.first() == Some(&b'-') => {
            Err(CallError::Unknown(String::from_utf8_lossy(&bytes[1..]).into_owned()))
        }
        other => Err(CallError::Unknown(format!("a reply of another kind: {other:?}"))),
    }
}
