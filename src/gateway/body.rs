//! Bodies of requests: as they come from the client, and held to be priced.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT, HeaderMap};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use super::Refused;
use super::dress;
use super::inject::Inject;
use super::outgoing::{Outgoing, Upload};
use super::pace::Late;
use super::route::Metered;
use super::worker::Connection;
use crate::core::refusal::{Code, Refusal};

/// A request's body as its client sends it, which the client may take so long for.
#[derive(Debug)]
pub struct ClientBody {
    body: Incoming,
    /// `None` for a body that was there at once: none at all.
    connection: Option<Arc<Connection>>,
    turn: u32,
}

impl ClientBody {
    /// The body of the request that the connection serves.
    pub fn new(body: Incoming, connection: &Arc<Connection>) -> Self {
        let turn = connection.pace.turn();
        let connection = (!body.is_end_stream()).then(|| Arc::clone(connection));
        Self { body, connection, turn }
    }

    /// The connection, while it serves this body's request.
    fn connection(&self) -> Option<&Arc<Connection>> {
        self.connection.as_ref().filter(|connection| connection.pace.turn() == self.turn)
    }

    /// Whether its client took too long to go on with it.
    pub fn is_late(&self) -> bool {
        self.connection().is_some_and(|connection| connection.pace.late() == Some(Late::Body))
    }

    fn end(&mut self) {
        if let Some(connection) = self.connection() {
            connection.pace.upload_ended();
        }
        self.connection = None;
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Some(connection) = self.connection() {
            match &polled {
                Poll::Pending => connection.pace.body_awaited(),
                Poll::Ready(Some(Ok(frame))) => {
                    connection.pace.body_came(frame.data_ref().map_or(0, Bytes::len));
                }
                Poll::Ready(_) => {}
            }
        }
        let frame = ready!(polled);
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Some(connection) = self.connection() {
            // The client may still be sending what nobody reads.
            connection.unread.store(true, Relaxed);
        }
        self.end();
    }
}

/// How many bytes of bodies are held at once, over all workers. Small ones are not counted:
/// `max_in_flight` bounds those.
#[derive(Debug)]
pub struct Room {
    /// Added to by `take`, taken from by the drop of a [`Share`]; goes on over reloads.
    taken: Arc<AtomicU64>,
    bound: u64,
}

/// The largest body that is not counted.
const SMALL: u64 = 16 << 10;

impl Room {
    /// Room for so many bytes.
    pub fn new(bytes: u64) -> Self {
        Self { taken: Arc::default(), bound: bytes }
    }

    /// The same room with another bound: what is held stays counted.
    pub fn bounded(&self, bytes: u64) -> Self {
        Self { taken: Arc::clone(&self.taken), bound: bytes }
    }

    fn take(&self, bytes: u64) -> Result<Share, Refused> {
        let next = |taken: u64| taken.checked_add(bytes).filter(|all| *all <= self.bound);
        if self.taken.fetch_update(Relaxed, Relaxed, next).is_err() {
            let detail = "bodies of other requests fill the room there is for them";
            let mut refused = Refused::from(Refusal::new(Code::TooManyInFlight, detail));
            refused.retry_after = Some(1);
            return Err(refused);
        }
        Ok(Share { taken: Arc::clone(&self.taken), bytes })
    }
}

/// A share of the room, until it is dropped.
#[derive(Debug)]
struct Share {
    taken: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Relaxed);
    }
}

/// A body that is held, and its share of the room.
#[derive(Debug)]
struct Held {
    bytes: Bytes,
    share: Option<Share>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Held {
    fn into_bytes(self) -> Bytes {
        if self.share.is_none() { self.bytes } else { Bytes::from_owner(self) }
    }
}

/// The body of a metered request, as far as it is there when the request is priced.
#[derive(Debug)]
pub struct Taken(Kind);

#[derive(Debug)]
enum Kind {
    Held(Held),
    Passing(Outgoing, u64),
}

impl Taken {
    /// Takes a body, and holds it where it decides the price, is changed, or has to be `whole`.
    /// `upload` tells how far one has come that passes through; what no backend takes of it is
    /// drained in `tasks`.
    ///
    /// # Errors
    /// Those of reading it whole.
    pub async fn take(
        metered: &Metered,
        whole: bool,
        headers: &HeaderMap,
        body: ClientBody,
        room: &Arc<Room>,
        (upload, tasks): (&Upload, &TaskTracker),
    ) -> Result<Self, Refused> {
        let length = body.size_hint().exact();
        if whole || metered.holds_body(length) {
            return Ok(Self(Kind::Held(read(headers, body, metered.max_body, room).await?)));
        }
        let expects = headers.contains_key(EXPECT);
        let passing = Outgoing::streamed(body, upload.clone(), expects, tasks);
        Ok(Self(Kind::Passing(passing, length.unwrap_or_default())))
    }

