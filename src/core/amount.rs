//! Amounts of credits and Operations: integers of one millionth, parsed from exact decimals,
//! never floats.
//!
//! Every amount is at most [`MAX_MICRO`] (2^53 − 1 millionths, so that a reader that only has
//! doubles can still hold it exactly). Arithmetic is checked: what would leave the range is an
//! error, never a wrapped number (f57).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, de};

/// The largest amount, in millionths: `9007199254.740991`.
pub const MAX_MICRO: u64 = (1 << 53) - 1;

/// Millionths in one whole.
pub const MICRO: u64 = 1_000_000;

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// The text is not `digits[.digits]`, or has a leading zero, a sign or an exponent.
    #[error("expected a decimal like \"12\" or \"0.25\" with at most six decimals")]
    Syntax,
    /// The value is above [`MAX_MICRO`].
    #[error("larger than 9007199254.740991")]
    TooLarge,
    /// A ratio with a zero denominator.
    #[error("the denominator is zero")]
    ZeroDenominator,
}

macro_rules! amount {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);
            /// The largest amount there is.
            pub const MAX: Self = Self(MAX_MICRO);

            /// From millionths; `None` above [`MAX_MICRO`].
            pub const fn from_micro(micro: u64) -> Option<Self> {
                if micro <= MAX_MICRO { Some(Self(micro)) } else { None }
            }

            /// The amount in millionths.
            pub const fn micro(self) -> u64 {
                self.0
            }

            /// True for nothing.
            pub const fn is_zero(self) -> bool {
                self.0 == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Text::new(self.0).as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = AmountError;
            fn from_str(text: &str) -> Result<Self, AmountError> {
                parse_micro(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(Text::new(self.0).as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

amount! {
    /// The unit of a seat.
    Credits
}
amount! {
    /// The unit of an org's pool.
    Operations
}

/// An amount of millionths as text without trailing zeros, on the stack: receipts are printed on
/// the hot path.
pub struct Text {
    bytes: [u8; 27],
    start: usize,
    end: usize,
}

impl Text {
    /// The text of a sum of `micro` millionths, which is the largest amount where it is beyond
    /// that: whoever reads it can hold amounts and nothing more (f57).
    pub fn of_sum(micro: u64) -> Self {
        Self::new(micro.min(MAX_MICRO))
    }

    /// The text of `micro` millionths.
    pub fn new(micro: u64) -> Self {
        let mut bytes = [b'0'; 27];
        let mut end = bytes.len();
        let mut fraction = micro % MICRO;
        let mut at = end;
        if fraction > 0 {
            for _ in 0..6 {
                at -= 1;
                bytes[at] = b'0' + (fraction % 10) as u8;
                fraction /= 10;
            }
            while bytes[end - 1] == b'0' {
                end -= 1;
            }
            at -= 1;
            bytes[at] = b'.';
        }
        let mut whole = micro / MICRO;
        loop {
            at -= 1;
            bytes[at] = b'0' + (whole % 10) as u8;
            whole /= 10;
            if whole == 0 {
                break;
            }
        }
        Self { bytes, start: at, end }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Only ASCII digits and a dot were written.
        std::str::from_utf8(&self.bytes[self.start..self.end]).unwrap_or("0")
    }
}

/// Parses the contract's amount `^(0|[1-9]\d*)(\.\d{1,6})?$` into millionths.
///
/// # Errors
/// [`AmountError`] says what is wrong with the text.
pub fn parse_micro(text: &str) -> Result<u64, AmountError> {
    let (whole, fraction) = match text.split_once('.') {
        Some((_, "")) => return Err(AmountError::Syntax),
        Some((whole, fraction)) => (whole, fraction),
        None => (text, ""),
    };
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    if whole.is_empty() || leading_zero || fraction.len() > 6 || !digits(whole) || !digits(fraction)
    {
        return Err(AmountError::Syntax);
    }
    let whole: u64 = whole.parse().map_err(|_| AmountError::TooLarge)?;
    // Checked before anything is added: what wraps would be small again (f57).
    if whole > MAX_MICRO / MICRO {
        return Err(AmountError::TooLarge);
    }
    let mut micro = whole * MICRO;
    let mut scale = MICRO / 10;
    for digit in fraction.bytes() {
        micro += u64::from(digit - b'0') * scale;
        scale /= 10;
    }
    if micro > MAX_MICRO { Err(AmountError::TooLarge) } else { Ok(micro) }
}

/// An exact non-negative ratio in lowest terms: a price per unit, or Operations per credit.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ratio {
    numerator: u64,
    denominator: u64,
}

impl Ratio {
    /// Nothing.
    pub const ZERO: Self = Self { numerator: 0, denominator: 1 };

    /// `numerator / denominator` in lowest terms.
    ///
    /// # Errors
    /// When the denominator is zero, or either part is above [`MAX_MICRO`].
    pub fn new(numerator: u64, denominator: u64) -> Result<Self, AmountError> {
        if denominator == 0 {
            return Err(AmountError::ZeroDenominator);
        }
        if numerator > MAX_MICRO || denominator > MAX_MICRO {
            return Err(AmountError::TooLarge);
        }
        let divisor = gcd(u128::from(numerator), u128::from(denominator)) as u64;
        Ok(Self { numerator: numerator / divisor, denominator: denominator / divisor })
    }

    /// True for nothing.
    pub const fn is_zero(self) -> bool {
        self.numerator == 0
    }

    pub(super) fn parts(self) -> (u128, u128) {
        (u128::from(self.numerator), u128::from(self.denominator))
    }
}

impl FromStr for Ratio {
    type Err = AmountError;
    /// An exact decimal (`"0.2"`) or a ratio of whole numbers (`"1/5"`).
    fn from_str(text: &str) -> Result<Self, AmountError> {
        match text.split_once('/') {
            None => Self::new(parse_micro(text)?, MICRO),
            Some((numerator, denominator)) => {
                let whole = |part: &str| {
                    let plain = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
                    if plain {
                        part.parse::<u64>().map_err(|_| AmountError::TooLarge)
                    } else {
                        Err(AmountError::Syntax)
                    }
                };
                Self::new(whole(numerator)?, whole(denominator)?)
            }
        }
    }
}

impl fmt::Display for Ratio {
    /// As a decimal where six decimals hold it exactly, else as `a/b`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micro = self.numerator.checked_mul(MICRO);
        match micro {
            Some(micro)
                if micro % self.denominator == 0 && micro / self.denominator <= MAX_MICRO =>
            {
                f.write_str(Text::new(micro / self.denominator).as_str())
            }
            _ => write!(f, "{}/{}", self.numerator, self.denominator),
        }
    }
}

impl fmt::Debug for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ratio({self})")
    }
}

