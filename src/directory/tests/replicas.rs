//! Several gateways on one directory in PostgreSQL.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::json;
use tokio::task::JoinSet;

use super::edits::{body, put};
use super::postgres::PASSWORD;
use super::*;
use crate::directory::change::Condition;
use crate::directory::edit::How;
use crate::sql::query;
use sqlx::Connection as _;

/// How long anything may take that is promised within a second: what it took is printed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory that follows the others.
struct Replica {
    directory: Arc<Directory>,
    /// What follows ends with it.
    _follows: JoinSet<()>,
}

impl Replica {
    async fn open(url: &str) -> Self {
        let place = Place::Server(url.into());
        let directory = Arc::new(Directory::open(place, 1).await.unwrap());
        let (mut follows, follower) = (JoinSet::new(), Arc::clone(&directory));
        follows.spawn(async move { follower.follow().await });
        Self { directory, _follows: follows }
    }

    /// Waits until the snapshot is as it should be, and says for how long.
    async fn until(&self, seen: impl Fn(&Snapshot) -> bool) -> Duration {
        let began = Instant::now();
        while !seen(&self.directory.live.load()) {
            assert!(began.elapsed() < PATIENCE, "never seen");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        began.elapsed()
    }
}

async fn alone(url: &str) -> Directory {
    Directory::open(Place::Server(url.into()), 1).await.unwrap()
}

async fn apply(directory: &Directory, org: &str, toml: &str) -> Vec<String> {
    let document = Source::from_toml(toml).unwrap().document();
    let applied = directory.apply(&id(org), &document, false, "tests", at(NOVEMBER)).await;
    applied.unwrap().changes.iter().map(Change::to_string).collect()
}

fn user(document: &serde_json::Value) -> Edit {
    put(Kind::User, How::Replace, document)
}

async fn write(directory: &Directory, edit: Edit) -> Result<Applied, ApplyError> {
    write_if(directory, edit, Condition::Any).await
}

async fn write_if(
    directory: &Directory,
    edit: Edit,
    condition: Condition,
) -> Result<Applied, ApplyError> {
    let write = Write { condition, ..Write::new("tests", at(NOVEMBER)) };
    match directory.write(&id("acme"), edit, write).await? {
        Written::Now(applied) => Ok(applied),
        Written::Before(answer) => panic!("{answer:?}"),
    }
}

/// All of a snapshot that requests depend on, in one order.
fn shown(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::new();
    for (id, org) in &snapshot.orgs {
        let details = format!("{:?} {:?}", org.details, org.schedule);
        shown.insert(format!("{id}"), format!("{:?} {:?} {details}", org.version, org.terms));
        for user in org.users.iter() {
            shown.insert(format!("{id} user {}", user.id()), format!("{user:?}"));
        }
    }
    for (hash, key) in &snapshot.keys {
        shown.insert(format!("key {}", rows::hex(hash)), format!("{key:?}"));
    }
    for token in snapshot.tokens.iter() {
        shown.insert(format!("token {}", token.id), format!("{token:?}"));
    }
    shown
}

#[tokio::test]
async fn everything_that_holds_in_a_file_holds_on_a_server() {
    let server = Postgres::shared().await;
    let mut suite = Command::new(std::env::current_exe().unwrap());
    suite.args(["directory::tests::", "--skip", "::replicas::", "--test-threads=2"]);
    server.lend(&mut suite);
    let output = suite.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}");
    let passed = told.split("test result: ok. ").nth(1).unwrap();
    let passed: usize = passed.split(' ').next().unwrap().parse().unwrap();
    assert!(passed >= 75, "{told}");
}

#[tokio::test]
async fn d09_d13_what_one_replica_changes_is_in_force_on_all_within_a_second() {
    let server = Postgres::shared().await;
    let url = server.database();
    let replicas =
        [Replica::open(&url).await, Replica::open(&url).await, Replica::open(&url).await];
    apply(&replicas[0].directory, "acme", ACME).await;
    for replica in &replicas {
        replica.until(|snapshot| snapshot.orgs.contains_key(&id("acme"))).await;
    }
    let mut took = Vec::new();
    for round in 0..30 {
        let changes = &replicas[round % 3].directory;
        let holds = round % 2 == 1;
        // A licence that is taken away (D9), and a membership (D13).
        let licences = if holds { "[{ id = \"lic-1\", plan = \"cc-pro\" }]" } else { "[]" };
        let groups = if holds { "[\"design\"]" } else { "[]" };
        let lines = format!("[[user]]\nid = \"alice\"\nlicences = {licences}\ngroups = {groups}");
        apply(changes, "acme", &lines).await;
        let seen = |snapshot: &Snapshot| {
            let org = &snapshot.orgs[&id("acme")];
            let alice = org.users.get("alice").unwrap();
            let pays = alice.licences.iter().any(|licence| &*licence.id == "lic-1");
            pays == holds && alice.standing.access.is_ok() == holds
        };
        let began = Instant::now();
        assert!(seen(&changes.live.load()));
        for replica in &replicas {
            replica.until(seen).await;
        }
        took.push(began.elapsed());
    }
    took.sort();
    println!("in force on all three after {:?} (median), {:?} (worst)", took[15], took[29]);
    for replica in &replicas {
        assert!(replica.directory.live.age() < PATIENCE && !replica.directory.live.away());
    }
}

