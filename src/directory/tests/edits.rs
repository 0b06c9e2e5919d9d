//! Edits of single things, through the same path as documents.

use super::*;
use crate::directory::change::Condition;
use crate::directory::edit::{Edit, How, Membership};
use crate::directory::snapshot::KeyKind;
use crate::directory::things::{self, Kind, Thing};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

impl Bench {
    pub async fn write(&self, edit: Edit, now: &str) -> Result<Applied, ApplyError> {
        self.write_if(edit, Condition::Any, now).await
    }

    pub async fn write_if(
        &self,
        edit: Edit,
        condition: Condition,
        now: &str,
    ) -> Result<Applied, ApplyError> {
        let write = Write { condition, ..Write::new("tests", at(now)) };
        match self.directory.write(&id("acme"), edit, write).await? {
            Written::Now(applied) => Ok(applied),
            Written::Before(answer) => panic!("{answer:?}"),
        }
    }

    /// The lines of an edit that is made.
    pub async fn edit(&self, edit: Edit) -> Vec<String> {
        let applied = self.write(edit, NOVEMBER).await.unwrap();
        applied.changes.iter().map(Change::to_string).collect()
    }

    /// Why an edit is not made.
    pub async fn refused(&self, edit: Edit) -> String {
        match self.write(edit, NOVEMBER).await {
            Err(ApplyError::Invalid(problems)) => {
                problems.iter().map(|p| p.pointer.clone()).collect::<Vec<_>>().join(" ")
            }
            Err(error @ ApplyError::NotFound(_)) => format!("404 {error}"),
            Err(error @ ApplyError::Conflict(_)) => format!("409 {error}"),
            other => panic!("{other:?}"),
        }
    }

    pub async fn thing(&self, kind: Kind, name: &str) -> Option<Thing> {
        let org = self.org();
        match kind {
            Kind::User => self.directory.user(&org.id, &id(name)).await.unwrap(),
            Kind::Licence => self.directory.licence(&org.id, &id(name)).await.unwrap(),
            _ => things::of_org(&org, kind, name),
        }
    }
}

pub fn body(value: &Value) -> Source {
    Source::from_json(value.to_string().as_bytes()).unwrap()
}

pub fn put(kind: Kind, how: How, value: &Value) -> Edit {
    Edit::Put { kind, id: None, body: body(value), how }
}

fn patch(kind: Kind, name: &str, value: &Value) -> Edit {
    Edit::Put { kind, id: Some(id(name)), body: body(value), how: How::Merge }
}

fn delete(kind: Kind, name: &str) -> Edit {
    Edit::Delete { kind, id: id(name) }
}

pub fn assign(licence: &str, user: &str) -> Edit {
    let user = (!user.is_empty()).then(|| id(user));
    Edit::Assign { licence: id(licence), user }
}

fn member(of: Membership, user: &str, member: bool) -> Edit {
    Edit::Member { of, user: id(user), member }
}

/// One of each kind, with everything that it can have.
fn whole() -> Vec<(Kind, &'static str, Value)> {
    vec![
        (
            Kind::Org,
            "acme",
            json!({
                "id": "acme", "timezone": "Asia/Tokyo", "anchor": { "day": 15 },
                "contract": "vip", "products": ["firefly-services", "cce-4", "x"],
                "offers": ["firefly-services"], "bases": ["cce-4"],
                "overage": { "bill_up_to": "5" }, "split": "whole", "mode": "enforce",
                "on_reassign": "next-cycle", "pool_limit": "7.5",
            }),
        ),
        (
            Kind::Term,
            "2028",
            json!({
                "id": "2028", "start": "2028-01-01", "end": "2029-01-01", "pool": "5",
                "price_per_operation": "1/3", "currency": "EUR",
            }),
        ),
        (Kind::Plan, "p", json!({ "id": "p", "credits": "1.5" })),
        (Kind::Group, "g", json!({ "id": "g" })),
        (
            Kind::User,
            "carol",
            json!({
                "id": "carol", "email": "c@acme.example", "suspended": true, "pool_limit": "3",
                "groups": ["design", "g"],
                "licences": [
                    { "id": "l-1", "plan": "p", "priority": 2 },
                    { "id": "l-2", "plan": "p", "priority": 1, "expires": "2027-01-01" },
                ],
            }),
        ),
        (
            Kind::Licence,
            "l-3",
            json!({
                "id": "l-3", "plan": "p", "user": "carol", "priority": 4,
                "expires": "2027-01-01T00:00:00Z",
            }),
        ),
        (
            Kind::Profile,
            "pr",
            json!({
                "id": "pr", "product": "x", "shared_credits": true, "pool_limit": "1",
                "overage": "reject", "groups": ["design", "g"],
            }),
        ),
        (
            Kind::RateCard,
            "v2",
            json!({
                "version": "v2", "offer": "x", "effective": "2027-01-01T00:00:00Z",
                "operations_per_credit": "0.5",
                "rate": [{
                    "feature": "f", "meter": "m", "when": { "size": "1k" }, "unit": "image",
                    "credits": "2", "operations": "1/7", "tier": "premium",
                }],
            }),
        ),
        (
            Kind::Key,
            "k",
            json!({
                "id": "k", "kind": "service",
                "acts_for": { "users": ["carol"], "groups": ["g"] },
            }),
        ),
    ]
}

