//! Values that a file has as text: durations, sizes, and URLs that may hold a secret.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// A URL that may hold a password: shown without user info and query, wherever it is shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Url(String);

impl Url {
    /// The whole URL, secrets included.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Url {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Url {
    /// What is left of a text that is no URL could still be a password, so nothing of it is shown;
    /// and a password may hold any character, so the last `@` ends the user info.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return f.write_str("***");
        };
        let (user, rest) = match rest.rsplit_once('@') {
            Some((_, rest)) => ("***@", rest),
            None => ("", rest),
        };
        match rest.split_once(['?', '#']) {
            Some((rest, _)) => write!(f, "{scheme}://{user}{rest}?***"),
            None => write!(f, "{scheme}://{user}{rest}"),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

impl Serialize for Url {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Durations as `"5s"`, `"250ms"`, `"2m"`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// A week. A bound keeps every sum with a point in time far from overflow.
    const MAX: Duration = Duration::from_secs(7 * 24 * 3600);

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let expected = || de::Error::custom("expected a duration like \"5s\", at most \"168h\"");
        let span: jiff::SignedDuration = text.parse().map_err(|_| expected())?;
        let duration: Duration = span.try_into().map_err(|_| expected())?;
        if duration > MAX { Err(expected()) } else { Ok(duration) }
    }

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        let span = jiff::SignedDuration::try_from(*value).map_err(serde::ser::Error::custom)?;
        to.collect_str(&format_args!("{span:#}"))
    }
}

/// Sizes as `"1MiB"`, `"64KiB"`, `"512"`.
pub(super) mod size {
    use serde::{Deserialize, Deserializer, Serializer, de};

    const UNITS: [(&str, u64); 5] =
        [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1), ("", 1)];

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        let (digits, unit) =
            text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let factor = UNITS.iter().find(|(name, _)| *name == unit.trim()).map(|(_, factor)| *factor);
        let value = digits.parse::<u64>().ok().zip(factor).and_then(|(n, f)| n.checked_mul(f));
        value.ok_or_else(|| de::Error::custom("expected a size like \"1MiB\""))
    }

    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        let fits = |(_, factor): &&(&str, u64)| value.is_multiple_of(*factor);
        match UNITS.iter().find(fits) {
            Some((unit, factor)) if *value > 0 => {
                to.collect_str(&format_args!("{}{unit}", value / factor))
            }
            _ => to.serialize_str("0"),
        }
    }
}