    /// Whether all of it was awaited.
    pub fn is_held(&self) -> bool {
        matches!(self.0, Kind::Held(_))
    }

    /// Its bytes, where it is held.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::Held(held) => &held.bytes,
            Kind::Passing(..) => &[],
        }
    }

    /// How long it is; 0 where that decides nothing and is not known.
    pub fn length(&self) -> u64 {
        match &self.0 {
            Kind::Held(held) => held.bytes.len() as u64,
            Kind::Passing(_, length) => *length,
        }
    }

    /// Sets in it what the route sets.
    ///
    /// # Errors
    /// `unquotable` where it is not what can be changed.
    pub fn inject(&mut self, inject: &Inject, headers: &mut HeaderMap) -> Result<(), Refused> {
        if let Kind::Held(held) = &mut self.0
            && let Some(changed) = inject.apply(headers, &held.bytes)?
        {
            held.bytes = changed.into();
            dress::rewritten(headers);
        }
        Ok(())
    }

    /// The same on its way to the backend.
    pub fn outgoing(self) -> Outgoing {
        match self.0 {
            Kind::Held(held) => Outgoing::Whole(Some(held.into_bytes())),
            Kind::Passing(passing, _) => passing,
        }
    }
}

/// Reads the body of a request that the gateway itself answers.
///
/// # Errors
/// As for a body that decides a price.
pub async fn whole(
    headers: &HeaderMap,
    body: ClientBody,
    bound: u64,
    room: &Arc<Room>,
) -> Result<Bytes, Refused> {
    Ok(read(headers, body, bound, room).await?.into_bytes())
}

/// Reads a request's body that decides its price, up to the route's bound.
///
/// # Errors
/// `body_too_large`, before reading where the request says so; `too_many_in_flight` where there is
/// no room for it; `request_timeout` where it takes too long; `bad_request` where it breaks off.
async fn read(
    headers: &HeaderMap,
    mut body: ClientBody,
    bound: u64,
    room: &Arc<Room>,
) -> Result<Held, Refused> {
    let too_large = || {
        let detail = format!("this route takes bodies of at most {bound} bytes");
        Refused::from(Refusal::new(Code::BodyTooLarge, detail))
    };
    let told = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let told = told.and_then(|text| text.parse::<u64>().ok());
    if told.is_some_and(|length| length > bound) {
        return Err(too_large());
    }
    // One that does not say how long it is may become as long as it may.
    let most = told.unwrap_or(if body.is_end_stream() { 0 } else { bound });
    let share = if most > SMALL { Some(room.take(most)?) } else { None };
    let connection = body.connection.clone();
    let (mut whole, mut more, mut size) = (Bytes::new(), BytesMut::new(), 0);
    while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
        let frame = frame.map_err(|_| broke_off(connection.as_deref()))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size as u64 > bound {
            return Err(too_large());
        }
        // One piece is kept as it is.
        if size == data.len() {
            whole = data;
        } else {
            more.extend_from_slice(&std::mem::take(&mut whole));
            more.extend_from_slice(&data);
        }
    }
    let bytes = if more.is_empty() { whole } else { more.freeze() };
    Ok(Held { bytes, share })
}

fn broke_off(connection: Option<&Connection>) -> Refused {
    let late = connection.is_some_and(|connection| connection.pace.late() == Some(Late::Body));
    if late {
        return too_late();
    }
    Refusal::new(Code::BadRequest, "the request's body broke off").into()
}

/// The refusal of a request whose body did not come in time.
pub fn too_late() -> Refused {
    Refusal::new(Code::RequestTimeout, "the request's body did not come in time").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_over_a_reload() {
        let room = Room::new(100);
        let old = room.take(60).ok().unwrap();
        let room = room.bounded(80);
        assert!(room.take(30).is_err(), "60 of 80 are taken");
        let new = room.take(20).ok().unwrap();
        drop(old);
        assert!(room.take(61).is_err());
        assert!(room.take(60).is_ok());
        drop(new);
    }
}
