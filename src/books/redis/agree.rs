//! What all gateways on the same books have to be configured alike: how long they wait for each other.
//! One that waited shorter than others are heard of would end their holds while they work (D36).
//!
//! Each says what it has where it starts, and does not start beside one that runs and has something
//! else. Two that start at the same moment may miss each other.

use super::{Engine, META, OpenError};

/// In front of a gateway's name.
const FIELD: &str = "timeouts:";

impl Engine {
    /// Sees that no gateway that runs waits for others longer or shorter than this one.
    pub(super) async fn agrees(&self) -> Result<(), OpenError> {
        let shared = &self.shared;
        let key = &shared.keys(0).0[META];
        let mine = [shared.owner_timeout, shared.rejoin_timeout].map(|it| it.as_micros() as i64);
        let fields: Vec<(String, Vec<u8>)> =
            self.read(redis::cmd("HGETALL").arg(key)).await.map(lossy)?;
        for (field, theirs) in &fields {
            let Some(gateway) = field.strip_prefix(FIELD).filter(|it| *it != shared.gateway) else {
                continue;
            };
            let Some(theirs) = read(theirs) else { continue };
            if !self.runs(gateway, theirs[0].max(mine[0])).await? {
                self.read::<i64>(redis::cmd("HDEL").arg(key).arg(field)).await?;
            } else if theirs != mine {
                return Err(OpenError::Books(differs(gateway, theirs, mine)));
            }
        }
        let (field, text) =
            (format!("{FIELD}{}", shared.gateway), format!("{} {}", mine[0], mine[1]));
        self.read::<i64>(redis::cmd("HSET").arg(key).arg(field).arg(text)).await?;
        Ok(())
    }

    /// Whether a gateway was heard of in so many microseconds.
    async fn runs(&self, gateway: &str, within: i64) -> Result<bool, OpenError> {
        let of = format!("{gateway}/");
        for shard in 0..self.shared.shards {
            let owners = self.owners(shard).await?;
            let clock = self.redis_clock().await?;
            if owners.iter().any(|it| it.name.starts_with(&of) && clock - it.seen < within) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Only what is text has the names of fields that are looked for.
fn lossy(fields: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let text = |(field, value)| Some((String::from_utf8(field).ok()?, value));
    fields.into_iter().filter_map(text).collect()
}

fn read(stored: &[u8]) -> Option<[i64; 2]> {
    let (owner, rejoin) = std::str::from_utf8(stored).ok()?.split_once(' ')?;
    Some([owner.parse().ok()?, rejoin.parse().ok()?])
}

fn differs(gateway: &str, theirs: [i64; 2], mine: [i64; 2]) -> String {
    let told = |[owner, rejoin]: [i64; 2]| {
        let seconds = |micros: i64| micros as f64 / 1e6;
        format!("owner_timeout {}s and rejoin_timeout {}s", seconds(owner), seconds(rejoin))
    };
    format!(
        "the gateway {gateway} runs with {}, and this one has {}: all gateways need the same. To \
         change them, stop all gateways first",
        told(theirs),
        told(mine)
    )
}
