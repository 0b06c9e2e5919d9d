//! The walk of `demo --once`: each step is a real request, and has to come out as the rules say.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::{ExposeSecret, SecretString};

use super::KEYS;
use crate::cli::output::say;

/// A request and what must come of it.
struct Step {
    /// What it shows.
    title: &'static str,
    org: &'static str,
    user: &'static str,
    path: &'static str,
    body: &'static str,
    /// What the backend is asked for: a header and its value.
    asks: Option<(&'static str, &'static str)>,
    status: u16,
    /// Parts of the receipt; or, where there is none, of the problem document.
    expect: &'static [&'static str],
}

const IMAGE: &str = "/v1/images/generate";
const VIDEO: &str = "/v1/videos";
const CHAT: &str = "/v1/chat/completions";
const ONE_SECOND: &str = r#"{"seconds": 1, "resolution": "1080p"}"#;
const TWO_SECONDS: &str = r#"{"seconds": 2, "resolution": "1080p"}"#;

const PLAIN: Step = Step {
    title: "",
    org: "acme",
    user: "alice",
    path: VIDEO,
    body: ONE_SECOND,
    asks: None,
    status: 200,
    expect: &[],
};

const STEPS: &[Step] = &[
    Step {
        title: "alice has 250 credits: the seat pays an image (D1)",
        path: IMAGE,
        body: r#"{"n": 1}"#,
        expect: &[
            "state=captured",
            "cost=\"1\"",
            "seat=\"1\"",
            "pool=\"0\"",
            "seat-remaining=\"249\"",
        ],
        ..PLAIN
    },
    Step {
        title: "a video is a job: two seconds are held, and charged when it has succeeded (D34)",
        body: TWO_SECONDS,
        expect: &[
            "state=held",
            "seat=\"200\"",
            "pool=\"0\"",
            "seat-remaining=\"49\"",
            "its job succeeded: captured, 200 credits",
        ],
        ..PLAIN
    },
    Step {
        title: "a second costs 100, the seat has 49: split, the pool pays the other 51 % (D25)",
        expect: &[
            "cost=\"100\"",
            "seat=\"49\"",
            "pool=\"1.02\"",
            "seat-remaining=\"0\"",
            "pool-remaining=\"38.98\"",
        ],
        ..PLAIN
    },
    Step {
        title: "the seat is empty: the pool pays",
        expect: &["cost=\"100\"", "seat=\"0\"", "pool=\"2\"", "pool-remaining=\"36.98\""],
        ..PLAIN
    },
    Step {
        title: "bob has 100 credits and no pool access: the seat pays",
        user: "bob",
        expect: &["cost=\"100\"", "seat=\"100\"", "seat-remaining=\"0\""],
        ..PLAIN
    },
    Step {
        title: "his seat is empty: refused, and told what is missing (D14)",
        user: "bob",
        status: 402,
        expect: &["\"code\":\"seat_exhausted\"", "\"offer\"", "\"base\""],
        ..PLAIN
    },
    Step {
        title: "carol has 10 credits and may draw 3 Operations a cycle",
        user: "carol",
        expect: &["seat=\"10\"", "pool=\"1.8\"", "overage=\"0\""],
        ..PLAIN
    },
    Step {
        title: "another second would draw 2 more: refused (D17)",
        user: "carol",
        status: 402,
        expect: &["\"code\":\"pool_limit_reached\"", "\"decided_by\""],
        ..PLAIN
    },
    Step {
        title: "dave's generation fails: it costs nothing (D32)",
        user: "dave",
        path: IMAGE,
        body: r#"{"n": 4}"#,
        asks: Some(("X-Sample-Fail", "500")),
        status: 500,
        expect: &["state=voided", "cost=\"0\"", "seat=\"0\"", "seat-remaining=\"100\""],
        ..PLAIN
    },
    Step {
        title: "his video's job fails later: what was held returns (D32, D34)",
        user: "dave",
        asks: Some(("X-Sample-Job", "polls=1,end=failed")),
        expect: &["state=held", "seat=\"100\"", "its job failed: voided, 0 credits"],
        ..PLAIN
    },
    Step {
        title: "he asks for a chat of 400 tokens and streams 20: the last event is the receipt",
        user: "dave",
        path: CHAT,
        body: r#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400, "stream": true}"#,
        asks: Some(("X-Sample-Tokens", "20")),
        expect: &["event: tollgate.receipt", "\"state\":\"captured\",\"cost\":\"0.02\""],
        ..PLAIN
    },
    Step {
        title: "globex bills overage: erin's 10 credits, the pool's 3 Operations, 0.8 beyond (D26)",
        org: "globex",
        user: "erin",
        body: TWO_SECONDS,
        expect: &[
            "cost=\"200\"",
            "seat=\"10\"",
            "pool=\"3\"",
            "overage=\"0.8\"",
            "pool-remaining=\"0\"",
        ],
        ..PLAIN
    },
];

