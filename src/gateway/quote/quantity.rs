//! Quantities: how much a request asks for. A number at one place, a measure of its body, or a
//! product of several.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::{SmallVec, smallvec};

use super::content::Content;
use super::place::{Found, Place};
use super::{Asked, Pricing, unquotable};
use crate::config;
use crate::core::amount::{MAX_MICRO, MICRO, parse_micro};
use crate::core::refusal::Refusal;

/// Where a quantity is read.
#[derive(Debug)]
pub struct Quantity {
    /// One, or more that are multiplied.
    factors: SmallVec<[Factor; 1]>,
}

#[derive(Debug)]
struct Factor {
    source: Source,
    default: Option<u64>,
}

#[derive(Debug)]
enum Source {
    /// A number.
    Number(Place),
    /// The items of an array, by its pointer's number.
    Count(usize),
    /// The bytes of a form's files.
    FormBytes(String),
    /// A form's files.
    FormFiles(String),
    /// The bytes of the body.
    Bytes,
}

impl Pricing {
    /// Compiles where a quantity is read; without a place it counts one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn quantity(&mut self, from: Option<&config::Quantity>) -> Result<Quantity, String> {
        let Some(from) = from else {
            let one = Factor { source: Source::Number(Place::Constant), default: Some(MICRO) };
            return Ok(Quantity { factors: smallvec![one] });
        };
        if from.times.is_some() {
            if !from.is_one_place() || from.default.is_some() {
                return Err("`times` stands alone, each factor has its own place".to_owned());
            }
            if !config::Quantity::FACTORS.contains(&from.factors().len()) {
                return Err("`times` has two to four factors".to_owned());
            }
        }
        let factors = from.factors().iter().map(|factor| self.factor(factor));
        Ok(Quantity { factors: factors.collect::<Result<_, _>>()? })
    }

    fn factor(&mut self, from: &config::Quantity) -> Result<Factor, String> {
        if !from.is_one_place() || from.times.is_some() {
            return Err(format!("a quantity needs {}", config::Quantity::EXPECTED));
        }
        let number = |number: &config::Number| {
            let text = match number {
                config::Number::Whole(whole) => Cow::Owned(whole.to_string()),
                config::Number::Decimal(text) => Cow::Borrowed(text.as_str()),
            };
            parse_micro(&text).map_err(|error| format!("quantity {text:?}: {error}"))
        };
        let constant = from.constant.as_ref().map(number).transpose()?;
        let default = from.default.as_ref().map(number).transpose()?;
        let config::Quantity { json, header, query, path, form, .. } = from;
        let source = if let Some(pointer) = &from.count {
            Source::Count(self.pointer(pointer)?)
        } else if let Some(name) = &from.form_bytes {
            self.form = true;
            Source::FormBytes(name.clone())
        } else if let Some(name) = &from.form_files {
            self.form = true;
            Source::FormFiles(name.clone())
        } else if let Some(config::Measured::Bytes) = from.body {
            self.bytes = true;
            Source::Bytes
        } else {
            Source::Number(self.place([json, header, query, path, form])?)
        };
        Ok(Factor { source, default: constant.or(default) })
    }
}

impl Quantity {
    /// The places of its numbers.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.factors.iter().filter_map(|factor| match &factor.source {
            Source::Number(place) => Some(place),
            _ => None,
        })
    }

    /// How much a request asks for, in millionths.
    ///
    /// # Errors
    /// `unquotable` for what is absent without a default, cannot be read, or is beyond what an
    /// amount can hold.
    pub fn read<'a>(&self, asked: &Asked<'a>, content: &Content<'a>) -> Result<u64, Refusal> {
        let read = |factor: &Factor| factor.read(asked, content);
        if let [one] = &*self.factors {
            return read(one);
        }
        let factors = self.factors.iter().map(read);
        let factors: SmallVec<[u64; 4]> = factors.collect::<Result<_, _>>()?;
        product(&factors)
            .ok_or_else(|| unquotable("the request asks for more than an amount can hold"))
    }
}

/// The product of amounts in millionths, rounded up once; `None` beyond the bound of an amount.
///
/// Four amounts whose product is one fit into 128 bits together, and so does the product of any of
/// them, because none of the others is below a millionth. Zero is looked for first: what it is
/// multiplied with may not fit.
fn product(factors: &[u64]) -> Option<u64> {
    if factors.contains(&0) {
        return Some(0);
    }
    let (mut product, mut unit) = (1_u128, 1_u128);
    for (at, factor) in factors.iter().enumerate() {
        product = product.checked_mul(u128::from(*factor))?;
        unit = if at == 0 { unit } else { unit.checked_mul(u128::from(MICRO))? };
    }
    let product = u64::try_from(product.div_ceil(unit)).ok()?;
    (product <= MAX_MICRO).then_some(product)
}

