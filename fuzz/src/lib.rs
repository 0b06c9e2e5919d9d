//! What is fuzzed: each function takes any bytes, and panics where the code breaks a promise.
//!
//! `fuzz/run` drives them with libFuzzer; `tests/cli/mutated.rs` runs the same functions on mutated
//! valid inputs in every test run.

use std::io::Write;
use std::sync::Arc;

use http::HeaderMap;
use serde_json::Value;
use tollgate::books::Durability;
use tollgate::books::journal::{Cursor, Frames, Journal, Next, Segments};
use tollgate::books::recover::recover;
use tollgate::books::redis::foreign;
use tollgate::books::redis::ledger::Entry;
use tollgate::config::{self, Pick, Usage};
use tollgate::core::record::Record;
use tollgate::directory::file::Source;
use tollgate::gateway::form::Form;
use tollgate::gateway::head::{Facts, Head};
use tollgate::gateway::inject::Inject;
use tollgate::gateway::pick::Picker;
use tollgate::gateway::quote::parameter;
use tollgate::gateway::usage::{Fed, Names, Reading, Rules};

/// A configuration file: accepted, or refused with a place and what was expected; and what is
/// accepted can be printed.
pub fn config_text(data: &[u8]) {
    match config::from_bytes("fuzz.toml".into(), data.to_vec(), std::iter::empty()) {
        Ok(loaded) => drop(loaded.config.print().unwrap()),
        Err(error) => {
            assert!(!error.problems.is_empty());
            for problem in &error.problems {
                let line = problem.to_string();
                assert!(line.starts_with("fuzz.toml") && !problem.expected.is_empty(), "{line}");
                assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
            }
        }
    }
}

/// An org file, as TOML and as JSON: it is read, or its problems have a place and a text.
pub fn org_file(data: &[u8]) {
    let toml = std::str::from_utf8(data).map(Source::from_toml);
    let json = Source::from_json(data);
    for source in toml.into_iter().chain([json]).flatten() {
        for problem in source.document().problems {
            assert!(problem.pointer.is_empty() || problem.pointer.starts_with('/'), "{problem}");
            assert!(!problem.detail.is_empty());
        }
        // What is sent is what was read.
        assert!(Source::from_json(&source.to_json()).is_ok());
    }
}

