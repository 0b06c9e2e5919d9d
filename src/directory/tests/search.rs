//! The administrators' list of users.

use super::edits::put;
use super::*;
use crate::directory::edit::How;
use crate::directory::search::{UserQuery, UserSearch};
use crate::directory::things::Kind;
use serde_json::json;

/// What a user of these tests has used: the digits of the id, in steps of three.
fn used(user: &snapshot::User) -> i128 {
    let digits: String = user.id().chars().filter(char::is_ascii_digit).collect();
    digits.parse::<i128>().map_or(0, |number| number / 3)
}

fn page(org: &Org, query: &UserQuery) -> (Vec<String>, Option<String>) {
    let mut search = UserSearch::new(query.clone()).unwrap();
    for user in org.users.iter() {
        if search.wants(org, user) {
            search.offer(user, used(user));
        }
    }
    let (users, next) = search.page();
    (users.iter().map(|user| user.id().to_string()).collect(), next)
}

fn all(org: &Org, mut query: UserQuery) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let (page, next) = page(org, &query);
        assert!(page.len() <= query.limit && (next.is_none() || page.len() == query.limit));
        ids.extend(page);
        assert!(ids.len() <= org.users.len());
        match next {
            Some(_) => query.cursor = next,
            None => return ids,
        }
    }
}

async fn many() -> Bench {
    let bench = Bench::acme().await;
    let users: Vec<String> = (0..50)
        .map(|n| format!("[[user]]\nid = \"u{n:02}\"\nemail = \"U{n:02}@Acme.example\"\n"))
        .collect();
    bench.apply(&users.concat()).await;
    bench
}

#[tokio::test]
async fn d11_every_user_is_listed_once_in_every_order_also_without_use() {
    let bench = many().await;
    let org = bench.org();
    let mut by_id: Vec<String> = org.users.iter().map(|user| user.id().to_string()).collect();
    by_id.sort();
    assert_eq!(by_id.len(), 52);
    let key = |id: &String| used(org.users.get(id).unwrap());
    for limit in [1, 7, 51, 52, 1000] {
        let sorted = |sort: &str| {
            let sort = sort.parse().unwrap();
            all(&org, UserQuery { sort, limit, ..UserQuery::default() })
        };
        assert_eq!(sorted("captured").len(), 52);
        let mut rising = by_id.clone();
        rising.sort_by_key(key);
        assert_eq!(sorted("captured"), rising);
        let mut falling = by_id.clone();
        falling.sort_by_key(|id| -key(id));
        assert_eq!(sorted("-captured"), falling);
    }
}

#[tokio::test]
async fn users_are_sorted_by_id_both_ways() {
    let bench = many().await;
    let org = bench.org();
    let page = |sort: &str| {
        let sort = sort.parse().unwrap();
        let mut search =
            UserSearch::new(UserQuery { sort, limit: 2, ..UserQuery::default() }).unwrap();
        org.users.iter().for_each(|user| search.offer(user, 0));
        search.page().0.iter().map(|user| user.id().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page("id"), ["alice", "bob"]);
    assert_eq!(page("-id"), ["u49", "u48"]);
}

#[tokio::test]
async fn users_are_found_by_part_of_id_or_email_group_and_profile() {
    let bench = many().await;
    bench.edit(put(Kind::User, How::Create, &json!({ "id": "Zoë".replace('ë', "e") }))).await;
    let org = bench.org();
    let found = |query: UserQuery| all(&org, UserQuery { limit: 3, ..query });
    let q = |text: &str| found(UserQuery { q: Some(text.to_owned()), ..UserQuery::default() });
    assert_eq!(q("ALI"), ["alice"]);
    assert_eq!(q("u4").len(), 10);
    assert_eq!(q("49@acme"), ["u49"]);
    assert_eq!(q("zoe"), ["Zoe"]);
    assert_eq!(q("").len(), 53);
    assert!(q("nobody").is_empty() && q(&"x".repeat(1000)).is_empty());
    let group = |name: &str| found(UserQuery { group: Some(id(name)), ..UserQuery::default() });
    assert_eq!(group("design"), ["alice"]);
    assert!(group("none").is_empty());
    let of = |names: &[&str]| {
        let profiles = Some(names.iter().map(|name| id(name)).collect());
        found(UserQuery { profiles, ..UserQuery::default() })
    };
    assert_eq!(of(&["none", "cce"]), ["alice"]);
    assert!(of(&[]).is_empty());
}

#[test]
fn a_cursor_is_of_one_list() {
    let query = |sort: &str, cursor: &str| UserQuery {
        sort: sort.parse().unwrap(),
        limit: 1,
        cursor: Some(cursor.to_owned()),
        ..UserQuery::default()
    };
    let own = rows::hex(b"-captured -5 u01");
    assert!(UserSearch::new(query("-captured", &own)).is_ok());
    let odd = [b"-captured -5 u01 x".as_slice(), b"-captured x u01", b"-captured -5 a/b", b"\xff"];
    let odd = odd.map(rows::hex);
    let odd = odd.iter().map(String::as_str).chain(["", "zz", "é", &own[1..]]);
    for cursor in odd {
        assert!(UserSearch::new(query("-captured", cursor)).is_err(), "{cursor:?}");
    }
    assert_eq!(UserSearch::new(query("captured", &own)).unwrap_err().pointer, "/cursor");
    for sort in ["", "-", "name", "--id", "Id"] {
        assert!(sort.parse::<crate::directory::search::Sort>().is_err());
    }
}