#[tokio::test]
async fn a_notification_is_heard_and_a_lost_one_is_made_up_for() {
    let server = Postgres::shared().await;
    let url = server.database();
    let (one, two) = (alone(&url).await, alone(&url).await);
    let (place, heard) = (Place::Server(url.into()), tokio::sync::Notify::new());
    let change = async {
        // Until somebody listens there is nobody to hear.
        for number in 0.. {
            apply(&one, "acme", &format!("[[group]]\nid = \"g{number}\"")).await;
            if tokio::time::timeout(Duration::from_millis(300), heard.notified()).await.is_ok() {
                return;
            }
            assert!(number < 100);
        }
    };
    apply(&one, "acme", ACME).await;
    tokio::select! {
        () = feed::listen(&place, &heard) => unreachable!(),
        () = change => {}
    }
    // Nobody told the other one.
    assert!(two.live.load().orgs.is_empty());
    assert!(two.catch_up().await.unwrap());
    assert_eq!(shown(&two.live.load()), shown(&one.live.load()));
    assert!(!two.catch_up().await.unwrap());
}

#[tokio::test]
async fn what_is_followed_change_by_change_is_what_a_new_replica_loads() {
    let server = Postgres::shared().await;
    let url = server.database();
    let (one, two) = (alone(&url).await, alone(&url).await);
    apply(&one, "acme", ACME).await;
    two.catch_up().await.unwrap();
    let on = |kind, document| put(kind, How::Create, &document);
    let edits = vec![
        vec![on(Kind::User, json!({ "id": "carol", "groups": ["design"] }))],
        // Two changes at once: the licence of one user becomes that of another, who then goes.
        vec![
            put(
                Kind::Licence,
                How::Replace,
                &json!({ "id": "lic-1", "plan": "cc-pro", "user": "bob" }),
            ),
            Edit::Delete { kind: Kind::User, id: id("carol") },
        ],
        vec![on(Kind::Licence, json!({ "id": "lic-9", "plan": "cc-pro" }))],
        vec![Edit::Delete { kind: Kind::Licence, id: id("lic-9") }],
        vec![put(Kind::Licence, How::Replace, &json!({ "id": "lic-2", "plan": "addon-2000" }))],
        vec![put(Kind::Plan, How::Replace, &json!({ "id": "cc-pro", "credits": "5000" }))],
        vec![on(Kind::Group, json!({ "id": "other" }))],
        vec![on(Kind::Key, json!({ "id": "second", "kind": "service" }))],
        vec![Edit::Delete { kind: Kind::Key, id: id("second") }],
        vec![on(
            Kind::Profile,
            json!({ "id": "new", "product": "cce-4", "users": ["bob"], "shared_credits": true }),
        )],
        vec![Edit::Delete { kind: Kind::Profile, id: id("new") }],
        vec![user(&json!({ "id": "alice", "suspended": true }))],
        vec![Edit::Delete { kind: Kind::User, id: id("bob") }],
    ];
    for (number, edits) in edits.into_iter().enumerate() {
        let what = format!("change {number}");
        for edit in edits {
            write(&one, edit).await.unwrap();
        }
        assert!(two.catch_up().await.unwrap(), "{what}");
        let fresh = alone(&url).await;
        assert_eq!(shown(&two.live.load()), shown(&fresh.live.load()), "{what}");
        assert_eq!(shown(&one.live.load()), shown(&fresh.live.load()), "{what}");
    }
    let zone = ACME.replace("[[term]]", "timezone = \"Europe/Berlin\"\n[[term]]");
    apply(&one, "acme", &zone).await;
    let other = ACME.replace("acme", "other").replace("tg_studio", "tg_other");
    apply(&one, "other", &other).await;
    let token = json!({ "id": "ci", "role": "viewer" });
    one.create_token(&body(&token), Write::new("tests", at(NOVEMBER))).await.unwrap();
    two.catch_up().await.unwrap();
    assert_eq!(shown(&two.live.load()), shown(&alone(&url).await.live.load()));
    // More than is looked at one by one.
    // Their ids sort otherwise by a language than byte by byte.
    let user = |number: usize| {
        format!("[[user]]\nid = \"{}{number}\"\n", ["u", "U", "u-", "v"][number % 4])
    };
    let users: String = (0..10_001).map(user).collect();
    apply(&one, "acme", &users).await;
    two.catch_up().await.unwrap();
    assert_eq!(shown(&two.live.load()), shown(&one.live.load()));
    // A restored or copied directory.
    let three = Directory::open(Place::Server(url.clone().into()), 7).await.unwrap();
    two.catch_up().await.unwrap();
    assert_eq!(two.live.load().orgs[&id("acme")].version.epoch, 7);
    assert_eq!(shown(&two.live.load()), shown(&three.live.load()));
}

