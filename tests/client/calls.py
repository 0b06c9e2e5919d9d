"""OpenAI's client, used as its own documentation does, with nothing of the gateway's in it but the
address, the key and one header. Prints what came of each call that is named as JSON; the test
judges it.
"""

import json
import sys

import openai

base_url, key, *names = sys.argv[1:]
MESSAGES = [{"role": "user", "content": "one two three"}]


def of(user, **options):
    client = openai.OpenAI(base_url=base_url, api_key=key)
    return client.with_options(default_headers={"Tollgate-User": user}, **options)


def chat(client, **more):
    return client.chat.completions.create(model="sample", messages=MESSAGES, **more)


def plain():
    raw = of("alice").chat.completions.with_raw_response.create(
        model="sample", messages=MESSAGES, max_tokens=6
    )
    answer = raw.parse()
    choice = answer.choices[0]
    return {
        "content": choice.message.content,
        "finish_reason": choice.finish_reason,
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens],
        "receipt": raw.headers.get("tollgate-receipt"),
    }


def streamed(**more):
    tokens, finish, usage, chunks = [], [], [], 0
    with chat(of("bob"), max_tokens=4, stream=True, **more) as stream:
        for chunk in stream:
            chunks += 1
            for choice in chunk.choices:
                if choice.delta.content:
                    tokens.append(choice.delta.content)
                if choice.finish_reason:
                    finish.append(choice.finish_reason)
            if chunk.usage:
                usage.append(chunk.usage.completion_tokens)
    return {"tokens": tokens, "finish": finish, "usage": usage, "chunks": chunks}


def left():
    """Leaves in the middle of a stream."""
    headers = {"X-Sample-Pace": "20"}
    with chat(of("dave"), max_tokens=4, stream=True, extra_headers=headers,
              stream_options={"include_usage": True}) as stream:
        return {"first": next(iter(stream)).object}


def sliced(user):
    """A stream that its gateway may end before its backend does."""
    tokens = []
    try:
        with chat(of(user), max_tokens=20, stream=True) as stream:
            for chunk in stream:
                tokens += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    except openai.APIError as error:
        return {
            "raised": type(error).__name__,
            "code": error.code,
            "type": error.type,
            "message": error.message,
            "problem": error.body["problem"],
            "tokens": len(tokens),
        }
    return {"raised": None, "tokens": len(tokens)}


def images():
    answer = of("alice").images.generate(prompt="a", n=2, model="sample")
    return {"images": len(answer.data), "url": answer.data[0].url[:15]}


def error(call):
    try:
        call()
    except openai.APIStatusError as error:
        problem = error.body["problem"] if "problem" in error.body else None
        return {
            "raised": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "type": error.type,
            "message": error.message,
            "request_id": error.request_id,
            "problem": problem,
        }
    return {"raised": None}


calls = {
    "plain": plain,
    "streamed": lambda: streamed(stream_options={"include_usage": True}),
    "silent": streamed,
    "left": left,
    "images": images,
    "exhausted": lambda: error(lambda: chat(of("carol"), max_tokens=6)),
    "exhausted_stream": lambda: error(lambda: chat(of("carol"), max_tokens=6, stream=True)),
    "exhausted_429": lambda: error(
        lambda: chat(of("carol").with_options(base_url=f"{base_url}/limited"), max_tokens=6)
    ),
    "unquotable": lambda: error(lambda: chat(of("alice"), max_tokens=-1)),
    "unknown_user": lambda: error(lambda: chat(of("nobody"))),
    "unauthenticated": lambda: error(
        lambda: chat(of("alice").with_options(api_key="tg_no_key_of_this_gateway_1"))
    ),
    "failed": lambda: error(
        lambda: chat(of("alice", max_retries=1), extra_headers={"X-Sample-Fail": "503"})
    ),
    "stopped": lambda: sliced("erin"),
    "received": lambda: sliced("frank"),
}
print(json.dumps({name: calls[name]() for name in names}))
