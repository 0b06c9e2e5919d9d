//! Every endpoint with every role. The endpoints are those of the document that the server makes
//! of its own table; who may use them stands here once more, by hand.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::support::world::TOKEN;
use super::support::{Answer, Call, Client, World, run};
use super::{admin, ask, ids, json_call, org, token};

/// Method, path, and who may: o(perator), a (org-admin), v(iewer), p(rofile-admin).
const MAY: &str = include_str!("may.txt");

/// An endpoint as the document describes it.
struct Described {
    method: &'static str,
    path: String,
    roles: Vec<String>,
    takes: bool,
    conditional: bool,
}

fn described(world: &World) -> Vec<Described> {
    let (status, document) = world.admin("/openapi.json");
    assert_eq!(status, 200);
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method = ["GET", "POST", "PUT", "PATCH", "DELETE"]
                .into_iter()
                .find(|known| known.eq_ignore_ascii_case(method))
                .unwrap();
            let roles = operation["x-roles"].as_array().unwrap();
            let names = |one: &Value| one["name"] == "If-Match";
            all.push(Described {
                method,
                path: path.clone(),
                roles: roles.iter().map(|role| role.as_str().unwrap().to_owned()).collect(),
                takes: operation["requestBody"].is_object(),
                conditional: operation["parameters"].as_array().unwrap().iter().any(names),
            });
        }
    }
    all
}

