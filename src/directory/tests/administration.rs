//! Tokens, the audit, and requests that come twice.

use super::edits::{body, put};
use super::*;
use crate::directory::administration::{AuditQuery, Note};
use crate::directory::change::{Begun, Once, OnceKey};
use crate::directory::edit::{Edit, How};
use crate::directory::store::once;
use crate::directory::things::Kind;
use crate::directory::token::Role;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::Connection as _;

fn key(name: &str, fingerprint: u8) -> OnceKey {
    OnceKey::new("ci", name, &[fingerprint; 32]).unwrap()
}

fn once(name: &str, fingerprint: u8, now: &str) -> Write {
    let answer = |applied: &Applied| {
        assert!(applied.secrets.is_empty());
        let thing = applied.thing.as_ref();
        Answer {
            status: 201,
            etag: thing.map(|thing| thing.etag.clone()),
            body: thing.map(|thing| thing.document.clone()),
        }
    };
    let once = Once { key: key(name, fingerprint), answer: Box::new(answer) };
    Write { once: Some(once), ..Write::new("ci", at(now)) }
}

fn studio_two() -> Edit {
    put(Kind::Key, How::Create, &json!({ "id": "two", "kind": "service" }))
}

async fn written(bench: &Bench, edit: Edit, write: Write) -> Result<Written, ApplyError> {
    bench.directory.write(&id("acme"), edit, write).await
}

#[tokio::test]
async fn a_request_that_comes_twice_is_carried_out_once() {
    let bench = Bench::acme().await;
    let first = written(&bench, studio_two(), once("a", 1, NOVEMBER)).await.unwrap();
    let Written::Now(applied) = first else { panic!("{first:?}") };
    let secret = applied.secrets[0].1.expose_secret().to_owned();
    let version = bench.org().version;
    let bench = bench.reopen(1).await;
    match written(&bench, studio_two(), once("a", 1, NOVEMBER)).await.unwrap() {
        Written::Before(answer) => {
            assert_eq!(answer.status, 201);
            assert_eq!(answer.etag, Some(applied.thing.unwrap().etag));
            assert_eq!(answer.body.unwrap()["id"], "two");
        }
        now => panic!("{now:?}"),
    }
    assert_eq!(bench.org().version, version);
    // Another request under the same key is refused, also where it would change nothing.
    let group = || put(Kind::Group, How::Create, &json!({ "id": "g" }));
    let other = written(&bench, group(), once("a", 2, NOVEMBER)).await;
    assert!(matches!(other, Err(ApplyError::KeyReused)), "{other:?}");
    // What failed may come again.
    let failed = written(&bench, studio_two(), once("b", 3, NOVEMBER)).await;
    assert!(matches!(failed, Err(ApplyError::Conflict(_))), "{failed:?}");
    assert!(matches!(written(&bench, group(), once("b", 4, NOVEMBER)).await, Ok(Written::Now(_))));
    // A day later the key is free.
    let later = "2026-11-11T12:00:00Z";
    let again = written(&bench, studio_two(), once("a", 1, later)).await;
    assert!(matches!(again, Err(ApplyError::Conflict(_))), "{again:?}");
    // The secret is nowhere in the database.
    let Bench { dir, directory, .. } = bench;
    directory.close().await.unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!bytes.is_empty() && !found);
    }
}

#[tokio::test]
async fn answers_are_kept_up_to_a_size() {
    let bench = Bench::acme().await;
    let mut write = once("big", 1, NOVEMBER);
    let answer = |_: &Applied| Answer {
        status: 201,
        etag: None,
        body: Some(Value::from("x".repeat(once::LARGEST))),
    };
    write.once.as_mut().unwrap().answer = Box::new(answer);
    written(&bench, studio_two(), write).await.unwrap();
    let again = written(&bench, studio_two(), once("big", 1, NOVEMBER)).await;
    assert!(matches!(again, Err(ApplyError::AnswerGone)), "{again:?}");
    for wrong in ["", "a b", "ä", &"x".repeat(256)] {
        assert_eq!(OnceKey::new("ci", wrong, &[0; 32]), None);
    }
}