#[tokio::test]
async fn every_kind_is_created_shown_written_back_and_patched() {
    let mut bench = Bench::acme().await;
    for (kind, name, document) in whole() {
        let how = if kind == Kind::Org { How::Replace } else { How::Create };
        let applied = bench.write(put(kind, how, &document), NOVEMBER).await.unwrap();
        assert_eq!(applied.changes[0].what, kind.word());
        bench = bench.reopen(1).await;
        let shown = bench.thing(kind, name).await.unwrap();
        assert_eq!(applied.thing.as_ref(), Some(&shown));
        let mut less = shown.document.clone();
        less.as_object_mut().unwrap().remove("secrets");
        if kind != Kind::User {
            assert_eq!(less, document);
        }
        // Another put of what is shown changes nothing, and neither does a patch of nothing.
        let name = Some(id(name));
        for (body, how) in [(&shown.document, How::Replace), (&json!({}), How::Merge)] {
            let body = Source::from_value(body.clone());
            let edit = Edit::Put { kind, id: name.clone(), body, how };
            assert_eq!(bench.edit(edit).await, [""; 0], "{kind} {how:?}");
        }
        let edit = put(kind, How::Create, &document);
        assert!(bench.refused(edit).await.starts_with("409 "), "{kind}");
    }
    let carol = bench.thing(Kind::User, "carol").await.unwrap().document;
    assert_eq!(carol["licences"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_patch_changes_what_it_names_and_null_removes() {
    let bench = Bench::acme().await;
    let line = bench.edit(patch(Kind::User, "alice", &json!({ "suspended": true }))).await;
    assert_eq!(line, ["~ user alice suspended false → true"]);
    let line = bench.edit(patch(Kind::User, "alice", &json!({ "email": null }))).await;
    assert_eq!(line, ["~ user alice email alice@acme.example → none"]);
    assert_eq!(bench.seat("alice", NOVEMBER).len(), 2);
    let line =
        bench.edit(patch(Kind::Profile, "ffs-creative", &json!({ "pool_limit": "9" }))).await;
    assert_eq!(line, ["~ profile ffs-creative pool_limit 100 → 9"]);
    let line = bench.edit(patch(Kind::Org, "acme", &json!({ "overage": "bill" }))).await;
    assert_eq!(line, ["~ org acme overage reject → bill"]);
    let nobody = patch(Kind::User, "nobody", &json!({}));
    assert_eq!(bench.refused(nobody).await, "404 there is no user nobody");
}

#[tokio::test]
async fn a_put_means_defaults_for_what_it_omits() {
    let bench = Bench::acme().await;
    let lines = bench.edit(put(Kind::User, How::Replace, &json!({ "id": "alice" }))).await;
    let expected = [
        "~ user alice email alice@acme.example → none, groups -design",
        "~ licence lic-1 holder alice → none",
        "~ licence lic-2 holder alice → none",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn the_members_of_a_profile_are_a_list_of_their_own() {
    let bench = Bench::acme().await;
    let cce = || Membership::Profile(id("cce"));
    assert_eq!(bench.edit(member(cce(), "bob", true)).await, ["~ user bob profiles +cce"]);
    assert!(bench.edit(member(cce(), "bob", true)).await.is_empty());
    let org = bench.org();
    let (alice, bob) = (org.users.get("alice").unwrap(), org.users.get("bob").unwrap());
    assert!(org.is_member(bob, &id("cce")) && !org.is_member(bob, &id("ffs-creative")));
    assert!(org.is_member(alice, &id("cce")));
    // A profile that is written without them keeps them; a list of them replaces them.
    let profile = json!({ "id": "cce", "product": "cce-4" });
    let line = bench.edit(put(Kind::Profile, How::Replace, &profile)).await;
    assert_eq!(line, ["~ profile cce groups -design"]);
    assert_eq!(
        bench.edit(patch(Kind::Profile, "cce", &json!({ "users": ["alice"] }))).await,
        ["~ user alice profiles +cce", "~ user bob profiles -cce"]
    );
    assert_eq!(bench.edit(member(cce(), "alice", false)).await, ["~ user alice profiles -cce"]);
    let design = || Membership::Group(id("design"));
    assert_eq!(bench.edit(member(design(), "bob", true)).await, ["~ user bob groups +design"]);
    assert_eq!(bench.edit(member(design(), "bob", false)).await, ["~ user bob groups -design"]);
    assert_eq!(bench.refused(member(design(), "eve", true)).await, "404 there is no user eve");
    let none = Membership::Profile(id("none"));
    assert_eq!(bench.refused(member(none, "bob", true)).await, "404 there is no profile none");
}

#[tokio::test]
async fn problems_point_into_the_body() {
    let bench = Bench::acme().await;
    let cases = [
        (Kind::User, json!({ "id": "x", "groups": ["design", "none"] }), "/groups/1"),
        (Kind::User, json!({ "id": "x", "nmae": 1 }), "/nmae"),
        (Kind::User, json!({ "email": "x" }), "/id"),
        (Kind::User, json!({ "id": "x", "pool_limit": "-1" }), "/pool_limit"),
        (
            Kind::User,
            json!({ "id": "x", "licences": [{ "id": "l", "plan": "n" }] }),
            "/licences/0/plan",
        ),
        (Kind::Licence, json!({ "id": "l", "plan": "none" }), "/plan"),
        (Kind::Licence, json!({ "id": "l", "plan": "cc-pro", "user": "none" }), "/user"),
        (Kind::Licence, json!({ "id": "l" }), "/plan"),
        (Kind::Profile, json!({ "id": "p", "product": "none" }), "/product"),
        (Kind::Profile, json!({ "id": "p", "product": "cce-4", "users": ["none"] }), "/users/0"),
        (
            Kind::Term,
            json!({ "id": "t", "start": "2026-05-01", "end": "2026-06-01", "pool": "1" }),
            "",
        ),
        (Kind::Key, json!({ "id": "k", "kind": "user", "user": "none" }), "/user"),
        (Kind::Key, json!({ "id": "k", "kind": "service", "secret": "short" }), "/secret"),
        (
            Kind::Key,
            json!({ "id": "k", "kind": "service", "secret": "tg_studio_0123456789abcdef" }),
            "/secret",
        ),
        (Kind::Key, json!({ "id": "k", "kind": "service", "secrets": [] }), "/secrets"),
        (Kind::Plan, json!([]), "/id"),
        (Kind::Org, json!({ "id": "acme", "products": [] }), "/products /products"),
        (Kind::Org, json!({ "id": "other" }), "/id"),
    ];
    let before = bench.org().version;
    for (kind, value, pointer) in cases {
        let how = if kind == Kind::Org { How::Replace } else { How::Create };
        assert_eq!(bench.refused(put(kind, how, &value)).await, pointer, "{kind} {value}");
    }
    let other = Edit::Put {
        kind: Kind::User,
        id: Some(id("alice")),
        body: body(&json!({ "id": "bob" })),
        how: How::Replace,
    };
    assert_eq!(bench.refused(other).await, "/id");
    assert_eq!(bench.org().version, before);
}

#[tokio::test]
async fn f58_ids_are_bounded_and_compared_byte_for_byte() {
    let bench = Bench::acme().await;
    let long = "x".repeat(129);
    for odd in ["", "a b", "a\0", "a/b", "\u{202e}a", "аlice", "../x", "-a", &long] {
        for kind in [Kind::User, Kind::Group, Kind::Plan, Kind::Licence, Kind::Key] {
            let edit = put(kind, How::Create, &json!({ kind.id_key(): odd }));
            assert!(bench.refused(edit).await.contains("/id"), "{kind} {odd:?}");
        }
    }
    for like in ["Alice", "ALICE", "alice.", "a1ice", "alice+1"] {
        let edit = put(Kind::User, How::Create, &json!({ "id": like }));
        assert_eq!(bench.edit(edit).await, [format!("+ user {like}")]);
    }
    assert_eq!(bench.org().users.len(), 7);
    assert_eq!(bench.seat("Alice", NOVEMBER).len(), 0);
    assert_eq!(bench.seat("alice", NOVEMBER).len(), 2);
}

#[tokio::test]
async fn what_an_edit_made_no_file_prunes() {
    let bench = Bench::acme().await;
    bench.edit(put(Kind::User, How::Create, &json!({ "id": "carol" }))).await;
    bench.edit(patch(Kind::User, "bob", &json!({ "suspended": true }))).await;
    let lines = bench.apply("user = []\n[apply]\nprune = [\"user\"]").await;
    assert!(
        lines.contains(&"- user bob".to_owned()) && !lines.contains(&"- user carol".to_owned())
    );
}

#[tokio::test]
async fn what_is_still_named_is_not_deleted() {
    let bench = Bench::acme().await;
    bench.edit(put(Kind::Group, How::Create, &json!({ "id": "lone" }))).await;
    bench.edit(put(Kind::Group, How::Create, &json!({ "id": "keyed" }))).await;
    for key in [
        json!({ "id": "a", "kind": "user", "user": "bob" }),
        json!({ "id": "b", "kind": "principal", "profile": "cce" }),
        json!({ "id": "c", "kind": "service", "acts_for": { "groups": ["keyed"] } }),
    ] {
        bench.edit(put(Kind::Key, How::Create, &key)).await;
    }
    let refused = [
        (Kind::Plan, "cc-pro", "409 plan cc-pro is still named by licence lic-1"),
        (Kind::Group, "design", "409 group design is still named by user alice"),
        (Kind::Group, "keyed", "409 group keyed is still named by key c"),
        (Kind::User, "bob", "409 user bob is still named by key a"),
        (Kind::Profile, "cce", "409 profile cce is still named by key b"),
        (Kind::Licence, "lic-1", "409 licence lic-1 is held by alice; unassign it first"),
        (Kind::Org, "acme", "409 an org cannot be deleted: its ledger names it"),
        (Kind::Term, "none", "404 there is no term none"),
        (Kind::User, "none", "404 there is no user none"),
        (Kind::Licence, "none", "404 there is no licence none"),
    ];
    for (kind, name, why) in refused {
        assert_eq!(bench.refused(delete(kind, name)).await, why);
    }
    let done = [
        (Kind::Key, "a", vec!["- key a"]),
        (Kind::Key, "b", vec!["- key b"]),
        (Kind::User, "bob", vec!["- user bob"]),
        (Kind::Profile, "cce", vec!["- profile cce"]),
        (Kind::Group, "lone", vec!["- group lone"]),
        (Kind::Term, "2026", vec!["- term 2026"]),
        (Kind::RateCard, "2026-11", vec!["- rate_card 2026-11"]),
        (
            Kind::User,
            "alice",
            vec![
                "- user alice",
                "~ licence lic-1 holder alice → none",
                "~ licence lic-2 holder alice → none",
            ],
        ),
    ];
    for (kind, name, lines) in done {
        assert_eq!(bench.edit(delete(kind, name)).await, lines);
        assert!(bench.thing(kind, name).await.is_none());
    }
    // Only what changed was written: it all comes back.
    let bench = bench.reopen(1).await;
    assert_eq!((bench.org().users.len(), bench.org().details.keys.len()), (0, 2));
}

#[tokio::test]
async fn deleting_a_profile_ends_direct_memberships() {
    let bench = Bench::acme().await;
    let token = json!({ "id": "t", "role": "profile-admin", "org": "acme", "profiles": ["cce"] });
    let write = || Write::new("tests", at(NOVEMBER));
    bench.directory.create_token(&body(&token), write()).await.unwrap();
    let why = "409 profile cce is still named by token t";
    assert_eq!(bench.refused(delete(Kind::Profile, "cce")).await, why);
    bench.directory.revoke_token(&id("t"), write()).await.unwrap();
    bench.edit(member(Membership::Profile(id("cce")), "bob", true)).await;
    let lines = bench.edit(delete(Kind::Profile, "cce")).await;
    assert_eq!(lines, ["~ user bob profiles -cce", "- profile cce"]);
    let cce = json!({ "id": "cce", "product": "cce-4" });
    bench.edit(put(Kind::Profile, How::Create, &cce)).await;
    let bench = bench.reopen(1).await;
    assert!(!bench.org().is_member(bench.org().users.get("bob").unwrap(), &id("cce")));
}

#[tokio::test]
async fn an_org_is_made_by_its_settings() {
    let bench = Bench::empty().await;
    let user = put(Kind::User, How::Create, &json!({ "id": "alice" }));
    assert_eq!(bench.refused(user).await, "404 there is no org acme");
    assert_eq!(bench.edit(put(Kind::Org, How::Create, &json!({}))).await, ["+ org acme"]);
    let user = put(Kind::User, How::Create, &json!({ "id": "alice" }));
    assert_eq!(bench.edit(user).await, ["+ user alice"]);
}

#[tokio::test]
async fn a_stale_condition_changes_nothing() {
    let bench = Bench::acme().await;
    let suspend = |to: bool| patch(Kind::User, "alice", &json!({ "suspended": to }));
    let tag = bench.thing(Kind::User, "alice").await.unwrap().etag;
    let matches = |tag: &str| Condition::Matches(vec!["other".to_owned(), tag.to_owned()]);
    let applied = bench.write_if(suspend(true), matches(&tag), NOVEMBER).await.unwrap();
    // Of two who saw the same, the second is told.
    let second = bench.write_if(suspend(false), matches(&tag), NOVEMBER).await;
    assert!(matches!(second, Err(ApplyError::Stale)), "{second:?}");
    let next = applied.thing.unwrap().etag;
    assert!(next != tag && bench.org().users.get("alice").unwrap().standing.suspended);
    // A change of something else does not matter.
    bench.edit(patch(Kind::User, "bob", &json!({ "suspended": true }))).await;
    bench.write_if(suspend(false), matches(&next), NOVEMBER).await.unwrap();
    let new = |name: &str| put(Kind::User, How::Replace, &json!({ "id": name }));
    for (name, condition, fine) in [
        ("bob", Condition::Absent, false),
        ("new", Condition::Exists, false),
        ("new", matches(&next), false),
        ("new", Condition::Absent, true),
        ("new", Condition::Exists, true),
    ] {
        let written = bench.write_if(new(name), condition.clone(), NOVEMBER).await;
        assert_eq!(written.is_ok(), fine, "{name} {condition:?}");
    }
    // What a document is conditional on is the org's version.
    let document = || Source::from_toml("[[group]]\nid = \"g\"").unwrap().document();
    let tag = things::org_tag(bench.org().version);
    let edit = || Edit::Document(document());
    let old = Condition::Matches(vec!["1.1".to_owned()]);
    assert!(matches!(bench.write_if(edit(), old, NOVEMBER).await, Err(ApplyError::Stale)));
    bench.write_if(edit(), Condition::Matches(vec![tag]), NOVEMBER).await.unwrap();
}

fn rotate(value: &Value) -> Edit {
    Edit::Rotate { key: id("studio"), body: body(value) }
}

const FIRST: &str = "tg_studio_0123456789abcdef";
const SECOND: &str = "tg_studio_second_0123456789";

#[tokio::test]
async fn a_rotation_overlaps_until_the_old_secret_is_dropped() {
    let bench = Bench::acme().await;
    let live = |bench: &Bench, secret: &str| {
        let hash = crate::directory::file::hash_secret(secret);
        bench.directory.live.load().keys.get(&hash).map(|key| key.expires)
    };
    let applied = bench.write(rotate(&json!({ "secret": SECOND })), NOVEMBER).await.unwrap();
    assert!(applied.secrets.is_empty() && applied.changes.len() == 1);
    assert_eq!((live(&bench, FIRST), live(&bench, SECOND)), (Some(None), Some(None)));
    let bench = bench.reopen(1).await;
    assert_eq!((live(&bench, FIRST), live(&bench, SECOND)), (Some(None), Some(None)));
    let why = "409 key studio has two live secrets; drop one of them first";
    assert_eq!(bench.refused(rotate(&json!({}))).await, why);
    let shown = bench.thing(Kind::Key, "studio").await.unwrap().document;
    assert_eq!(shown["secrets"].as_array().unwrap().len(), 2);
    let digits = |secret: &str| rows::hex(&crate::directory::file::hash_secret(secret)[..4]);
    let drop_of = |secret: &str| Edit::DropSecret { key: id("studio"), secret: digits(secret) };
    assert_eq!(bench.edit(drop_of(FIRST)).await.len(), 1);
    assert_eq!((live(&bench, FIRST), live(&bench, SECOND)), (None, Some(None)));
    assert!(bench.refused(drop_of(SECOND)).await.starts_with("409 this is the only live secret"));
    assert!(bench.refused(drop_of(FIRST)).await.starts_with("404 "));
}

#[tokio::test]
async fn a_rotation_ends_at_an_instant_and_makes_a_secret_where_none_is_given() {
    let bench = Bench::acme().await;
    for (value, pointer) in [
        (json!({ "until": NOVEMBER }), "/until"),
        (json!({ "until": "soon" }), "/until"),
        (json!({ "secret": "short" }), "/secret"),
        (json!({ "secret": FIRST }), "/secret"),
        (json!({ "expires": DECEMBER }), "/expires"),
    ] {
        assert_eq!(bench.refused(rotate(&value)).await, pointer);
    }
    let applied = bench.write(rotate(&json!({ "until": DECEMBER })), NOVEMBER).await.unwrap();
    let [(key, secret)] = applied.secrets.as_slice() else { panic!("{applied:?}") };
    assert_eq!(key.as_str(), "studio");
    assert!(!format!("{applied:?}").contains(secret.expose_secret()));
    let digits = rows::hex(&crate::directory::file::hash_secret(FIRST)[..4]);
    let line = applied.changes[0].to_string();
    assert!(line.contains(&format!("{digits} until {DECEMBER}")), "{line}");
    let expires = |secret: &str| {
        let hash = crate::directory::file::hash_secret(secret);
        bench.directory.live.load().keys.get(&hash).map(|key| key.expires)
    };
    assert_eq!(expires(FIRST), Some(Some(at(DECEMBER))));
    assert_eq!(expires(secret.expose_secret()), Some(None));
    // Once it is over, the next rotation clears it away.
    bench.write(rotate(&json!({})), "2026-12-10T12:00:01Z").await.unwrap();
    assert_eq!(expires(FIRST), None);
    assert_eq!(bench.directory.live.load().keys.len(), 2);
    // A dry run makes nothing and shows nothing.
    let key = put(Kind::Key, How::Create, &json!({ "id": "dry", "kind": "service" }));
    let write = Write { dry_run: true, ..Write::new("tests", at(NOVEMBER)) };
    match bench.directory.write(&id("acme"), key, write).await.unwrap() {
        Written::Now(applied) => assert!(applied.secrets.is_empty() && applied.changes.len() == 1),
        Written::Before(answer) => panic!("{answer:?}"),
    }
    assert!(bench.thing(Kind::Key, "dry").await.is_none());
}

#[tokio::test]
async fn a_key_is_made_with_a_secret_that_is_shown_once() {
    let bench = Bench::acme().await;
    let key = json!({ "id": "k", "kind": "user", "user": "bob" });
    let applied = bench.write(put(Kind::Key, How::Create, &key), NOVEMBER).await.unwrap();
    let [(_, secret)] = applied.secrets.as_slice() else { panic!("{applied:?}") };
    let hash = crate::directory::file::hash_secret(secret.expose_secret());
    assert_eq!(bench.directory.live.load().keys[&hash].kind, KeyKind::User(id("bob")));
    assert!(!applied.thing.unwrap().document.to_string().contains(secret.expose_secret()));
    let again = bench.write(patch(Kind::Key, "k", &json!({ "user": "alice" })), NOVEMBER).await;
    assert!(again.unwrap().secrets.is_empty());
    assert_eq!(bench.directory.live.load().keys[&hash].kind, KeyKind::User(id("alice")));
}
