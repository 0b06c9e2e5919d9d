//! What there is to ask for.

use http::Method;

/// An endpoint; paths that have an id in them share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Images,
    Generations,
    Chat,
    Videos,
    Video,
    VideoCancel,
    Uploads,
    Models,
    Healthz,
}

impl Endpoint {
    pub(super) const ALL: [Endpoint; 9] = [
        Endpoint::Images,
        Endpoint::Generations,
        Endpoint::Chat,
        Endpoint::Videos,
        Endpoint::Video,
        Endpoint::VideoCancel,
        Endpoint::Uploads,
        Endpoint::Models,
        Endpoint::Healthz,
    ];

    /// The endpoint of a path, and the id in it.
    pub(super) fn of(path: &str) -> Option<(Endpoint, &str)> {
        if let Some(rest) = path.strip_prefix("/v1/videos/") {
            let (endpoint, id) = match rest.strip_suffix("/cancel") {
                Some(id) => (Endpoint::VideoCancel, id),
                None => (Endpoint::Video, rest),
            };
            return (!id.is_empty() && !id.contains('/')).then_some((endpoint, id));
        }
        let known = Endpoint::ALL.into_iter().find(|endpoint| endpoint.path() == path);
        known.map(|endpoint| (endpoint, ""))
    }

    /// How it is called where requests are counted.
    pub(super) fn path(self) -> &'static str {
        match self {
            Endpoint::Images => "/v1/images/generate",
            Endpoint::Generations => "/v1/images/generations",
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Videos => "/v1/videos",
            Endpoint::Video => "/v1/videos/{id}",
            Endpoint::VideoCancel => "/v1/videos/{id}/cancel",
            Endpoint::Uploads => "/v1/uploads",
            Endpoint::Models => "/v1/models",
            Endpoint::Healthz => "/healthz",
        }
    }

    /// What it can be asked with.
    pub(super) fn methods(self) -> &'static [Method] {
        match self {
            Endpoint::Models | Endpoint::Healthz => &[Method::GET],
            Endpoint::Video => &[Method::GET, Method::DELETE],
            _ => &[Method::POST],
        }
    }
}