impl Described {
    /// A call that changes nothing even where it is let through: it names what is not there, or
    /// asks on a condition that does not hold, or has a body that says nothing.
    fn call(&self, org: &str) -> Call {
        let path = self.path.replace("{org}", org).replace("members/{user}", "members/nobody");
        let path = path.replace("{user}", "alice").replace("{profile}", "ffs");
        let path = path.replace("{charge}", "0198f3c2-6f2a-7000-8000-000000000001");
        let path: String = path
            .split('/')
            .map(|part| if part.starts_with('{') { "none" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        let call = if self.takes {
            json_call(self.method, &path, &json!({}))
        } else {
            Call::new(self.method, &path)
        };
        if self.conditional { call.header("if-match", "\"0\"") } else { call }
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

fn is_refused(answer: &Answer, status: u16, code: &str) -> bool {
    answer.status == status && answer.json()["code"] == code
}

#[test]
fn f77_every_endpoint_is_for_whom_it_is_meant() {
    run(async {
        let world = World::new(&org());
        let found: BTreeMap<String, String> = described(&world)
            .into_iter()
            .map(|one| {
                let letter = |role: &String| match role.as_str() {
                    "operator" => 'o',
                    "org-admin" => 'a',
                    "viewer" => 'v',
                    "profile-admin" => 'p',
                    other => panic!("{other}"),
                };
                (one.name(), one.roles.iter().map(letter).collect())
            })
            .collect();
        let expected: BTreeMap<String, String> = MAY
            .lines()
            .map(|line| {
                let (name, roles) = line.rsplit_once(' ').unwrap();
                (name.to_owned(), roles.to_owned())
            })
            .collect();
        assert_eq!(found, expected);
    });
}

#[test]
fn f77_every_endpoint_refuses_every_other_role_and_changes_nothing() {
    run(async {
        let world = World::new(&org());
        let globex = json_call("PUT", "/v1/orgs/globex", &json!({}));
        ask(&world, TOKEN, globex).await.is(200);
        let tokens = [
            ("operator", "acme", TOKEN.to_owned()),
            ("org-admin", "acme", token(&world, "boss", "org-admin", Some("acme"), &[]).await),
            ("viewer", "acme", token(&world, "guest", "viewer", Some("acme"), &[]).await),
            ("viewer", "", token(&world, "auditor", "viewer", None, &[]).await),
            (
                "profile-admin",
                "acme",
                token(&world, "lead", "profile-admin", Some("acme"), &["ffs"]).await,
            ),
            ("org-admin", "globex", token(&world, "other", "org-admin", Some("globex"), &[]).await),
        ];
        let state = || {
            let of = |path: &str| world.admin(path).1["items"].clone();
            let lists = ["users", "licences", "terms", "plans", "groups", "profiles", "keys"];
            let lists = lists.map(|list| of(&format!("/v1/orgs/acme/{list}")));
            json!([lists, of("/v1/orgs/acme/audit"), of("/v1/audit"), of("/v1/tokens")])
        };
        let before = state();
        let endpoints = described(&world);
        assert!(endpoints.len() > 60, "{}", endpoints.len());
        let mut client = Client::connect(world.admin_address()).await;
        let mut findings = Vec::new();
        for one in &endpoints {
            let mut expect = |who: &str, answer: &Answer, fine: bool| {
                if !fine {
                    let text = String::from_utf8_lossy(&answer.body);
                    findings.push(format!("{} as {who}: {} {text}", one.name(), answer.status));
                }
            };
            let plain = one.call("acme");
            let wrong = plain.clone().key("tga_000000000000000000000000000000000000000000000000");
            let twice = plain.clone().key(TOKEN).key(TOKEN);
            let basic = plain.clone().header("authorization", &format!("Basic {TOKEN}"));
            for (who, call) in
                [("nobody", plain.clone()), ("a stranger", wrong), ("two", twice), ("basic", basic)]
            {
                let answer = client.send(&call).await;
                let challenged = answer.header("www-authenticate") == Some("Bearer");
                expect(who, &answer, challenged && is_refused(&answer, 401, "unauthenticated"));
            }
            for (role, own, secret) in &tokens {
                let answer = client.send(&plain.clone().key(secret)).await;
                let foreign = !own.is_empty() && *own != "acme" && one.path.contains("{org}");
                let may = one.roles.iter().any(|known| known == role) && !foreign;
                let refused = is_refused(&answer, 403, "forbidden");
                let let_through = !matches!(answer.status, 401 | 403) && answer.status < 500;
                expect(role, &answer, if may { let_through } else { refused });
            }
        }
        assert!(findings.is_empty(), "{}", findings.join("\n"));
        assert_eq!(state(), before);
    });
}

#[test]
fn f77_a_profile_admin_reaches_members_of_its_profiles_only() {
    run(async {
        let world = World::new(&org());
        let lead = token(&world, "lead", "profile-admin", Some("acme"), &["ffs"]).await;
        let image = Call::post("/v1/images", "{}");
        let own = world.send(&image.clone().user("alice")).await.told("charge");
        let other = world.send(&image.user("bob")).await.told("charge");
        let get = async |path: &str| {
            ask(&world, &lead, Call::get(&format!("/v1/orgs/acme/{path}"))).await
        };
        assert_eq!(ids(&get("users").await.is(200).json()), ["alice"]);
        assert_eq!(ids(&get("users?q=bob").await.json()), [""; 0]);
        assert_eq!(ids(&get("users?sort=-captured&profile=ffs").await.json()), ["alice"]);
        get("users?profile=cce").await.refused(422, "invalid");
        assert_eq!(ids(&get("profiles").await.json()), ["ffs"]);
        for path in ["users/alice", "users/alice/balance", "profiles/ffs"] {
            get(path).await.is(200);
        }
        get(&format!("charges/{own}")).await.is(200);
        for path in ["users/bob", "users/bob/balance", &format!("charges/{other}")] {
            get(path).await.refused(404, "not_found");
        }
        get("profiles/cce").await.refused(403, "forbidden");
        let quote = async |user: &str| {
            let body = json!({ "user": user, "feature": "image" });
            ask(&world, &lead, json_call("POST", "/v1/orgs/acme/quotes", &body)).await
        };
        quote("alice").await.is(200);
        quote("bob").await.refused(404, "not_found");
        let member = async |method: &'static str, path: &str| {
            ask(&world, &lead, Call::new(method, &format!("/v1/orgs/acme/profiles/{path}"))).await
        };
        member("PUT", "ffs/members/bob").await.is(204);
        get("users/bob").await.is(200);
        member("DELETE", "ffs/members/bob").await.is(204);
        get("users/bob").await.refused(404, "not_found");
        member("PUT", "cce/members/alice").await.refused(403, "forbidden");
        member("DELETE", "cce/members/alice").await.refused(403, "forbidden");
        assert_eq!(world.balance("alice")["pool"]["access"], true);
    });
}

#[test]
fn f77_a_token_ends_when_it_is_revoked_or_expires() {
    run(async {
        let world = World::new(&org());
        let guest = token(&world, "guest", "viewer", Some("acme"), &[]).await;
        let body = json!({"id": "short", "role": "viewer", "expires": "2026-11-20T11:00:00Z"});
        let made = ask(&world, TOKEN, json_call("POST", "/v1/tokens", &body)).await;
        let expired = made.is(201).json()["secret"].as_str().unwrap().to_owned();
        let pool = || Call::get("/v1/orgs/acme/pool");
        ask(&world, &expired, pool()).await.refused(401, "unauthenticated");
        ask(&world, &guest, pool()).await.is(200);
        let (_, listed) = world.admin("/v1/tokens");
        assert_eq!(ids(&listed), ["guest", "short"]);
        assert!(!listed.to_string().contains(&guest), "{listed}");
        let revoke = || Call::new("DELETE", "/v1/tokens/guest");
        ask(&world, TOKEN, revoke()).await.is(204);
        ask(&world, TOKEN, revoke()).await.refused(404, "not_found");
        ask(&world, &guest, pool()).await.refused(401, "unauthenticated");
        let (_, audit) = world.admin("/v1/audit");
        assert!(!audit.to_string().contains(&guest));
        assert_eq!(audit["items"][0]["kind"], "token");
        admin(&world, "GET", "pool", Value::Null).await.is(200);
    });
}