impl Factor {
    fn read<'a>(&self, asked: &Asked<'a>, content: &Content<'a>) -> Result<u64, Refusal> {
        let found = match &self.source {
            Source::Number(place) => match place.find(asked, content)? {
                None => None,
                Some(Found::Json(raw)) => {
                    Some(quantity_of(raw).ok_or_else(|| bad_quantity(raw.get()))?)
                }
                Some(Found::Text(text)) => {
                    Some(parse_micro(&text).map_err(|_| bad_quantity(&text))?)
                }
            },
            Source::Count(at) => match content {
                Content::Json(picked) => picked[*at].map(items).transpose()?,
                _ => None,
            },
            Source::FormBytes(name) => files(content, name, |files| files.bytes)?,
            Source::FormFiles(name) => files(content, name, |files| files.count)?,
            Source::Bytes => Some(whole(asked.length)?),
        };
        let untold = || unquotable("the request does not say how much it asks for");
        found.or(self.default).ok_or_else(untold)
    }
}

/// So many, in millionths.
fn whole(count: u64) -> Result<u64, Refusal> {
    let micro = count.checked_mul(MICRO).filter(|micro| *micro <= MAX_MICRO);
    micro.ok_or_else(|| unquotable("the request has more than an amount can hold"))
}

fn files(
    content: &Content<'_>,
    name: &str,
    of: impl Fn(super::super::form::Files) -> u64,
) -> Result<Option<u64>, Refusal> {
    let Content::Form(form) = content else { return Ok(None) };
    let files = form.files(name).map_err(|why| unquotable(why.to_string()))?;
    files.map(|files| whole(of(files))).transpose()
}

/// How many items an array has, in millionths.
fn items(raw: &RawValue) -> Result<u64, Refusal> {
    let count: Result<Items, _> = serde_json::from_str(raw.get());
    let Items(count) = count.map_err(|_| unquotable("what is counted is not an array"))?;
    whole(count)
}

/// The number of an array's items.
struct Items(u64);

impl<'a> Deserialize<'a> for Items {
    fn deserialize<D: Deserializer<'a>>(from: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'a> Visitor<'a> for Count {
            type Value = Items;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<Items, A::Error> {
                let mut count = 0;
                while items.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Items(count))
            }
        }
        from.deserialize_seq(Count)
    }
}

fn bad_quantity(text: &str) -> Refusal {
    let shown: String = text.chars().take(32).collect();
    unquotable(format!(
        "a quantity is a non-negative number with at most six decimals, got {shown:?}"
    ))
}

/// A quantity as JSON tells it: a number, or a string that holds one. The text is read as it
/// stands, so that no double ever stands between (f56).
pub fn quantity_of(raw: &RawValue) -> Option<u64> {
    let text = raw.get();
    if !text.starts_with('"') {
        return parse_micro(text).ok();
    }
    let text: Cow<'_, str> = serde_json::from_str(text).ok()?;
    parse_micro(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d21_a_product_is_exact_and_rounded_up_once() {
        for (factors, expected) in [
            (&[2_000_000, 3_000_000][..], Some(6_000_000)),
            (&[500_000, 500_000], Some(250_000)),
            // A third of a millionth is one.
            (&[1, 333_333], Some(1)),
            // Rounded after each factor it would be one and not a millionth.
            (&[1, 1, MICRO * MICRO], Some(1)),
            (&[1, 1, 1_000_000, 1_000_000], Some(1)),
            (&[MAX_MICRO, MICRO, MICRO, MICRO], Some(MAX_MICRO)),
            (&[MAX_MICRO, 999_999, 999_999, 999_999], Some(9_007_172_233_170_249)),
            (&[MAX_MICRO, MICRO + 1], None),
            (&[MAX_MICRO, MAX_MICRO, 1, 1], Some(81_129_638_414_607)),
            (&[MAX_MICRO, MAX_MICRO, 1_000, 1], None),
            (&[1 << 40, 1 << 40, 1, 1], Some(1_208_926)),
            (&[MAX_MICRO, MAX_MICRO, MAX_MICRO, MAX_MICRO], None),
            (&[MAX_MICRO, MAX_MICRO, MAX_MICRO, 0], Some(0)),
        ] {
            assert_eq!(product(factors), expected, "{factors:?}");
        }
    }
}
