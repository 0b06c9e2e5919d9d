//! Where the events of a stream end, so that what is sent of it can stop between two of them.

use memchr::memchr2;

/// A stream of which only the blank lines are looked for (WHATWG HTML, 9.2).
#[derive(Debug)]
pub struct Ends {
    /// The line that is being read is empty so far.
    blank: bool,
    /// The last piece ended with CR; a LF that follows is part of it.
    after_cr: bool,
    /// And with that CR an event ended.
    ended: bool,
}

impl Default for Ends {
    fn default() -> Self {
        Self { blank: true, after_cr: false, ended: false }
    }
}

impl Ends {
    /// Reads on, and returns how many of these bytes belong to the event that ends in them; `None`
    /// where none does, and all of them are read. A LF that completes the end of one is told alone.
    pub fn next(&mut self, piece: &[u8]) -> Option<usize> {
        let mut at = 0;
        if !piece.is_empty() {
            let ended = std::mem::take(&mut self.ended);
            if std::mem::take(&mut self.after_cr) && piece[0] == b'\n' {
                at = 1;
                if ended {
                    return Some(at);
                }
            }
        }
        while let Some(end) = memchr2(b'\n', b'\r', &piece[at..]) {
            let is_blank = self.blank && end == 0;
            self.blank = true;
            at += end + 1;
            if piece[at - 1] == b'\r' {
                match piece.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if is_blank {
                self.ended = self.after_cr;
                return Some(at);
            }
        }
        self.blank &= at == piece.len();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a stream that comes in these pieces, and what is left of it.
    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut ends, mut events, mut event) =
            (Ends::default(), Vec::<Vec<u8>>::new(), Vec::new());
        for mut piece in pieces {
            while let Some(end) = ends.next(piece) {
                event.extend_from_slice(&piece[..end]);
                match events.last_mut() {
                    Some(last) if event == b"\n" && last.ends_with(b"\r") => {
                        last.append(&mut event)
                    }
                    _ => events.push(std::mem::take(&mut event)),
                }
                piece = &piece[end..];
            }
            event.extend_from_slice(piece);
        }
        (events, event)
    }

    #[test]
    fn f82_events_end_where_the_standard_says_however_they_are_cut() {
        for (text, expected) in [
            ("data: a\n\ndata: b\n\nda", &["data: a\n\n", "data: b\n\n"][..]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", &["data: a\r\n\r\n", "data: b\r\n\r\n"]),
            ("data: a\r\rdata: b\r", &["data: a\r\r"]),
            ("data: a\n\r\ndata: b\r\n\n: c", &["data: a\n\r\n", "data: b\r\n\n"]),
            ("\n\na\nb\n\n", &["\n", "\n", "a\nb\n\n"]),
            ("data: a\n", &[]),
            ("", &[]),
        ] {
            let (whole, rest) = events([text.as_bytes()]);
            assert_eq!(whole, expected.iter().map(|event| event.as_bytes()).collect::<Vec<_>>());
            assert_eq!([whole.concat(), rest].concat(), text.as_bytes());
            for (first, second) in
                (0..=text.len()).flat_map(|i| (i..=text.len()).map(move |j| (i, j)))
            {
                let (a, b) = text.as_bytes().split_at(first);
                let (b, c) = b.split_at(second - first);
                let (cut, _) = events([a, b, c]);
                assert_eq!(cut, whole, "{text:?} {first} {second}");
            }
        }
    }
}