#[tokio::test]
async fn an_operation_elsewhere_is_begun_recorded_and_answered_once() {
    let bench = Bench::acme().await;
    let (directory, now) = (&bench.directory, at(NOVEMBER));
    let key = key("adjust", 1);
    assert_eq!(directory.begin(&key, "op-1", now).await.unwrap(), Begun::Fresh);
    // The process ended here: whoever repeats it is told which operation to ask for.
    let again = directory.begin(&key, "op-2", now).await.unwrap();
    assert_eq!(again, Begun::Again("op-1".to_owned()));
    directory.abandon(&key).await.unwrap();
    assert_eq!(directory.begin(&key, "op-3", now).await.unwrap(), Begun::Fresh);
    let note = Note {
        org: &id("acme"),
        who: "ci",
        now,
        kind: "adjustment",
        id: "op-3".to_owned(),
        line: "+ adjustment op-3 alice +5".to_owned(),
        before: None,
        after: Some(json!({ "credits": "5" })),
    };
    let answer = Answer { status: 201, etag: None, body: Some(json!({ "id": "op-3" })) };
    directory.record(note, Some((&key, &answer))).await.unwrap();
    assert_eq!(directory.begin(&key, "op-4", now).await.unwrap(), Begun::Before(answer));
    let other = directory.begin(&self::key("adjust", 2), "op-5", now).await;
    assert!(matches!(other, Err(ApplyError::KeyReused)), "{other:?}");
    let query = AuditQuery { limit: 1, ..AuditQuery::default() };
    let page = directory.audit(Some(&id("acme")), &query).await.unwrap();
    let [entry] = page.entries.as_slice() else { panic!("{page:?}") };
    assert_eq!((entry.kind.as_str(), entry.version), ("adjustment", None));
    assert_eq!(entry.after, Some(json!({ "credits": "5" })));
}