#[tokio::test]
async fn of_two_admins_on_two_replicas_one_is_told_that_it_changed() {
    let server = Postgres::shared().await;
    let url = server.database();
    // They do not follow each other: only the database keeps them apart.
    let (one, two) = (alone(&url).await, alone(&url).await);
    apply(&one, "acme", ACME).await;
    let first = user(&json!({ "id": "bob", "email": "0@x.example" }));
    let mut tag = write(&one, first).await.unwrap().thing.unwrap().etag;
    for round in 0..20 {
        let edit =
            |who: &str| user(&json!({ "id": "bob", "email": format!("{round}.{who}@x.example") }));
        let condition = Condition::Matches(vec![tag.clone()]);
        let (a, b) = tokio::join!(
            write_if(&one, edit("one"), condition.clone()),
            write_if(&two, edit("two"), condition.clone()),
        );
        let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
        assert!(matches!(lost, Err(ApplyError::Stale)), "{lost:?}");
        tag = won.unwrap().thing.unwrap().etag;
    }
    // Who was refused keeps nobody waiting.
    let never = Condition::Matches(vec!["never".to_owned()]);
    let refused = write_if(&one, user(&json!({ "id": "bob" })), never).await;
    assert!(matches!(refused, Err(ApplyError::Stale)), "{refused:?}");
    write(&two, user(&json!({ "id": "bob" }))).await.unwrap();
    one.catch_up().await.unwrap();
    // Without a condition both are made, one after the other.
    let before = one.live.load().orgs[&id("acme")].version.number;
    for round in 0..20 {
        let edit = |who: &str| user(&json!({ "id": who, "email": format!("{round}@x.example") }));
        let (a, b) = tokio::join!(write(&one, edit("alice")), write(&two, edit("bob")));
        a.unwrap();
        b.unwrap();
    }
    one.catch_up().await.unwrap();
    two.catch_up().await.unwrap();
    assert_eq!(one.live.load().orgs[&id("acme")].version.number, before + 40);
    assert_eq!(shown(&one.live.load()), shown(&two.live.load()));
    let org = Arc::clone(&one.live.load().orgs[&id("acme")]);
    for who in ["alice", "bob"] {
        assert_eq!(org.users.get(who).unwrap().email(), Some("19@x.example"));
    }
}

#[tokio::test]
async fn what_is_checked_across_orgs_is_checked_against_what_others_changed() {
    let server = Postgres::shared().await;
    let url = server.database();
    let (one, two) = (alone(&url).await, alone(&url).await);
    apply(&one, "acme", ACME).await;
    // The other one has seen nothing of it. A secret belongs to one key.
    let other = ACME.replace("acme", "other");
    let document = Source::from_toml(&other).unwrap().document();
    let refused = two.apply(&id("other"), &document, false, "tests", at(NOVEMBER)).await;
    assert!(matches!(refused, Err(ApplyError::Invalid(_))), "{refused:?}");
    let token = json!({ "id": "ci", "role": "profile-admin", "org": "acme", "profiles": ["cce"] });
    let write = || Write::new("tests", at(NOVEMBER));
    let made = one.create_token(&body(&token), write()).await.unwrap();
    let Written::Now(made) = made else { panic!() };
    let twice = two.create_token(&body(&token), write()).await;
    assert!(matches!(twice, Err(ApplyError::Conflict(_))), "{twice:?}");
    let secret = made.secrets[0].1.expose_secret();
    assert!(two.live.load().tokens.find(secret, at(NOVEMBER)).is_some());
    two.revoke_token(&id("ci"), write()).await.unwrap();
    one.catch_up().await.unwrap();
    assert!(one.live.load().tokens.find(secret, at(NOVEMBER)).is_none());
}

