//! How the outcome of a route's jobs is found out, compiled once.

use jiff::SignedDuration;
use serde_json::value::RawValue;

use super::super::pick::Picker;
use super::super::quote::unescape;
use super::super::route::check_path;
use super::status::{self, Standing};
use crate::config::{self, OnDisconnect};
use crate::core::note::JobNote;

/// The longest id.
const MAX_ID: usize = 256;

/// How the outcome of a route's jobs is found out.
#[derive(Debug)]
pub struct Rules {
    id: Picker,
    /// The path of the status document, before the id and behind it.
    path: (Box<str>, Box<str>),
    /// What is noted of each job, but for its path.
    note: JobNote,
    /// How long a job is waited for.
    pub deadline: SignedDuration,
}

/// What the answer to a submission says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The job is over already.
    Over(Standing),
    /// It goes on: what is to be noted of it.
    Begun(JobNote),
    /// Nobody can tell which job it is.
    Nothing,
}

impl Rules {
    /// What the path of each of its jobs begins with, with nothing escaped.
    pub fn above(&self) -> Option<Box<str>> {
        unescape(&self.path.0, false).ok().map(Box::from)
    }

    /// The rules of a route, if it submits jobs.
    ///
    /// # Errors
    /// What of them makes no sense.
    pub fn of(route: &config::Route) -> Result<Option<Self>, String> {
        let Some(job) = &route.job else { return Ok(None) };
        if route.on_disconnect == OnDisconnect::Cancel {
            return Err("what submits jobs is finished when its client leaves".to_owned());
        }
        let mut id = Picker::default();
        id.add(&job.id).map_err(|error| error.to_string())?;
        Picker::default().add(&job.status).map_err(|error| error.to_string())?;
        let path = job.status_path.split_once(config::Job::PLACE);
        let path = path.ok_or_else(|| format!("`status_path` needs {}", config::Job::PLACE))?;
        let told =
            |usage: &Option<config::Usage>| usage.as_ref().and_then(|told| told.json.clone());
        let usage = match &*route.meter {
            [] => vec![told(&route.usage)],
            meters => meters.iter().map(|meter| told(&meter.usage)).collect(),
        };
        let note = JobNote {
            upstream: route.upstream.to_string(),
            path: String::new(),
            root: 0,
            status: job.status.clone(),
            succeeded: job.succeeded.clone(),
            failed: job.failed.clone(),
            usage,
            poll: u64::try_from(job.poll.as_millis()).unwrap_or(u64::MAX),
        };
        let deadline = SignedDuration::try_from(job.deadline).map_err(|error| error.to_string())?;
        Ok(Some(Self { id, path: (path.0.into(), path.1.into()), note, deadline }))
    }

    /// Reads the answer to a submission; `held` are the quantities by meter.
    pub(super) fn read(&self, held: &[u64], text: &[u8]) -> Told {
        match status::read(&self.note, held, text) {
            Standing::Running => {}
            over => return Told::Over(over),
        }
        let picked = self.id.pick(text).ok();
        let id = picked.and_then(|picked| id_of(picked[0]?));
        match id.and_then(|id| self.path_of(&id)) {
            Some(path) => {
                let root = path.len() - self.path.1.len();
                Told::Begun(JobNote { path, root, ..self.note.clone() })
            }
            None => Told::Nothing,
        }
    }

    /// The path of a job's status document; `None` for an id that would make another path of it.
    fn path_of(&self, id: &str) -> Option<String> {
        let mut path = String::from(&*self.path.0);
        for byte in id.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
        path.push_str(&self.path.1);
        ((1..=MAX_ID).contains(&id.len()) && check_path(&path).is_ok()).then_some(path)
    }
}

/// An id: a text, or a whole number.
fn id_of(raw: &RawValue) -> Option<String> {
    let text = raw.get();
    if text.starts_with('"') {
        return serde_json::from_str(text).ok();
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(more: &str) -> Rules {
        let text = format!(
            "path = \"/v1/videos\"\nupstream = \"media\"\nfeature = \"video\"\n{more}\n[job]\n\
             id = \"/id\"\nstatus_path = \"/v1/videos/{{job}}/status\"\nstatus = \"/status\"\n\
             succeeded = [\"completed\"]\nfailed = [\"failed\"]"
        );
        Rules::of(&toml::from_str(&text).unwrap()).unwrap().unwrap()
    }

    #[test]
    fn d34_the_answer_to_a_submission_names_the_job_or_nobody_can_follow_it() {
        let rules = rules("");
        let path = |text: &str| match rules.read(&[1], text.as_bytes()) {
            Told::Begun(job) => Some(job.path),
            Told::Nothing => None,
            Told::Over(standing) => panic!("{standing:?}"),
        };
        for (id, expected) in [
            ("\"video_1\"", "video_1"),
            ("7", "7"),
            ("\"a b:c@é\"", "a%20b%3Ac%40%C3%A9"),
            ("\"\\u0061\"", "a"),
            ("\"..a\"", "..a"),
        ] {
            let expected = format!("/v1/videos/{expected}/status");
            assert_eq!(path(&format!("{{\"id\":{id},\"status\":\"queued\"}}")), Some(expected));
        }
        let long = format!("\"{}\"", "a".repeat(257));
        for id in [
            "\"\"",
            "\"..\"",
            "\".\"",
            "\"a/b\"",
            "\"a?b\"",
            "\"a#b\"",
            "\"a%b\"",
            "\"a;b\"",
            "\"a\\\\b\"",
            "\"a\\nb\"",
            "1.5",
            "-1",
            "true",
            "null",
            "{}",
            "[]",
            &long,
        ] {
            assert_eq!(path(&format!("{{\"id\":{id}}}")), None, "{id}");
        }
        for text in ["", "{}", "[]", "{\"id\":\"a\"", "{\"id\":\"a\",\"id\":\"b\"}"] {
            assert_eq!(path(text), None, "{text}");
        }
    }

    #[test]
    fn d34_a_job_that_is_over_at_once_needs_no_id() {
        let rules = rules("usage = { json = \"/usage/seconds\" }");
        let read = |text: &str| rules.read(&[1], text.as_bytes());
        assert_eq!(read("{\"status\":\"failed\"}"), Told::Over(Standing::Failed));
        let done = read("{\"status\":\"completed\",\"usage\":{\"seconds\":2}}");
        let Told::Over(Standing::Succeeded(super::super::status::Used::Told(used))) = done else {
            panic!("{done:?}");
        };
        assert_eq!(used, [2_000_000]);
    }
}