/// Has `token` send as many keys as are kept, one a second from `now` on.
async fn fill(bench: &Bench, token: &str, now: Timestamp) {
    let mut database = bench.directory.database.lock().await;
    let mut transaction = database.link.begin().await.unwrap();
    for number in 0..once::MOST {
        let now = now + jiff::SignedDuration::from_secs(number);
        let key = OnceKey::new(token, &format!("k{number}"), &[1; 32]).unwrap();
        let answer = Answer { status: 201, etag: None, body: None };
        once::keep(&mut transaction, &key, "", Some(&answer), now).await.unwrap();
    }
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn what_was_begun_is_known_whatever_others_send_and_however_late_it_is_asked() {
    let bench = Bench::acme().await;
    let (directory, now) = (&bench.directory, at(NOVEMBER));
    // The books answered that they cannot be reached: whether they adjusted is not known.
    let key = key("adjust", 1);
    assert_eq!(directory.begin(&key, "op-1", now).await.unwrap(), Begun::Fresh);
    let later = now + jiff::SignedDuration::from_secs(1);
    for token in ["ci", "other"] {
        fill(&bench, token, later).await;
        let again = directory.begin(&key, "op-2", later).await.unwrap();
        assert_eq!(again, Begun::Again("op-1".to_owned()), "after {token}");
    }
    let later = now + jiff::SignedDuration::from_hours(240);
    written(&bench, studio_two(), once("new", 1, &later.to_string())).await.unwrap();
    let again = directory.begin(&key, "op-3", later).await.unwrap();
    assert_eq!(again, Begun::Again("op-1".to_owned()));
}

#[tokio::test]
async fn a_token_that_sent_as_many_keys_as_are_kept_is_refused_a_new_one() {
    let bench = Bench::acme().await;
    let (directory, start) = (&bench.directory, at(NOVEMBER));
    let key = key("adjust", 1);
    assert_eq!(directory.begin(&key, "op-1", start).await.unwrap(), Begun::Fresh);
    fill(&bench, "ci", start + jiff::SignedDuration::from_secs(1)).await;
    let now = start + jiff::SignedDuration::from_hours(20);
    let full = directory.begin(&self::key("new", 1), "op-2", now).await;
    assert!(matches!(full, Err(ApplyError::TooManyKeys)), "{full:?}");
    let full = written(&bench, studio_two(), once("new", 1, &now.to_string())).await;
    assert!(matches!(full, Err(ApplyError::TooManyKeys)), "{full:?}");
    // Whatever is known is still answered, and what was begun can be ended.
    let known = directory.begin(&self::key("k0", 1), "op-2", now).await.unwrap();
    assert!(matches!(known, Begun::Before(_)), "{known:?}");
    let again = directory.begin(&key, "op-2", now).await.unwrap();
    assert_eq!(again, Begun::Again("op-1".to_owned()));
    let other = OnceKey::new("other", "new", &[1; 32]).unwrap();
    assert_eq!(directory.begin(&other, "op-3", now).await.unwrap(), Begun::Fresh);
    // When the oldest is a day old there is room again.
    let day = start + jiff::SignedDuration::from_hours(24) + jiff::SignedDuration::from_secs(1);
    let new = directory.begin(&self::key("new", 1), "op-2", day).await.unwrap();
    assert_eq!(new, Begun::Fresh);
}

#[tokio::test]
async fn the_audit_is_read_page_by_page_and_filtered() {
    let bench = Bench::acme().await;
    for number in 0..25 {
        let group = json!({ "id": format!("g{number}") });
        let now = format!("2026-11-10T12:00:{:02}.5Z", number);
        bench.write(put(Kind::Group, How::Create, &group), &now).await.unwrap();
    }
    let ids = |query: AuditQuery| async {
        let mut query = query;
        let mut ids = Vec::new();
        loop {
            let page = bench.directory.audit(Some(&id("acme")), &query).await.unwrap();
            assert!(page.entries.len() <= query.limit);
            ids.extend(page.entries.into_iter().map(|entry| entry.id));
            match page.next {
                Some(next) => query.before = Some(next),
                None => return ids,
            }
        }
    };
    let groups = |limit| AuditQuery {
        limit,
        kind: Some("group".to_owned()),
        from: Some(at("2026-11-10T12:00:00.5Z")),
        ..AuditQuery::default()
    };
    let expected: Vec<String> = (0..25).rev().map(|number| format!("g{number}")).collect();
    assert_eq!(ids(groups(7)).await, expected);
    assert_eq!(ids(groups(100)).await, expected);
    let some = AuditQuery {
        from: Some(at("2026-11-10T12:00:05.5Z")),
        to: Some(at("2026-11-10T12:00:07.5Z")),
        ..groups(1)
    };
    assert_eq!(ids(some).await, ["g6", "g5"]);
    let one = AuditQuery { id: Some("g3".to_owned()), ..groups(10) };
    assert_eq!(ids(one).await, ["g3"]);
    let nobody = AuditQuery { who: Some("nobody".to_owned()), ..groups(10) };
    assert!(ids(nobody).await.is_empty());
    let elsewhere = bench.directory.audit(Some(&id("other")), &groups(10)).await.unwrap();
    assert!(elsewhere.entries.is_empty());
}

#[tokio::test]
async fn tokens_are_made_found_and_revoked() {
    let bench = Bench::acme().await;
    let document = json!({
        "id": "ci", "role": "profile-admin", "org": "acme", "profiles": ["cce"],
        "expires": DECEMBER,
    });
    let made = bench.directory.create_token(&body(&document), once("t", 1, NOVEMBER)).await;
    let Written::Now(applied) = made.unwrap() else { panic!() };
    let [(name, secret)] = applied.secrets.as_slice() else { panic!("{applied:?}") };
    let secret = secret.expose_secret().to_owned();
    assert!(name.as_str() == "ci" && secret.starts_with("tga_") && secret.len() == 68);
    assert!(!format!("{applied:?}").contains(&secret));
    let again = bench.directory.create_token(&body(&document), once("t", 1, NOVEMBER)).await;
    let Written::Before(answer) = again.unwrap() else { panic!() };
    assert!(!answer.body.unwrap().to_string().contains(&secret));
    let bench = bench.reopen(1).await;
    let live = bench.directory.live();
    let find = |secret: &str, now: &str| live.load().tokens.find(secret, at(now)).cloned();
    let token = find(&secret, NOVEMBER).unwrap();
    assert_eq!((token.role, &token.created_by), (Role::ProfileAdmin, &"ci".to_owned()));
    assert_eq!((token.org.clone(), token.profiles.clone()), (Some(id("acme")), vec![id("cce")]));
    assert!(find(&secret, DECEMBER).is_none() && find("tga_other", NOVEMBER).is_none());
    let twice = bench.directory.create_token(&body(&document), Write::new("x", at(NOVEMBER))).await;
    assert!(matches!(twice, Err(ApplyError::Conflict(_))), "{twice:?}");
    // A change of an org leaves tokens alone.
    bench.edit(put(Kind::Group, How::Create, &json!({ "id": "g" }))).await;
    assert!(find(&secret, NOVEMBER).is_some());
    let write = || Write::new("boss", at(NOVEMBER));
    bench.directory.revoke_token(&id("ci"), write()).await.unwrap();
    assert!(find(&secret, NOVEMBER).is_none());
    let gone = bench.directory.revoke_token(&id("ci"), write()).await;
    assert!(matches!(gone, Err(ApplyError::NotFound(_))), "{gone:?}");
    let query = AuditQuery { limit: 9, kind: Some("token".to_owned()), ..AuditQuery::default() };
    let page = bench.directory.audit(Some(&id("acme")), &query).await.unwrap();
    let lines: Vec<&str> = page.entries.iter().map(|entry| entry.line.as_str()).collect();
    assert_eq!(lines, ["- token ci", "+ token ci profile-admin"]);
    assert!(!serde_json::to_string(&page.entries).unwrap().contains(&secret));
    let bench = bench.reopen(1).await;
    assert_eq!(bench.directory.live().load().tokens.iter().len(), 0);
}

#[tokio::test]
async fn a_token_is_for_its_role() {
    let bench = Bench::acme().await;
    let cases = [
        (json!({}), "/id /role"),
        (json!({ "id": "a b", "role": "operator" }), "/id"),
        (json!({ "id": "operator", "role": "operator" }), "/id"),
        (json!({ "id": "t", "role": "admin" }), "/role"),
        (json!({ "id": "t", "role": "operator", "org": "acme" }), "/org"),
        (json!({ "id": "t", "role": "org-admin" }), "/org"),
        (json!({ "id": "t", "role": "org-admin", "org": "none" }), "/org"),
        (
            json!({ "id": "t", "role": "org-admin", "org": "acme", "profiles": ["cce"] }),
            "/profiles",
        ),
        (json!({ "id": "t", "role": "profile-admin", "org": "acme" }), "/profiles"),
        (
            json!({ "id": "t", "role": "profile-admin", "org": "acme", "profiles": ["cce", "x"] }),
            "/profiles/1",
        ),
        (json!({ "id": "t", "role": "viewer", "secret": "mine" }), "/secret"),
    ];
    let write = || Write::new("boss", at(NOVEMBER));
    for (document, pointers) in cases {
        match bench.directory.create_token(&body(&document), write()).await {
            Err(ApplyError::Invalid(problems)) => {
                let told: Vec<&str> = problems.iter().map(|p| p.pointer.as_str()).collect();
                assert_eq!(told.join(" "), pointers, "{document}");
            }
            other => panic!("{document}: {other:?}"),
        }
    }
    for document in [
        json!({ "id": "a", "role": "operator" }),
        json!({ "id": "b", "role": "viewer" }),
        json!({ "id": "c", "role": "viewer", "org": "acme" }),
        json!({ "id": "d", "role": "org-admin", "org": "acme" }),
    ] {
        bench.directory.create_token(&body(&document), write()).await.unwrap();
    }
    let bench = bench.reopen(1).await;
    assert_eq!(bench.directory.live().load().tokens.iter().len(), 4);
    // What belongs to no org is audited apart.
    let query = AuditQuery { limit: 9, ..AuditQuery::default() };
    let page = bench.directory.audit(None, &query).await.unwrap();
    let ids: Vec<&str> = page.entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(ids, ["b", "a"]);
}

#[tokio::test]
async fn an_audit_of_the_first_schema_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut first = sqlx::migrate!("src/directory/migrations");
        first.migrations.to_mut().retain(|migration| migration.version == 1);
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(dir.path().join("directory.db"))
            .create_if_missing(true);
        let mut database = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        first.run(&mut database).await.unwrap();
        for (version, line) in [(2, 0), (1, 1), (1, 0)] {
            let sql = "INSERT INTO audit VALUES ('acme', $1, $2, 'x', $3, $4, NULL, '{}')";
            let at = format!("2026-11-1{version}T00:00:00Z");
            let what = format!("+ plan p{version}{line}");
            let insert = sqlx::query(sql).bind(version).bind(line).bind(at).bind(what);
            insert.execute(&mut database).await.unwrap();
        }
        database.close().await.unwrap();
    }
    let directory = Directory::open(dir.path(), 1).await.unwrap();
    let query = AuditQuery { limit: 9, ..AuditQuery::default() };
    let page = directory.audit(Some(&id("acme")), &query).await.unwrap();
    let lines: Vec<_> = page.entries.iter().map(|e| (e.seq, e.line.as_str())).collect();
    assert_eq!(lines, [(3, "+ plan p20"), (2, "+ plan p11"), (1, "+ plan p10")]);
    let place = Place::in_data_dir(dir.path());
    let bench = Bench { dir, place, directory };
    bench.apply(ACME).await;
    let page = bench.directory.audit(Some(&id("acme")), &query).await.unwrap();
    assert!(page.entries[0].seq > 4);
}
