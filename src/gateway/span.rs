//! Traces: request → hold, upstream, settle, under the trace that the caller's `traceparent` names
//! (W3C Trace Context). Without the feature `otel` everything here is empty, and `traceparent`
//! passes through as it came.

pub use imp::{Context, Span, Tracer};

#[cfg(not(feature = "otel"))]
mod imp {
    use http::HeaderMap;

    /// Traces nothing.
    #[derive(Clone, Default)]
    pub struct Tracer(());

    /// A span that is none.
    #[derive(Default)]
    pub struct Span(());

    /// The context of none.
    #[derive(Clone, Copy, Default)]
    pub struct Context(());

    impl Tracer {
        /// Begins nothing.
        #[inline]
        pub fn begin(&self, _headers: &HeaderMap) -> Span {
            Span(())
        }
    }

    impl Span {
        /// Nothing to hand on.
        #[inline]
        pub fn context(&self) -> Context {
            Context(())
        }

        /// Nothing to tell the backend.
        #[inline]
        pub fn propagate(&self, _headers: &mut HeaderMap) {}

        /// Ends nothing; what would be told is not asked for.
        #[inline]
        pub fn end(self, _attributes: impl FnOnce() -> Vec<(&'static str, String)>) {}
    }

    impl Context {
        /// Begins nothing.
        #[inline]
        pub fn child(&self, _name: &'static str) -> Span {
            Span(())
        }
    }
}

#[cfg(feature = "otel")]
mod imp {
    use std::sync::Arc;
    use std::time::Instant;

    use http::header::{HeaderMap, HeaderName, HeaderValue};
    use jiff::Timestamp;

    use crate::telemetry::spans::{Exporter, Finished, Kind};

    const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

    /// Begins traces, where a collector is configured.
    #[derive(Clone, Default)]
    pub struct Tracer(Option<Arc<Exporter>>);

    /// A span; it ends when it is dropped, so also when its request is.
    #[derive(Default)]
    pub struct Span(Option<Box<Open>>);

    struct Open {
        context: Known,
        parent: u64,
        name: &'static str,
        kind: Kind,
        start: u64,
        began: Instant,
        attributes: Vec<(&'static str, String)>,
    }

    /// Where further spans belong.
    #[derive(Clone, Default)]
    pub struct Context(Option<Known>);

    #[derive(Clone)]
    struct Known {
        exporter: Arc<Exporter>,
        trace: u128,
        id: u64,
    }

    impl Tracer {
        /// Exports there.
        pub fn new(exporter: Option<Arc<Exporter>>) -> Self {
            Self(exporter)
        }

        /// Begins a request: in its caller's trace, if the caller samples it; in one of its own,
        /// if the caller has none and it is its turn.
        pub fn begin(&self, headers: &HeaderMap) -> Span {
            let Some(exporter) = &self.0 else { return Span(None) };
            let (trace, parent) = match headers.get(TRACEPARENT).and_then(parse) {
                Some((trace, parent, true)) => (trace, parent),
                Some(_) => return Span(None),
                None if exporter.samples() => {
                    let Some(trace) = random().zip(random()) else { return Span(None) };
                    (u128::from(trace.0) << 64 | u128::from(trace.1), 0)
                }
                None => return Span(None),
            };
            Span::open(Arc::clone(exporter), trace, parent, "request", Kind::Server)
        }
    }

    impl Span {
        fn open(
            exporter: Arc<Exporter>,
            trace: u128,
            parent: u64,
            name: &'static str,
            kind: Kind,
        ) -> Self {
            let Some(id) = random() else { return Self(None) };
            let start = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
            let context = Known { exporter, trace, id };
            let (began, attributes) = (Instant::now(), Vec::new());
            Self(Some(Box::new(Open { context, parent, name, kind, start, began, attributes })))
        }

        /// Where its parts belong.
        pub fn context(&self) -> Context {
            Context(self.0.as_ref().map(|open| open.context.clone()))
        }

        /// Tells the backend whose part its work is.
        pub fn propagate(&self, headers: &mut HeaderMap) {
            let Some(open) = &self.0 else { return };
            let text = format!("00-{:032x}-{:016x}-01", open.context.trace, open.context.id);
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(TRACEPARENT, value);
            }
        }

        /// Ends it, and says what is known of it.
        pub fn end(mut self, attributes: impl FnOnce() -> Vec<(&'static str, String)>) {
            if let Some(open) = &mut self.0 {
                open.attributes = attributes();
            }
        }
    }

    impl Drop for Span {
        fn drop(&mut self) {
            let Some(open) = self.0.take() else { return };
            let Open { context, parent, name, kind, start, began, attributes } = *open;
            let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let Known { exporter, trace, id } = context;
            let end = start.saturating_add(took);
            exporter.send(Finished { trace, id, parent, name, kind, start, end, attributes });
        }
    }

    impl Context {
        /// Begins a part.
        pub fn child(&self, name: &'static str) -> Span {
            let Some(known) = &self.0 else { return Span(None) };
            let kind = if name == "upstream" { Kind::Client } else { Kind::Internal };
            Span::open(Arc::clone(&known.exporter), known.trace, known.id, name, kind)
        }
    }

    /// An id; zero is none.
    fn random() -> Option<u64> {
        getrandom::u64().ok().map(|random| random.max(1))
    }

    /// Trace, parent and whether it is sampled, of version 00 and whatever follows it (W3C Trace
    /// Context, 3.2).
    fn parse(value: &HeaderValue) -> Option<(u128, u64, bool)> {
        let text = value.to_str().ok()?;
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next()?;
            let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            (part.len() == digits && part.bytes().all(lower)).then_some(part)
        };
        let (version, trace, parent, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let trace = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let parent = u64::from_str_radix(parent, 16).ok().filter(|id| *id != 0)?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        let whole = if version == "00" { parts.next().is_none() } else { version != "ff" };
        whole.then_some((trace, parent, flags & 1 == 1))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_traceparent_is_read_as_its_standard_says() {
            let read = |text: &'static str| parse(&HeaderValue::from_static(text));
            let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
            assert_eq!(read(good), Some((trace, 0xb7ad_6b71_6920_3331, true)));
            let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more";
            assert_eq!(read(later), Some((trace, 0xb7ad_6b71_6920_3331, false)));
            for bad in [
                "",
                "00",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
                "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "00-00000000000000000000000000000000-b7ad6b7169203331-01",
                "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
                "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
                "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ] {
                assert_eq!(read(bad), None, "{bad}");
            }
        }
    }
}
