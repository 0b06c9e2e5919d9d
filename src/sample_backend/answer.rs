//! What the sample generates: JSON in, JSON or events out. Nothing here does I/O.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

/// An answer, before it becomes a response.
#[derive(Debug)]
pub(super) struct Answer {
    /// The body; an event stream has a piece an event.
    pub pieces: Vec<Bytes>,
    /// Whether it is an event stream.
    pub streamed: bool,
    /// The usage as the body tells it, if it does and is not a stream.
    pub usage: Option<String>,
}

/// Why a request makes no sense, in words.
#[derive(Debug)]
pub(super) struct Refused(pub &'static str);

/// One transparent pixel.
const PIXEL: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
/// A video without a frame.
const NO_FRAME: &str = "data:video/mp4;base64,AAAAFGZ0eXBpc29tAAACAGlzb20=";

const MAX_IMAGES: u64 = 16;
const MAX_SECONDS: u64 = 60;
/// An answer is this many tokens long, or `max_tokens` if that is less; one event each.
const TOKENS: u64 = 16;

#[derive(Deserialize)]
struct ImageRequest {
    n: Option<u64>,
    size: Option<String>,
}

#[derive(Deserialize)]
struct VideoRequest {
    seconds: Option<u64>,
    resolution: Option<String>,
}

#[derive(Deserialize)]
struct ChatRequest {
    max_tokens: Option<u64>,
    #[serde(default)]
    stream: bool,
}

#[derive(Serialize)]
struct ImageAnswer<'a> {
    data: Vec<serde_json::Value>,
    size: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<ImageUsage<'a>>,
}

#[derive(Serialize)]
struct ImageUsage<'a> {
    images: &'a RawValue,
}

#[derive(Serialize)]
struct VideoAnswer<'a> {
    status: &'static str,
    url: &'static str,
    seconds: u64,
    resolution: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<VideoUsage<'a>>,
}

#[derive(Serialize)]
struct VideoUsage<'a> {
    seconds: &'a RawValue,
}

#[derive(Serialize)]
struct ChatAnswer<'a> {
    id: &'static str,
    object: &'static str,
    choices: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<ChatUsage<'a>>,
}

#[derive(Serialize)]
struct ChatUsage<'a> {
    prompt_tokens: u64,
    completion_tokens: &'a RawValue,
}

/// The answer to a request on one of the paths that `handle` lets through. `told` replaces the true
/// usage; `silent` tells none.
pub(super) fn answer(
    path: &str,
    body: &[u8],
    told: Option<&[u8]>,
    silent: bool,
) -> Result<Answer, Refused> {
    let usage = |truth: u64| match told {
        _ if silent => Ok(None),
        Some(told) => raw(told).map(Some),
        None => raw(truth.to_string().as_bytes()).map(Some),
    };
    match path {
        "/v1/images/generate" => images(&parse(body)?, usage),
        "/v1/videos" => video(&parse(body)?, usage),
        "/v1/chat/completions" => chat(&parse(body)?, usage),
        "/v1/models" => plain(&json!({ "data": [{ "id": "sample", "object": "model" }] }), None),
        _ => plain(&json!({ "status": "ok" }), None),
    }
}

type Usage = Option<Box<RawValue>>;

fn images(
    request: &ImageRequest,
    usage: impl Fn(u64) -> Result<Usage, Refused>,
) -> Result<Answer, Refused> {
    let n = request.n.unwrap_or(1);
    if !(1..=MAX_IMAGES).contains(&n) {
        return Err(Refused("n is 1 to 16"));
    }
    let usage = usage(n)?;
    let body = ImageAnswer {
        data: (0..n).map(|_| json!({ "url": PIXEL })).collect(),
        size: request.size.as_deref().unwrap_or("1024x1024"),
        usage: usage.as_deref().map(|images| ImageUsage { images }),
    };
    plain(&body, usage.as_deref())
}

fn video(
    request: &VideoRequest,
    usage: impl Fn(u64) -> Result<Usage, Refused>,
) -> Result<Answer, Refused> {
    let seconds = request.seconds.unwrap_or(5);
    if !(1..=MAX_SECONDS).contains(&seconds) {
        return Err(Refused("seconds is 1 to 60"));
    }
    let usage = usage(seconds)?;
    let body = VideoAnswer {
        status: "completed",
        url: NO_FRAME,
        seconds,
        resolution: request.resolution.as_deref().unwrap_or("540p"),
        usage: usage.as_deref().map(|seconds| VideoUsage { seconds }),
    };
    plain(&body, usage.as_deref())
}

fn chat(
    request: &ChatRequest,
    usage: impl Fn(u64) -> Result<Usage, Refused>,
) -> Result<Answer, Refused> {
    let tokens = request.max_tokens.unwrap_or(TOKENS).min(TOKENS);
    let usage = usage(tokens)?;
    let told =
        usage.as_deref().map(|completion_tokens| ChatUsage { prompt_tokens: 8, completion_tokens });
    let (id, words) = ("chatcmpl-sample", "word ");
    if !request.stream {
        let finish = if tokens < TOKENS { "length" } else { "stop" };
        let content = words.repeat(usize::try_from(tokens).unwrap_or(0));
        let message = json!({ "role": "assistant", "content": content });
        let choices = vec![json!({ "index": 0, "message": message, "finish_reason": finish })];
        let body = ChatAnswer { id, object: "chat.completion", choices, usage: told };
        return plain(&body, usage.as_deref());
    }
    let object = "chat.completion.chunk";
    let mut pieces = Vec::new();
    for _ in 0..tokens {
        let choices = vec![json!({ "index": 0, "delta": { "content": words } })];
        pieces.push(event(&ChatAnswer { id, object, choices, usage: None })?);
    }
    if told.is_some() {
        pieces.push(event(&ChatAnswer { id, object, choices: Vec::new(), usage: told })?);
    }
    pieces.push(Bytes::from_static(b"data: [DONE]\n\n"));
    Ok(Answer { pieces, streamed: true, usage: None })
}

fn plain(body: &impl Serialize, usage: Option<&RawValue>) -> Result<Answer, Refused> {
    let json = serde_json::to_vec(body).map_err(|_| Refused("the answer is not JSON"))?;
    let usage = usage.map(|usage| usage.get().to_owned());
    Ok(Answer { pieces: vec![json.into()], streamed: false, usage })
}

fn event(body: &impl Serialize) -> Result<Bytes, Refused> {
    let json = serde_json::to_string(body).map_err(|_| Refused("the answer is not JSON"))?;
    Ok(format!("data: {json}\n\n").into())
}

fn parse<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|_| Refused("the body is not the JSON expected here"))
}

fn raw(json: &[u8]) -> Result<Box<RawValue>, Refused> {
    serde_json::from_slice(json).map_err(|_| Refused("x-sample-usage is not JSON"))
}
