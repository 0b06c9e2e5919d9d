//! MessagePack as Redis' Lua reads and writes it: arrays, integers, booleans, and strings of any
//! bytes (it knows no binary type).

use rmp::decode::{self, NumValueReadError, ValueReadError};
use rmp::encode;

/// Why bytes are not what a shard's library writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not what the books' library writes: {0}")]
pub struct Malformed(pub String);

impl<E: rmp::decode::RmpReadErr> From<ValueReadError<E>> for Malformed {
    fn from(error: ValueReadError<E>) -> Self {
        Self(format!("{error:?}"))
    }
}

impl<E: rmp::decode::RmpReadErr> From<NumValueReadError<E>> for Malformed {
    fn from(error: NumValueReadError<E>) -> Self {
        Self(format!("{error:?}"))
    }
}

/// Values, written one behind the other. A buffer in memory takes everything, so nothing fails.
#[derive(Debug, Default)]
pub struct Out(Vec<u8>);

impl Out {
    /// An array of so many values, which follow.
    pub fn array(&mut self, count: usize) -> &mut Self {
        let _ = encode::write_array_len(&mut self.0, count as u32);
        self
    }

    pub fn uint(&mut self, value: u64) -> &mut Self {
        let _ = encode::write_uint(&mut self.0, value);
        self
    }

    pub fn int(&mut self, value: i64) -> &mut Self {
        let _ = encode::write_sint(&mut self.0, value);
        self
    }

    pub fn flag(&mut self, value: bool) -> &mut Self {
        let _ = encode::write_bool(&mut self.0, value);
        self
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let _ = encode::write_str_len(&mut self.0, bytes.len() as u32);
        self.0.extend_from_slice(bytes);
        self
    }

    /// Values that are written already.
    pub fn raw(&mut self, values: &[u8]) -> &mut Self {
        self.0.extend_from_slice(values);
        self
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Values, read one behind the other. Foreign bytes: nothing is believed.
#[derive(Clone, Copy, Debug)]
pub struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// How many values the array has that begins here. Never more than there are bytes left, so
    /// that nobody makes room for what cannot come.
    pub fn array(&mut self) -> Result<usize, Malformed> {
        let count = decode::read_array_len(&mut self.0)? as usize;
        if count > self.0.len() {
            return Err(Malformed(format!("an array of {count} in {} bytes", self.0.len())));
        }
        Ok(count)
    }

    /// An array of exactly so many values.
    pub fn tuple(&mut self, expected: usize) -> Result<(), Malformed> {
        match self.array()? {
            count if count == expected => Ok(()),
            count => Err(Malformed(format!("{count} values for {expected}"))),
        }
    }

    pub fn uint(&mut self) -> Result<u64, Malformed> {
        Ok(decode::read_int(&mut self.0)?)
    }

    pub fn int(&mut self) -> Result<i64, Malformed> {
        Ok(decode::read_int(&mut self.0)?)
    }

    pub fn small(&mut self) -> Result<u8, Malformed> {
        Ok(decode::read_int(&mut self.0)?)
    }

    pub fn flag(&mut self) -> Result<bool, Malformed> {
        Ok(decode::read_bool(&mut self.0)?)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = decode::read_str_len(&mut self.0)? as usize;
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| Malformed(format!("{length} bytes of {}", self.0.len())))?;
        self.0 = rest;
        Ok(bytes)
    }

    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.bytes()?;
        bytes.try_into().map_err(|_| Malformed(format!("{} bytes for {N}", bytes.len())))
    }

    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|error| Malformed(error.to_string()))
    }

    /// True, and behind it, where what comes next is `false`: nothing.
    pub fn is_nothing(&mut self) -> bool {
        const FALSE: u8 = 0xc2;
        match self.0.split_first() {
            Some((&FALSE, rest)) => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    /// Nothing follows.
    pub fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Malformed(format!("{} bytes too many", self.0.len())))
    }
}