/// Plays the walk and prints it; true if every step came out right.
pub fn play(gateway: SocketAddr, admin: SocketAddr, token: &SecretString) -> anyhow::Result<bool> {
    let mut right = 0;
    for (index, step) in STEPS.iter().enumerate() {
        let (status, told) = request(gateway, step)?;
        let missing: Vec<&str> =
            step.expect.iter().copied().filter(|part| !told.contains(part)).collect();
        let fine = status == step.status && missing.is_empty();
        let asked = format!(
            "{}. {}\n   {} {} as {} of {}\n",
            index + 1,
            step.title,
            step.path,
            step.body,
            step.user,
            step.org
        );
        say(&format!("{asked}   {} {status} {told}\n\n", if fine { "ok" } else { "WRONG" }))?;
        if !fine {
            say(&format!("   expected {} with {missing:?}\n\n", step.status))?;
        }
        right += usize::from(fine);
    }
    for org in ["acme", "globex"] {
        say(&format!("What is left at {org}: {}\n\n", pool(admin, token, org)?))?;
    }
    say(&format!("{right} of {} steps came out as the rules say\n", STEPS.len()))?;
    Ok(right == STEPS.len())
}

/// The status, and the receipt or else the problem document.
fn request(gateway: SocketAddr, step: &Step) -> anyhow::Result<(u16, String)> {
    let key = KEYS.iter().find(|(org, _)| *org == step.org).map_or("", |(_, key)| key);
    let mut request = ureq::post(format!("http://{gateway}{}", step.path))
        .config()
        .proxy(None)
        .http_status_as_error(false)
        .build()
        .header("Authorization", format!("Bearer {key}"))
        .header("Tollgate-User", step.user)
        .header("Content-Type", "application/json");
    if let Some((name, value)) = step.asks {
        request = request.header(name, value);
    }
    let mut response = request.send(step.body)?;
    let status = response.status().as_u16();
    let receipt = response.headers().get("tollgate-receipt").map(|value| value.to_str());
    let receipt = receipt.transpose()?.map(str::to_owned);
    let body = response.body_mut().read_to_string()?;
    let Some(receipt) = receipt else { return Ok((status, body)) };
    let mut told = format!("Tollgate-Receipt: {receipt}");
    if step.path == CHAT {
        let last = body.rsplit("\n\n").find(|event| !event.is_empty()).unwrap_or_default();
        told += &format!("\n      and at its end {}", last.replace('\n', ", "));
    } else if step.path == VIDEO {
        let job: serde_json::Value = serde_json::from_str(&body)?;
        let job = job["id"].as_str().context("the backend names no job")?;
        let ended = wait_for(gateway, (step, key), job)?;
        let charge = receipt.split('"').nth(1).unwrap_or_default();
        let charge = get(gateway, (step, key), &format!("/.tollgate/v1/charges/{charge}"))?;
        told += &format!(
            "\n      its job {ended}: {}, {} credits",
            charge["state"].as_str().unwrap_or_default(),
            charge["cost"].as_str().unwrap_or_default()
        );
    }
    Ok((status, told))
}

/// Polls a job until it is over.
#[expect(clippy::disallowed_methods, reason = "a command has nothing else to do")]
fn wait_for(gateway: SocketAddr, who: (&Step, &str), job: &str) -> anyhow::Result<String> {
    for _ in 0..100 {
        let document = get(gateway, who, &format!("{VIDEO}/{job}"))?;
        match document["status"].as_str() {
            Some("queued" | "in_progress") => std::thread::sleep(Duration::from_millis(50)),
            status => return Ok(status.unwrap_or("says nothing").to_owned()),
        }
    }
    anyhow::bail!("job {job} does not end")
}

fn get(
    gateway: SocketAddr,
    (step, key): (&Step, &str),
    path: &str,
) -> anyhow::Result<serde_json::Value> {
    let mut answer = ureq::get(format!("http://{gateway}{path}"))
        .config()
        .proxy(None)
        .build()
        .header("Authorization", format!("Bearer {key}"))
        .header("Tollgate-User", step.user)
        .call()?;
    Ok(serde_json::from_str(&answer.body_mut().read_to_string()?)?)
}

fn pool(admin: SocketAddr, token: &SecretString, org: &str) -> anyhow::Result<String> {
    let mut answer = ureq::get(format!("http://{admin}/v1/orgs/{org}/pool"))
        .config()
        .proxy(None)
        .build()
        .header("Authorization", format!("Bearer {}", token.expose_secret()))
        .call()?;
    Ok(answer.body_mut().read_to_string()?)
}
