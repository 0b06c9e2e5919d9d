//! Amounts of credits and Operations: integers of one millionth, as the gateway has them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Millionths in one.
const ONE: u64 = 1_000_000;

/// An exact amount that is not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(u64);

impl Amount {
    /// So many millionths.
    pub const fn millionths(count: u64) -> Self {
        Self(count)
    }

    /// How many millionths.
    pub const fn as_millionths(self) -> u64 {
        self.0
    }

    /// For a plot or a bound that is rough; never to add up.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / ONE as f64
    }

    /// A decimal with at most six places; zeros behind them say nothing.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let dot = memchr::memchr(b'.', text);
        let (whole, places) = match dot {
            Some(at) => (&text[..at], &text[at + 1..]),
            None => (text, &b""[..]),
        };
        if whole.is_empty() || (dot.is_some() && places.is_empty()) {
            return None;
        }
        let mut value = digits(whole)?.checked_mul(ONE)?;
        let mut unit = ONE;
        for digit in places {
            let digit = u64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
            unit /= 10;
            if unit == 0 && digit != 0 {
                return None;
            }
            value = value.checked_add(digit * unit)?;
        }
        Some(Self(value))
    }

    /// Both; the largest where that is beyond it.
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left; nothing where `other` is more.
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// So many of them.
    pub const fn times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(count))
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / ONE, self.0 % ONE);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let places = format!("{rest:06}");
        write!(f, "{whole}.{}", places.trim_end_matches('0'))
    }
}

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom("expected a decimal with at most six places");
        Self::parse(text.as_bytes()).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_exact_amount_is_none() {
        for (text, value) in
            [("0", 0), ("1.5", 1_500_000), ("0.000001", 1), ("2.50000000", 2_500_000)]
        {
            assert_eq!(Amount::parse(text.as_bytes()), Some(Amount(value)), "{text}");
        }
        for text in ["", ".", "1.", ".5", "-1", "1e3", "0.0000001", "99999999999999999999"] {
            assert_eq!(Amount::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Amount(1_500_000).to_string(), "1.5");
        assert_eq!(Amount(7).to_string(), "0.000007");
    }
}