#[tokio::test]
async fn ids_sort_byte_by_byte_whatever_the_language_of_the_server() {
    let server = Postgres::shared().await;
    let directory = alone(&server.database()).await;
    apply(&directory, "acme", ACME).await;
    for name in ["ab", "a-b", "B"] {
        let licence = json!({ "id": name, "plan": "cc-pro" });
        write(&directory, put(Kind::Licence, How::Create, &licence)).await.unwrap();
    }
    let query = store::LicenceQuery { limit: 3, ..Default::default() };
    let (things, next) = directory.licences(&id("acme"), &query).await.unwrap();
    let ids: Vec<&str> =
        things.iter().map(|thing| thing.document["id"].as_str().unwrap()).collect();
    assert_eq!((ids, next), (vec!["B", "a-b", "ab"], Some(id("ab"))));
}

#[tokio::test]
async fn f49_two_replicas_name_one_account_with_one_grant_for_a_new_cycle() {
    let server = Postgres::shared().await;
    let url = server.database();
    let (one, two) = (alone(&url).await, alone(&url).await);
    apply(&one, "acme", ACME).await;
    two.catch_up().await.unwrap();
    let accounts = |directory: &Directory| {
        let org = Arc::clone(&directory.live.load().orgs[&id("acme")]);
        let user = Arc::clone(org.users.get("alice").unwrap());
        let moment = org.moment(at(DECEMBER));
        let position = org.position(Payer::User(&user), &moment, at(DECEMBER));
        let accounts = position.accounts.iter();
        accounts.map(|account| format!("{:?} {:?}", account.key, account.grant)).collect::<Vec<_>>()
    };
    let named = accounts(&one);
    assert!(named.len() > 3 && named == accounts(&two), "{named:?}");
}

/// A server that does not answer, that is gone, and that is back: changes are refused in time, what
/// is in force stays so, and nobody has to do anything.
#[tokio::test]
async fn a_server_that_is_away_refuses_changes_and_nothing_else() {
    let mut server = Postgres::start().await;
    let url = server.database();
    let replica = Replica::open(&url).await;
    let directory = &replica.directory;
    apply(directory, "acme", ACME).await;
    let group = |name: String| put(Kind::Group, How::Create, &json!({ "id": name }));
    for round in 0..2 {
        let known = shown(&directory.live.load());
        if round == 0 {
            server.pause(true);
        } else {
            server.kill();
        }
        let began = Instant::now();
        // They wait at once, and none until all before it have given up.
        let mut all = JoinSet::new();
        for number in 0..20 {
            let (directory, edit) = (Arc::clone(directory), group(format!("refused{number}")));
            all.spawn(async move { write(&directory, edit).await });
        }
        while let Some(refused) = all.join_next().await {
            let refused = refused.unwrap();
            assert!(matches!(refused, Err(ApplyError::Store(_))), "{refused:?}");
        }
        println!("twenty changes were refused within {:?}", began.elapsed());
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        assert!(directory.user(&id("acme"), &id("alice")).await.is_err());
        replica.until(|_| directory.live.away()).await;
        assert_eq!(shown(&directory.live.load()), known);
        if round == 0 {
            server.pause(false);
        } else {
            server.start_again().await;
        }
        let back = replica.until(|_| !directory.live.away()).await;
        println!("reached again after {back:?}");
        assert_eq!(shown(&directory.live.load()), known);
        write(directory, group(format!("back{round}"))).await.unwrap();
        assert!(directory.user(&id("acme"), &id("alice")).await.unwrap().is_some());
        let fresh = alone(&url).await;
        assert_eq!(shown(&directory.live.load()), shown(&fresh.live.load()));
    }
}

/// Whoever brings a schema up to date may stand still, and a connection that is made again asks
/// whether it is.
#[tokio::test]
async fn a_schema_that_somebody_keeps_is_not_waited_for_for_ever() {
    let server = Postgres::shared().await;
    let url = server.database();
    let replica = Replica::open(&url).await;
    let directory = &replica.directory;
    apply(directory, "acme", ACME).await;
    let mut other = sqlx::PgConnection::connect(&url).await.unwrap();
    for sql in [
        "BEGIN",
        "LOCK TABLE _sqlx_migrations IN ACCESS EXCLUSIVE MODE",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    ] {
        sqlx::query(sql).execute(&mut other).await.unwrap();
    }
    let edit = |name: &str| put(Kind::Group, How::Create, &json!({ "id": name }));
    let refused = tokio::time::timeout(PATIENCE, write(directory, edit("refused"))).await.unwrap();
    assert!(matches!(refused, Err(ApplyError::Store(_))), "{refused:?}");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    let began = Instant::now();
    while let Err(error) = write(directory, edit("written")).await {
        assert!(began.elapsed() < PATIENCE, "{error}");
    }
}

