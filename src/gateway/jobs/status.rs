//! What a status document says.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::super::pick::Picker;
use super::super::quote::quantity_of;
use crate::core::note::JobNote;

/// How a job stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is not over, as far as the document can be read.
    Running,
    /// It made nothing, whatever the document tells of its usage (D32).
    Failed,
    /// It is done.
    Succeeded(Used),
}

/// What was used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Used {
    /// The route does not say where that is told: what was held.
    Unasked,
    /// It was not told, or not as an amount.
    Missing,
    /// By meter, in millionths.
    Told(Vec<u64>),
}

/// Reads a status document; `held` are the quantities by meter, which count where nothing is told.
pub(super) fn read(job: &JobNote, held: &[u64], text: &[u8]) -> Standing {
    let mut picker = Picker::default();
    let Ok(status) = picker.add(&job.status) else { return Standing::Running };
    let places: Vec<Option<usize>> = (job.usage.iter())
        .map(|pointer| pointer.as_deref().and_then(|pointer| picker.add(pointer).ok()))
        .collect();
    let Ok(picked) = picker.pick(text) else { return Standing::Running };
    let Some(word) = picked[status].map(word_of) else { return Standing::Running };
    if job.failed.iter().any(|known| *known == word) {
        return Standing::Failed;
    }
    if !job.succeeded.iter().any(|known| *known == word) {
        return Standing::Running;
    }
    if places.iter().all(Option::is_none) {
        return Standing::Succeeded(Used::Unasked);
    }
    let used = places.iter().zip(held).map(|(place, held)| match place {
        Some(place) => picked[*place].and_then(quantity_of),
        None => Some(*held),
    });
    let used: Option<Vec<u64>> = used.collect();
    Standing::Succeeded(used.map_or(Used::Missing, Used::Told))
}

/// A text, or whatever else stands there as it is written: `true`, say.
fn word_of(raw: &RawValue) -> Cow<'_, str> {
    let text = raw.get();
    let read = if text.starts_with('"') { serde_json::from_str(text).ok() } else { None };
    read.map_or(Cow::Borrowed(text), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(usage: &[Option<&str>]) -> JobNote {
        JobNote {
            status: "/state/name".to_owned(),
            succeeded: vec!["completed".to_owned(), "true".to_owned()],
            failed: vec!["failed".to_owned()],
            usage: usage.iter().map(|pointer| pointer.map(str::to_owned)).collect(),
            ..JobNote::default()
        }
    }

    #[test]
    fn d34_a_document_says_how_its_job_stands_or_nothing() {
        let told = |used: &[u64]| Standing::Succeeded(Used::Told(used.to_vec()));
        let (unasked, missing) =
            (Standing::Succeeded(Used::Unasked), Standing::Succeeded(Used::Missing));
        let none = &[None, None][..];
        let one = &[Some("/used/a"), None][..];
        for (usage, text, expected) in [
            (none, r#"{"state":{"name":"completed"}}"#, unasked),
            (none, r#"{"state":{"name":true}}"#, Standing::Succeeded(Used::Unasked)),
            (none, r#"{"state":{"name":"comp\u006ceted"}}"#, Standing::Succeeded(Used::Unasked)),
            (none, r#"{"state":{"name":"failed"},"used":{"a":9}}"#, Standing::Failed),
            (none, r#"{"state":{"name":"queued"}}"#, Standing::Running),
            (none, r#"{"state":{"name":"Completed"}}"#, Standing::Running),
            (none, r#"{"state":{"name":"failed","name":"completed"}}"#, Standing::Running),
            (none, r#"{"state":{"name":"failed"}"#, Standing::Running),
            (none, r#"{"state":"failed"}"#, Standing::Running),
            (none, "", Standing::Running),
            (none, "[]", Standing::Running),
            (one, r#"{"state":{"name":"completed"},"used":{"a":1.5}}"#, told(&[1_500_000, 7])),
            (one, r#"{"state":{"name":"completed"},"used":{"a":0}}"#, told(&[0, 7])),
            (one, r#"{"state":{"name":"completed"},"used":{"a":"2"}}"#, told(&[2_000_000, 7])),
            (one, r#"{"state":{"name":"completed"},"used":{"a":-1}}"#, missing),
            (
                one,
                r#"{"state":{"name":"completed"},"used":{"a":null}}"#,
                Standing::Succeeded(Used::Missing),
            ),
            (one, r#"{"state":{"name":"completed"}}"#, Standing::Succeeded(Used::Missing)),
        ] {
            assert_eq!(read(&job(usage), &[3, 7], text.as_bytes()), expected, "{text}");
        }
    }
}