impl Serialize for Ratio {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// An exact non-negative fraction for intermediate sums; reduced at every step so that honest
/// prices never come near the bound of `u128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fraction {
    numerator: u128,
    denominator: u128,
}

impl Fraction {
    pub(super) const ZERO: Self = Self { numerator: 0, denominator: 1 };

    pub(super) const fn integer(value: u64) -> Self {
        Self { numerator: value as u128, denominator: 1 }
    }

    pub(super) fn times(self, ratio: Ratio) -> Option<Self> {
        let (numerator, denominator) = ratio.parts();
        let cross_a = gcd(self.numerator, denominator);
        let cross_b = gcd(numerator, self.denominator);
        Some(Self {
            numerator: (self.numerator / cross_a).checked_mul(numerator / cross_b)?,
            denominator: (self.denominator / cross_b).checked_mul(denominator / cross_a)?,
        })
    }

    pub(super) fn plus(self, other: Self) -> Option<Self> {
        let divisor = gcd(self.denominator, other.denominator);
        let left = self.numerator.checked_mul(other.denominator / divisor)?;
        let right = other.numerator.checked_mul(self.denominator / divisor)?;
        let numerator = left.checked_add(right)?;
        let denominator = self.denominator.checked_mul(other.denominator / divisor)?;
        let common = gcd(numerator, denominator);
        Some(Self { numerator: numerator / common, denominator: denominator / common })
    }

    /// Rounded up to a whole number; `None` above [`MAX_MICRO`].
    pub(super) fn ceil(self) -> Option<u64> {
        let whole = self.numerator.div_ceil(self.denominator);
        u64::try_from(whole).ok().filter(|&micro| micro <= MAX_MICRO)
    }
}

/// The greatest common divisor; 1 when both are zero, so that it can always be divided by.
fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

/// `⌈a·b/c⌉` for `a ≤ c`: the exact proration of the waterfall (D25). Zero when `c` is zero.
pub(super) fn prorate_up(a: u64, b: u64, c: u64) -> u64 {
    if c == 0 {
        return 0;
    }
    // Both factors are below 2^64, so the product fits; with a ≤ c the result is at most b.
    (u128::from(a) * u128::from(b)).div_ceil(u128::from(c)) as u64
}

/// `⌊a·b/c⌋` for `a ≤ c` or `b ≤ c`. Zero when `c` is zero.
pub(super) fn prorate_down(a: u64, b: u64, c: u64) -> u64 {
    if c == 0 {
        return 0;
    }
    (u128::from(a) * u128::from(b) / u128::from(c)) as u64
}

#[cfg(test)]
mod tests;
