//! Identifiers: the ids users choose, and the charge ids Tollgate makes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, de};
use sha2::{Digest, Sha256};

/// An id as the contract has it: `^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$`, compared byte for byte
/// (f58). Names of products, features, units and meters follow the same rule. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(Arc<str>);

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected an id: 1 to 128 characters from A-Z a-z 0-9 . _ @ + -, starting with a letter or digit"
)]
pub struct IdError;

impl Id {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when `text` may be an id.
    pub fn is_valid(text: &str) -> bool {
        let bytes = text.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes[0].is_ascii_alphanumeric()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._@+-".contains(b))
    }
}

impl FromStr for Id {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        if Self::is_valid(text) { Ok(Self(text.into())) } else { Err(IdError) }
    }
}

impl std::borrow::Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Where an org is at home: all that belongs to it is in the shard that this number chooses.
pub fn home_of(org: &str) -> u16 {
    // What is last of a scope is first of its digest.
    scope_of(org) as u16
}

/// Under which number the keys of an org's charges are remembered: it ends in the org's home.
pub fn scope_of(org: &str) -> u64 {
    let mut digest = Sha256::new();
    digest.update((org.len() as u64).to_le_bytes());
    digest.update(org.as_bytes());
    let digest = digest.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

/// The id of a charge: a UUIDv7 made by the gateway, so that ids sort by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChargeId(pub [u8; 16]);

impl ChargeId {
    /// The UUIDv7 of a Unix time in milliseconds and 74 random bits (RFC 9562, section 5.7).
    pub const fn v7(unix_ms: u64, random: u128) -> Self {
        let time = (unix_ms as u128 & 0xffff_ffff_ffff) << 80;
        let random_a = ((random >> 64) & 0x0fff) << 64;
        let random_b = random & 0x3fff_ffff_ffff_ffff;
        let bits = time | (0x7 << 76) | random_a | (0b10 << 62) | random_b;
        Self(bits.to_be_bytes())
    }

    /// The same id for a charge of an org whose home this is: its last random bits are the home's,
    /// so that whoever knows a charge knows where its books are.
    pub const fn at_home(self, home: u16) -> Self {
        let bits = u128::from_be_bytes(self.0);
        Self(((bits & !0xffff) | home as u128).to_be_bytes())
    }

    /// The id of a later part of what has this id, at the same home.
    pub const fn and_then(self, part: usize) -> Self {
        let bits = u128::from_be_bytes(self.0);
        Self(bits.wrapping_add((part as u128) << 16).to_be_bytes())
    }

    /// The home of the charge's org.
    pub const fn home(self) -> u16 {
        u16::from_be_bytes([self.0[14], self.0[15]])
    }

    /// The hyphenated lower-case text, without allocating.
    pub fn text(self, buffer: &mut [u8; 36]) -> &str {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut at = 0;
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                buffer[at] = b'-';
                at += 1;
            }
            buffer[at] = HEX[usize::from(byte >> 4)];
            buffer[at + 1] = HEX[usize::from(byte & 15)];
            at += 2;
        }
        std::str::from_utf8(buffer).unwrap_or_default()
    }
}

impl FromStr for ChargeId {
    type Err = IdError;
    /// Only the hyphenated form; letters of either case.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let uuid = uuid::Uuid::try_parse(text).map_err(|_| IdError)?;
        if text.len() == 36 { Ok(Self(uuid.into_bytes())) } else { Err(IdError) }
    }
}

impl fmt::Display for ChargeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; 36]))
    }
}

impl fmt::Debug for ChargeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for ChargeId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.text(&mut [0; 36]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f58_odd_ids_are_refused() {
        for text in ["a", "9", "alice@acme.example", "A.b_c@d+e-f", &"x".repeat(128)] {
            assert!(text.parse::<Id>().is_ok(), "{text:?}");
        }
        for text in
            ["", "-a", ".a", "a b", "a\0", "a/b", "\u{202e}a", "аlice", "a:b", &"x".repeat(129)]
        {
            assert!(text.parse::<Id>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn charge_ids_are_version_7_and_sort_by_time() {
        let early = ChargeId::v7(1_700_000_000_000, u128::MAX);
        let late = ChargeId::v7(1_700_000_000_001, 0);
        assert!(early < late);
        let text = early.to_string();
        assert_eq!(text.as_bytes()[14], b'7');
        assert!(b"89ab".contains(&text.as_bytes()[19]));
        assert_eq!(text.parse(), Ok(early));
        assert!("018bcfe5680070008000000000000000".parse::<ChargeId>().is_err());
    }

    #[test]
    fn a_charge_id_has_its_time_and_every_random_bit_in_its_place() {
        let text = |ms, random| ChargeId::v7(ms, random).to_string();
        assert_eq!(text(0, 0), "00000000-0000-7000-8000-000000000000");
        assert_eq!(text(u64::MAX, 0), "ffffffff-ffff-7000-8000-000000000000");
        assert_eq!(text(0, u128::MAX), "00000000-0000-7fff-bfff-ffffffffffff");
        assert_eq!(
            text(0x0123_4567_89ab, (0xcde << 64) | 0x0234_5678_9abc_def0),
            "01234567-89ab-7cde-8234-56789abcdef0"
        );
    }

    #[test]
    fn ids_are_texts_in_documents() {
        let id: Id = "alice@acme.example".parse().unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"alice@acme.example\"");
        assert_eq!(serde_json::from_str::<Id>("\"alice@acme.example\"").unwrap(), id);
        assert!(serde_json::from_str::<Id>("\"a b\"").is_err());
        let known = std::collections::BTreeMap::from([(id, 1)]);
        assert_eq!(known.get("alice@acme.example"), Some(&1));
        let charge = serde_json::to_string(&ChargeId::v7(0, 0)).unwrap();
        assert_eq!(charge, "\"00000000-0000-7000-8000-000000000000\"");
    }
}
