//! What of a response is sent when its charge is captured: what waited for that, what the backend
//! still sends, and what is set behind it.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::super::flow::Flow;
use super::super::usage::Names;
use super::BodyError;

/// What is sent when the charge is captured.
#[derive(Default)]
pub(super) struct Rest {
    pub(super) pieces: VecDeque<Bytes>,
    /// What the backend sends after that. It changes nothing any more.
    pub(super) flow: Option<Flow>,
    /// What is set behind it, and what is missing before that.
    pub(super) last: Bytes,
    pub(super) gap: &'static [u8],
    pub(super) trailers: Option<HeaderMap>,
    pub(super) passing: Names,
}

impl Rest {
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(piece) = self.pieces.pop_front() {
            self.gap = missing_end(&piece);
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let Some(flow) = &mut self.flow {
            match std::task::ready!(flow.poll_data(context)) {
                Some(Ok(piece)) => {
                    self.gap = missing_end(&piece);
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.trailers = passed(flow.take_trailers(), &self.passing),
            }
            self.flow = None;
        }
        if !self.last.is_empty() {
            let last = std::mem::take(&mut self.last);
            let last = if self.gap.is_empty() { last } else { [self.gap, &*last].concat().into() };
            return Poll::Ready(Some(Ok(Frame::data(last))));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    pub(super) fn is_over(&self) -> bool {
        let flows = self.flow.as_ref().is_some_and(|flow| !flow.is_end_stream());
        self.pieces.is_empty() && !flows && self.last.is_empty() && self.trailers.is_none()
    }
}

/// The trailers that were declared; nothing else trails (f68).
pub fn passed(trailers: Option<HeaderMap>, names: &Names) -> Option<HeaderMap> {
    let trailers = trailers.filter(|_| !names.is_empty())?;
    let mut passed = HeaderMap::new();
    for name in names {
        for value in trailers.get_all(name) {
            passed.append(name, value.clone());
        }
    }
    (!passed.is_empty()).then_some(passed)
}

/// What is missing behind the last piece of a stream before another event may follow.
pub fn missing_end(piece: &[u8]) -> &'static [u8] {
    let blank: [&[u8]; 4] = [b"\n\n", b"\r\r", b"\n\r", b"\n\r\n"];
    match piece {
        _ if blank.iter().any(|end| piece.ends_with(end)) => b"",
        [.., b'\n'] => b"\n",
        _ => b"\n\n",
    }
}
