//! What all gateways on the same books have to be configured alike: how long they wait for each other.
//! One that waited shorter than others are heard of would end their holds while they work (D36).
//!
//! Each says what it has where it starts, and again each minute, and does not start beside one that
//! runs and has something else. Two that start at the same moment may miss each other.

use jiff::SignedDuration;

use super::{Engine, META, OpenError};

/// In front of a gateway's name.
const FIELD: &str = "timeouts:";

impl Engine {
    /// Sees that no gateway that runs waits for others longer or shorter than this one.
    pub(super) async fn agrees(&self) -> Result<(), OpenError> {
        let shared = &self.shared;
        let (key, mine) = (&shared.keys(0).0[META], self.timeouts());
        let fields = self.of_meta(0, &format!("{FIELD}*")).await?;
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
        self.says_timeouts().await
    }

    /// Says what this gateway has: Redis may have lost it.
    pub(super) async fn says_timeouts(&self) -> Result<(), OpenError> {
        let field = format!("{FIELD}{}", self.shared.gateway);
        let [owner, rejoin] = self.timeouts();
        let mut command = redis::cmd("HSET");
        command.arg(&self.shared.keys(0).0[META]).arg(field).arg(format!("{owner} {rejoin}"));
        self.read::<i64>(&command).await?;
        Ok(())
    }

    fn timeouts(&self) -> [i64; 2] {
        let shared = &self.shared;
        [shared.owner_timeout, shared.rejoin_timeout].map(|it| it.as_micros() as i64)
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

fn read(stored: &[u8]) -> Option<[i64; 2]> {
    let (owner, rejoin) = std::str::from_utf8(stored).ok()?.split_once(' ')?;
    Some([owner.parse().ok()?, rejoin.parse().ok()?])
}

fn differs(gateway: &str, theirs: [i64; 2], mine: [i64; 2]) -> String {
    let told = |[owner, rejoin]: [i64; 2]| {
        let [owner, rejoin] =
            [owner, rejoin].map(|it| format!("{:#}", SignedDuration::from_micros(it)));
        format!("owner_timeout {owner} and rejoin_timeout {rejoin}")
    };
    format!(
        "the gateway {gateway} runs with {}, and this one has {}: all gateways need the same. To \
         change them, stop all gateways first",
        told(theirs),
        told(mine)
    )
}
