//! A body that is one JSON text: it is kept until it is whole.

use super::MAX_TEXT;

/// A body that is being read.
#[derive(Debug, Default)]
pub struct Whole {
    kept: Vec<u8>,
    long: bool,
}

impl Whole {
    /// Reads one more piece.
    pub fn feed(&mut self, piece: &[u8]) {
        if self.long || self.kept.len() + piece.len() > MAX_TEXT {
            (self.long, self.kept) = (true, Vec::new());
        } else {
            self.kept.extend_from_slice(piece);
        }
    }

    /// What was kept; `None` where it was too long for it.
    pub fn text(&self) -> Option<&[u8]> {
        (!self.long).then_some(&self.kept)
    }
}
