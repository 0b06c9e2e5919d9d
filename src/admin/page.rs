//! Lists: a part at a time, and a cursor for the next one.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::call::Call;
use super::problem::Problem;
use crate::directory::rows::{hex, zone_name};
use crate::directory::snapshot::Org;

/// How many items a list has where nothing is said, and at most.
pub const USUAL: usize = 100;
/// See [`USUAL`].
pub const MOST: usize = 1000;

/// Bytes of a cursor that vouch for the rest.
const CHECK: usize = 8;

/// A part of a list as it is answered. Times of an org are told in its own zone's name.
pub fn page(call: &Call, org: Option<&Org>, items: Vec<Value>, next: Option<String>) -> Value {
    let zone = org.map(|org| zone_name(org.schedule.zone_at(call.now)).to_owned());
    json!({
        "items": items,
        "next_cursor": next,
        "as_of": call.now,
        "time_zone": zone.unwrap_or_else(|| "UTC".to_owned()),
    })
}

/// The part of a list in memory that a call asks for, by its `q`, `sort`, `cursor` and `limit`,
/// and the cursor of the next part. `list` names the list; items come with their ids.
///
/// # Errors
/// `invalid` for a cursor of another list or order.
pub fn select(
    call: &Call,
    list: &str,
    mut items: Vec<(String, Value)>,
) -> Result<(Vec<Value>, Option<String>), Problem> {
    let down = call.query("sort") == Some("-id");
    let list = format!("{list}{}", if down { "/-id" } else { "" });
    if let Some(q) = call.query("q") {
        let q = q.to_lowercase();
        items.retain(|(id, _)| id.to_lowercase().contains(&q));
    }
    items.sort_unstable_by(|(a, _), (b, _)| if down { b.cmp(a) } else { a.cmp(b) });
    if let Some(text) = call.query("cursor") {
        let last = behind(&list, text)?;
        items.retain(|(id, _)| if down { *id < last } else { *id > last });
    }
    let more = items.len() > call.limit();
    items.truncate(call.limit());
    let next = items.last().filter(|_| more).map(|(id, _)| cursor(&list, id));
    Ok((items.into_iter().map(|(_, item)| item).collect(), next))
}

/// A cursor that goes on behind `last` in a list. It is bound to the list and its order, and one
/// that was made up or changed is refused; what a caller may see is decided anew for each part.
pub fn cursor(list: &str, last: &str) -> String {
    let mut bytes = check(list, last.as_bytes()).to_vec();
    bytes.extend_from_slice(last.as_bytes());
    hex(&bytes)
}

/// Where a cursor goes on.
///
/// # Errors
/// `invalid` for what is no cursor of this list.
pub fn behind(list: &str, cursor: &str) -> Result<String, Problem> {
    let wrong = || Problem::invalid("/cursor", "is not a cursor of this list");
    let bytes = unhex(cursor).ok_or_else(wrong)?;
    let (sum, last) = bytes.split_at_checked(CHECK).ok_or_else(wrong)?;
    if sum != check(list, last) {
        return Err(wrong());
    }
    String::from_utf8(last.to_vec()).map_err(|_| wrong())
}

fn check(list: &str, last: &[u8]) -> [u8; CHECK] {
    let digest = Sha256::new().chain_update(list).chain_update([0]).chain_update(last).finalize();
    std::array::from_fn(|index| digest[index])
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .bytes()
        // One spelling only, so that a cursor is the same wherever it is compared.
        .map(|byte| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        })
        .collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_a_changed_one_does_not() {
        let made = cursor("terms", "2026");
        assert_eq!(behind("terms", &made).unwrap(), "2026");
        assert!(behind("plans", &made).is_err());
        for at in 0..made.len() {
            let mut changed = made.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert!(behind("terms", std::str::from_utf8(&changed).unwrap()).is_err(), "{at}");
        }
        for odd in ["", "0", "zz", "2026", "é", &made[..made.len() - 1], &made.to_uppercase()] {
            assert!(behind("terms", odd).is_err(), "{odd}");
        }
    }
}