/// A JSON text and a pointer, separated by a line feed: what is picked is what a reader of the
/// whole document finds there.
pub fn pointer(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (pointer, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(pointer) = std::str::from_utf8(pointer) else { return };
    let mut picker = Picker::default();
    if picker.add(pointer).is_err() {
        return;
    }
    let tree = serde_json::from_slice::<Value>(text);
    for picked in [picker.pick(text), picker.pick_strictly(text)].into_iter().flatten() {
        // Numbers that a tree cannot hold are picked as text all the same.
        let Ok(tree) = &tree else { continue };
        let found = picked[0].map(|raw| serde_json::from_str::<Value>(raw.get()).unwrap());
        assert_eq!(found.as_ref(), tree.pointer(pointer), "{pointer:?}");
    }
}

/// A record's bytes: refused, or the same record again when it is written and read.
pub fn record(data: &[u8]) {
    let mut bytes = Vec::new();
    let Ok(record) = Record::decode(data) else { return };
    record.encode(&mut bytes).unwrap();
    let again = Record::decode(&bytes).unwrap();
    assert_eq!(again, record);
}

/// What Redis says: a byte tells what the rest is read as, the reply to so many operations, the reply
/// to `join`, a stored hold, or any values. Nothing has more in it than there are bytes, whatever a
/// length says, and a value is what it was when it is packed again.
pub fn redis_reply(data: &[u8]) {
    let Some((what, said)) = data.split_first() else { return };
    let values = match what {
        251 => foreign::welcome(said),
        252 => foreign::joined(said).map_or(0, |joined| joined.err().unwrap_or_default()),
        253 => foreign::hold(said).unwrap_or_default(),
        254.. => {
            let values = foreign::values(said);
            for value in &values {
                let packed = foreign::pack(*value);
                assert_eq!(foreign::values(&packed).first(), Some(value));
            }
            values.len()
        }
        operations => foreign::reply(said, usize::from(*operations)).unwrap_or_default(),
    };
    assert!(values <= said.len(), "{values} values of {} bytes", said.len());
}

/// An entry of a shard's ledger: its records are as good as those of a journal.
pub fn redis_entry(data: &[u8]) {
    let Ok(entry) = Entry::read(data) else { return };
    assert!(entry.records.len() <= data.len());
    for record in entry.records {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        let again = Record::decode(&bytes).unwrap();
        assert_eq!(format!("{again:?}"), format!("{record:?}"));
    }
}

/// A journal: records of any bytes, whole frames of them, and any bytes behind them. The records
/// come back in order, whatever follows; and recovery ends with a state or says where it failed.
pub fn journal(data: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let (tail, records) = match data.split_first() {
        Some((length, rest)) => rest.split_at(usize::from(*length).min(rest.len())),
        None => return,
    };
    // No record is empty, and a frame without one is none.
    let records = records.split(|byte| *byte == 0xff).filter(|record| !record.is_empty());
    let records: Vec<&[u8]> = records.collect();
    let journal = Journal::open(dir.path(), 0, 1 << 20, Durability::Process).unwrap();
    let mut frames = Frames::default();
    records.iter().for_each(|record| frames.push_bytes(record));
    journal.append(&mut frames).unwrap();
    drop(journal);
    let segments = Segments::list(dir.path()).unwrap();
    let path = &segments.as_slice()[0].path;
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(tail).unwrap();
    let mut cursor = Cursor::new(dir.path(), 0);
    for record in records {
        assert_eq!(cursor.next().unwrap(), Next::Record);
        assert_eq!(cursor.record, record);
    }
    // A tail that is by chance a frame, or none: never a panic, and never an endless loop.
    while cursor.next().is_ok_and(|next| next == Next::Record) {}
    let _told_or_recovered = recover(dir.path(), None);
}

/// An event stream, in pieces and whole: what it tells is the same, nothing of it is added or lost
/// on its way, and where it says that it is done it waits.
pub fn sse(data: &[u8]) {
    streamed(data, "text/event-stream", None);
    let [_, cut, body @ ..] = data else { return };
    assert_eq!(ends(body, usize::from(*cut) + 1), ends(body, body.len().max(1)));
}

/// Where the events of a stream end that comes in pieces of this size.
fn ends(body: &[u8], size: usize) -> Vec<usize> {
    let mut head = HeaderMap::new();
    head.insert("content-type", "text/event-stream".parse().unwrap());
    let mut reader = Reading::new(&Arc::new(Rules::new(Pick::Last)), &head, Names::new());
    let (mut found, mut at) = (Vec::new(), 0);
    for mut piece in body.chunks(size) {
        while let Fed::Event(end) = reader.next(piece) {
            at += end;
            piece = &piece[end..];
            // The LF of an end that was told at its CR.
            if end == 1 && body[..at].ends_with(b"\r\n") && found.last() == Some(&(at - 1)) {
                found.pop();
            }
            found.push(at);
        }
        at += piece.len();
    }
    found
}

/// Lines of JSON, in pieces and whole.
pub fn ndjson(data: &[u8]) {
    streamed(data, "application/x-ndjson", None);
}

/// A body in a coding, which the first byte names: whatever it is, it is decoded within bounds, and
/// how it is cut changes nothing.
pub fn coding(data: &[u8]) {
    let Some((coding, rest)) = data.split_first() else { return };
    let codings = ["gzip", "deflate", "br", "zstd"];
    let coding = codings[usize::from(*coding) % codings.len()];
    streamed(rest, "text/event-stream", Some(coding));
    streamed(rest, "application/json", Some(coding));
}

/// The first byte chooses which usage counts and how the body ends, the second how it is cut.
fn streamed(data: &[u8], kind: &str, coding: Option<&str>) {
    let [how, cut, body @ ..] = data else { return };
    let pick = [Pick::Last, Pick::Sum, Pick::Max][usize::from(how % 3)];
    let pointer = Some(["/usage/n", ""][usize::from(how / 3 % 2)].to_owned());
    let usage = Usage {
        json: pointer.clone(),
        sse_json: pointer.clone(),
        ndjson_json: pointer,
        ..Usage::default()
    };
    let mut rules = Rules::new(pick);
    rules.add(Some(&usage)).unwrap();
    let rules = Arc::new(rules);
    let mut head = HeaderMap::new();
    head.insert("content-type", kind.parse().unwrap());
    if let Some(coding) = coding {
        head.insert("content-encoding", coding.parse().unwrap());
    }
    let complete = how / 6 % 2 == 0;
    let read = |size: usize| {
        let mut reading = Reading::new(&rules, &head, Names::new());
        let mut passed = 0;
        for piece in body.chunks(size) {
            let passes = reading.feed(piece);
            assert!(passes <= piece.len());
            assert!(passes == piece.len() || reading.is_done());
            passed += passes;
        }
        let done = reading.is_done();
        assert!(done || passed == body.len());
        reading.end(complete);
        let reported = reading.reported(&[7_000_000]);
        (reported, reading.is_unreadable(), reading.is_conflicting(), done)
    };
    let (pieces, whole) = (read(usize::from(*cut) + 1), read(body.len().max(1)));
    // What stands before something broken is decoded or not, as it is cut.
    if coding.is_none() || !(pieces.1 || whole.1) {
        assert_eq!(pieces, whole);
    }
}

/// A type, a line feed, and a form's bytes: what is read of it is read again when it is written
/// plainly, and what is told of a field is told of all that have its name.
pub fn form(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (kind, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(kind) = std::str::from_utf8(kind) else { return };
    let Ok(form) = Form::read(kind, body) else { return };
    let mut written = Vec::new();
    for part in form.parts() {
        let file = part.filename.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        let kind = part.kind.map(|kind| format!("\r\nContent-Type: {kind}")).unwrap_or_default();
        let name = part.name;
        let head = format!("Content-Disposition: form-data; name=\"{name}\"{file}{kind}");
        written.extend_from_slice(format!("--fuzz\r\n{head}\r\n\r\n").as_bytes());
        written.extend_from_slice(part.content);
        written.extend_from_slice(b"\r\n");
        // What is told of a name is told of the one part that has it.
        let named = form.parts().iter().filter(|other| other.name == part.name);
        if let Ok(text) = form.text(part.name) {
            assert_eq!(text.map(str::as_bytes), Some(part.content));
            assert_eq!((named.count(), part.filename), (1, None));
        } else if let Ok(files) = form.files(part.name) {
            let files = files.unwrap();
            assert!(files.count >= named.count() as u64);
            assert!(files.bytes >= part.content.len() as u64);
        }
    }
    written.extend_from_slice(b"--fuzz--");
    // Unless a content has the boundary by chance.
    if !body.windows(6).any(|window| window == b"--fuzz") {
        let again = Form::read("multipart/form-data; boundary=fuzz", &written).unwrap();
        assert_eq!(again.parts(), form.parts());
    }
}

/// A pointer, a line feed, and a JSON text: what is forwarded is the text with the value set there,
/// and everything else in it is as it was.
pub fn inject(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (pointer, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(pointer) = std::str::from_utf8(pointer) else { return };
    // It is the operator's own. A thousand keys deep, what is below takes a third of a second.
    if pointer.len() > 500 {
        return;
    }
    let values = [(pointer.to_owned(), toml::Value::from("set"))].into();
    let Ok(Some(inject)) = Inject::new(&values, None) else { return };
    let Ok(edited) = inject.apply(&HeaderMap::new(), text) else { return };
    let edited = edited.as_deref().unwrap_or(text);
    // Numbers that a tree cannot hold are passed on as text all the same.
    let (Ok(before), Ok(mut after)) =
        (serde_json::from_slice::<Value>(text), serde_json::from_slice::<Value>(edited))
    else {
        return;
    };
    assert_eq!(after.pointer(pointer), Some(&Value::from("set")), "{pointer:?}");
    assert!(inject.apply(&HeaderMap::new(), edited).is_ok_and(|edited| edited.is_none()));
    // Upwards from what was set, to where something was before.
    let mut keys: Vec<&str> = pointer.split('/').collect();
    while let Some(last) = keys.pop().filter(|_| !keys.is_empty()) {
        let above = keys.join("/");
        let key = last.replace("~1", "/").replace("~0", "~");
        let object = after.pointer_mut(&above).and_then(Value::as_object_mut).unwrap();
        match before.pointer(&format!("{above}/{last}")) {
            Some(value) => {
                object.insert(key, value.clone());
                break;
            }
            None => drop(object.remove(&key)),
        }
        if before.pointer(&above).is_some_and(Value::is_object) {
            break;
        }
    }
    assert_eq!(after, before, "{pointer:?}");
}

/// How to cut them, and a request's bytes: where hyper's own parser reads a head, it ends where it
/// was seen to end, and has the lines that were seen to frame its body.
pub fn head(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let mut head = Head::default();
    let end = head.feed(bytes);
    let (mut pieces, mut before, mut found) = (Head::default(), 0, None);
    for piece in bytes.chunks(usize::from(*cut) + 1) {
        found = pieces.feed(piece).map(|end| before + end);
        if found.is_some() {
            break;
        }
        before += piece.len();
    }
    assert_eq!((found, pieces.facts, pieces.length), (end, head.facts, head.length));
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Err(_) => {}
        Ok(httparse::Status::Partial) => assert_eq!(end, None),
        Ok(httparse::Status::Complete(length)) => {
            assert_eq!(end, Some(length));
            let count = |name: &str| {
                request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count()
            };
            let lengths = count("content-length");
            assert_eq!(head.facts.has(Facts::LENGTH), lengths > 0);
            assert_eq!(head.facts.has(Facts::LENGTHS), lengths > 1);
            assert_eq!(head.facts.has(Facts::CODING), count("transfer-encoding") > 0);
        }
    }
}

/// A parameter's name, a line feed, and a query: what is read of it is what the standard's reader
/// of forms finds, and that finds it once.
pub fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((name, query)) = text.split_once('\n').filter(|(name, _)| !name.is_empty()) else {
        return;
    };
    let Ok(found) = parameter(query, name) else { return };
    let read: Vec<_> = form_urlencoded::parse(query.as_bytes())
        .filter_map(|(key, value)| (key == name).then_some(value))
        .collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), read, "{query:?}");
}