#[tokio::test]
async fn f81_a_server_that_cannot_be_used_is_told_without_its_password() {
    let server = Postgres::shared().await;
    let url = server.database();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let port = server.port.to_string();
    for (wrong, told) in [
        (url.replace(&port, &nobody.port().to_string()), "refused"),
        (format!("{url}_none"), "does not exist"),
        (url.replace(PASSWORD, &format!("{PASSWORD}2")), "authentication failed"),
        (format!("postgres://x:{PASSWORD}@127.0.0.1:port/x"), "URL"),
        (format!("{PASSWORD} {PASSWORD}"), "URL"),
        (format!("{url}?pasword={PASSWORD}"), "pasword"),
        (format!("{url}?sslmode=require"), "TLS"),
        (format!("{url}?sslmode={PASSWORD}"), "URL"),
    ] {
        let place = Place::Server(wrong.into());
        assert!(!format!("{place:?}").contains(PASSWORD));
        let Err(error) = Directory::open(place, 1).await else { panic!("{told}") };
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(told), "{told}: {shown}");
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
}

#[tokio::test]
async fn d42_a_copy_holds_everything_and_has_a_higher_epoch() {
    let server = Postgres::shared().await;
    let file = Bench::acme().await;
    // More than are copied at once.
    let user = |number| format!("[[user]]\nid = \"u{number}\"\nsuspended = {}\n", number % 2 == 0);
    file.apply(&(0..1_200).map(user).collect::<String>()).await;
    let write = || Write::new("tests", at(NOVEMBER));
    let token = json!({ "id": "ci", "role": "viewer", "org": "acme" });
    file.directory.create_token(&body(&token), write()).await.unwrap();
    let there = Place::Server(server.database().into());
    let copied = copy::copy(file.place.clone(), there.clone()).await.unwrap();
    assert_eq!((copied.orgs, copied.epoch), (1, 2));
    let everything = copy::tests::everything;
    assert_eq!(everything(file.place.clone()).await, everything(there.clone()).await);
    let directory = Directory::open(there.clone(), 0).await.unwrap();
    assert_eq!(directory.live.load().orgs[&id("acme")].version.epoch, 2);
    let as_before = |shown: BTreeMap<String, String>| -> Vec<String> {
        shown.into_values().map(|text| text.replace("epoch: 2", "epoch: 1")).collect()
    };
    let (before, after) = (shown(&file.directory.live.load()), shown(&directory.live.load()));
    assert_eq!(as_before(before), as_before(after));
    // It goes on where the first one was, and only once.
    apply(&directory, "acme", "[[group]]\nid = \"there\"").await;
    let refused = copy::copy(file.place.clone(), there.clone()).await;
    assert!(matches!(refused, Err(copy::CopyError::NotEmpty("org"))), "{refused:?}");
    assert!(directory.live.load().orgs[&id("acme")].details.groups.contains_key(&id("there")));
    // And back.
    let dir = tempfile::tempdir().unwrap();
    let back = Place::in_data_dir(dir.path());
    assert_eq!(copy::copy(there.clone(), back.clone()).await.unwrap().epoch, 3);
    assert_eq!(everything(there).await, everything(back.clone()).await);
    let refused = copy::copy("sqlite:/nowhere/at.all".parse().unwrap(), back).await;
    assert!(matches!(refused, Err(copy::CopyError::Absent(_))), "{refused:?}");
}

#[tokio::test]
async fn whoever_waits_to_be_alone_leaves_nothing_at_the_server_that_waits() {
    let server = Postgres::shared().await;
    let url = server.database();
    let (one, two) = (alone(&url).await, alone(&url).await);
    let is_alone = one.alone().await.unwrap();
    let busy = two.alone_within(Duration::ZERO).await;
    assert!(matches!(busy, Err(ApplyError::Busy)));
    // Clients that come and go.
    for _ in 0..3 {
        let waits = tokio::time::timeout(Duration::from_millis(200), two.alone()).await;
        assert!(waits.is_err(), "somebody else is");
    }
    let mut link = store::link(Place::Server(url.as_str().into()), true);
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let row = query(sql).fetch_one(link.connection().await.unwrap()).await.unwrap();
    assert_eq!(row.try_get::<i64, _>(0).unwrap(), 0);
    drop(is_alone);
    two.alone().await.unwrap();
}
