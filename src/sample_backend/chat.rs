//! A chat that says the same word for as many tokens as it is asked for, in the shapes of OpenAI's
//! API (<https://platform.openai.com/docs/api-reference/chat>), whole or as events.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::answer::{Answer, CREATED, Refused, clipped, parse};
use super::ask::{Ask, MAX_TOKENS, Usage};

/// How long an answer is that nobody bounds.
const TOKENS: u64 = 16;
const TOKEN: &str = "word ";
const MAX_CHOICES: u64 = 8;
const MAX_MODEL: usize = 64;

#[derive(Deserialize)]
struct Request {
    model: Option<String>,
    #[serde(default)]
    messages: Vec<Message>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    n: Option<u64>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Value>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// What there is to say.
struct Speech {
    id: String,
    model: String,
    /// How many answers, and how many tokens each has.
    choices: u64,
    tokens: u64,
    finish: &'static str,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a RawValue>,
}

/// The answer to the request of this number.
pub(super) fn chat(body: &[u8], ask: &Ask, number: u64) -> Result<Answer, Refused> {
    let request: Request = parse(body)?;
    let bound = request.max_completion_tokens.or(request.max_tokens);
    if bound.is_some_and(|bound| !(1..=MAX_TOKENS).contains(&bound)) {
        return Err(Refused("max_tokens is 1 to 32768"));
    }
    let choices = request.n.unwrap_or(1);
    if !(1..=MAX_CHOICES).contains(&choices) {
        return Err(Refused("n is 1 to 8"));
    }
    // Without a word on its length, an answer is as long as it may be.
    let wanted = ask.tokens.unwrap_or(bound.unwrap_or(TOKENS));
    let tokens = wanted.min(bound.unwrap_or(MAX_TOKENS));
    let is_cut = bound.is_some_and(|bound| ask.tokens.is_none_or(|wanted| wanted > bound));
    let speech = Speech {
        id: format!("chatcmpl-{number}"),
        model: clipped(request.model.as_deref().unwrap_or("sample"), MAX_MODEL).to_owned(),
        choices,
        tokens,
        finish: if is_cut { "length" } else { "stop" },
    };
    let usage = usage(ask, words(&request.messages), choices * tokens);
    if request.stream {
        let is_wanted = request.stream_options.is_some_and(|options| options.include_usage);
        Ok(speech.stream(is_wanted, usage))
    } else {
        speech.whole(usage.as_ref())
    }
}

fn usage(ask: &Ask, prompt: u64, completion: u64) -> Option<Usage> {
    let total = prompt.saturating_add(ask.told.number().unwrap_or(completion));
    ask.told.usage(
        ("completion_tokens", completion),
        &format!("\"prompt_tokens\":{prompt},"),
        &format!(",\"total_tokens\":{total}"),
    )
}

/// What the prompt comes to: a token a word.
fn words(messages: &[Message]) -> u64 {
    let count = |text: &str| text.split_whitespace().count();
    let sum: usize = messages
        .iter()
        .map(|message| match &message.content {
            Some(Value::String(text)) => count(text),
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part["text"].as_str()).map(count).sum()
            }
            _ => 0,
        })
        .sum();
    u64::try_from(sum).unwrap_or(u64::MAX)
}

impl Speech {
    fn whole(&self, usage: Option<&Usage>) -> Result<Answer, Refused> {
        let content = TOKEN.repeat(usize::try_from(self.tokens).unwrap_or(0));
        let message = json!({ "role": "assistant", "content": content, "refusal": null });
        let choice = |index| {
            json!({
                "index": index, "message": message, "logprobs": null, "finish_reason": self.finish,
            })
        };
        let body = Completion {
            id: &self.id,
            object: "chat.completion",
            created: CREATED,
            model: &self.model,
            choices: (0..self.choices).map(choice).collect(),
            usage: usage.map(|usage| &*usage.object),
        };
        Answer::json(&body, usage)
    }

    /// The role of each choice, its tokens, its end; the usage where it is wanted; `[DONE]`.
    fn stream(self, is_wanted: bool, usage: Option<Usage>) -> Answer {
        // Where usage comes at the end, every event before it says that it has none.
        let none = is_wanted.then_some(RawValue::NULL);
        let last = usage.filter(|_| is_wanted);
        let chunks = self.choices * (self.tokens + 2);
        let count = chunks + u64::from(last.is_some()) + 1;
        let events = (0..count).map(move |at| {
            if at < chunks {
                let (step, index) = (at / self.choices, at % self.choices);
                self.event(vec![self.choice(index, step)], none)
            } else if at + 1 < count {
                self.event(Vec::new(), last.as_ref().map(|usage| &*usage.object))
            } else {
                Bytes::from_static(b"data: [DONE]\n\n")
            }
        });
        Answer::events(usize::try_from(count).unwrap_or(usize::MAX), events)
    }

    /// What a choice's event of this step has.
    fn choice(&self, index: u64, step: u64) -> Value {
        let (delta, finish) = match step {
            0 => (json!({ "role": "assistant", "content": "" }), None),
            step if step <= self.tokens => (json!({ "content": TOKEN }), None),
            _ => (json!({}), Some(self.finish)),
        };
        json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish })
    }

    fn event(&self, choices: Vec<Value>, usage: Option<&RawValue>) -> Bytes {
        let object = "chat.completion.chunk";
        let (id, model) = (&*self.id, &*self.model);
        let chunk = Completion { id, object, created: CREATED, model, choices, usage };
        // Nothing in it can fail to be JSON.
        let json = serde_json::to_string(&chunk).unwrap_or_default();
        format!("data: {json}\n\n").into()
    }
}
