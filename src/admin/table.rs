//! Every endpoint of the admin API, with who may use it. What is not in this table does not
//! exist, and a role that a line does not name is refused.

use std::sync::LazyLock;

use super::api::{adjustments, audit, charges, orgs, quotes, things, tokens, users};
use super::call::Call;
use super::endpoint::{Answering, Endpoint, Parameter, Scope, Shape};
use super::openapi;
use super::problem::Code;
use crate::directory::things::Kind;
use crate::directory::token::Role;

const EVERYONE: &[Role] = &[Role::Operator, Role::OrgAdmin, Role::Viewer, Role::ProfileAdmin];
const READERS: &[Role] = &[Role::Operator, Role::OrgAdmin, Role::Viewer];
const ADMINS: &[Role] = &[Role::Operator, Role::OrgAdmin];
const ADMINS_OF_MEMBERS: &[Role] = &[Role::Operator, Role::OrgAdmin, Role::ProfileAdmin];
const OPERATOR: &[Role] = &[Role::Operator];

const fn parameter(name: &'static str, about: &'static str, shape: Shape) -> Parameter {
    Parameter { name, about, shape }
}

const LIMIT: Parameter = parameter("limit", "How many items at most.", Shape::Limit);
const CURSOR: Parameter =
    parameter("cursor", "Goes on behind an earlier part: its `next_cursor`.", Shape::Cursor);
const Q: Parameter = parameter("q", "Only what has this text in it, in any case.", Shape::Text);
const BY_ID: Parameter =
    parameter("sort", "The order; a minus turns it around.", Shape::Word(&["id", "-id"]));
/// A list in memory.
const LIST: &[Parameter] = &[LIMIT, CURSOR, Q, BY_ID];
/// A list in the database, in an order of its own.
const PART: &[Parameter] = &[LIMIT, CURSOR];
const USER: Parameter = parameter("user", "Only what is this user's.", Shape::Id);
const ORDERS_OF_USERS: Shape = Shape::Word(&[
    "id",
    "-id",
    "granted",
    "-granted",
    "held",
    "-held",
    "captured",
    "-captured",
    "available",
    "-available",
    "drawn",
    "-drawn",
    "overdraft",
    "-overdraft",
]);
const DRY_RUN: Parameter = parameter("dry_run", "Only tell what would change.", Shape::Flag);

/// How large an org file of an operator may be.
const MAX_DOCUMENT: usize = 256 << 20;

/// Every endpoint.
pub fn endpoints() -> &'static [Endpoint] {
    static TABLE: LazyLock<Vec<Endpoint>> = LazyLock::new(|| {
        let mut table = vec![
            Endpoint::new("GET", "/openapi.json", "openapi", "This document.", openapi::document)
                .roles(EVERYONE, Scope::All)
                .gives("OpenApi"),
        ];
        table.extend(of_orgs());
        table.extend(of_things());
        table.extend(of_users());
        table.extend(of_charges());
        table.extend(of_tokens());
        table
    });
    &TABLE
}

fn of_orgs() -> Vec<Endpoint> {
    vec![
        Endpoint::new("GET", "/v1/orgs", "list_orgs", "The orgs that the token sees.", orgs::list)
            .roles(EVERYONE, Scope::All)
            .query(LIST)
            .lists("Org"),
        Endpoint::new("GET", "/v1/orgs/{org}", "read_org", "An org's settings.", orgs::read)
            .roles(READERS, Scope::Org)
            .gives("Org"),
        Endpoint::new("PUT", "/v1/orgs/{org}", "replace_org", REPLACE_ORG, |call| {
            things::replace(call, Kind::Org)
        })
        .roles(ADMINS, Scope::Org)
        .takes("OrgBody")
        .gives("Org")
        .conditional(),
        Endpoint::new("PATCH", "/v1/orgs/{org}", "change_org", "Changes settings.", |call| {
            things::merge(call, Kind::Org)
        })
        .roles(ADMINS, Scope::Org)
        .takes_merge("OrgPatch")
        .gives("Org")
        .conditional(),
        Endpoint::new("POST", "/v1/orgs/{org}/apply", "apply", APPLY, orgs::apply)
            .roles(ADMINS, Scope::Org)
            .query(&[DRY_RUN])
            .takes_document("Document", MAX_DOCUMENT)
            .gives("Applied")
            .conditional()
            .once()
            .also(&[Code::Busy]),
        Endpoint::new("GET", "/v1/orgs/{org}/pool", "pool", POOL, orgs::pool)
            .roles(READERS, Scope::Org)
            .gives("Pool")
            .also(BOOKS),
        Endpoint::new("GET", "/v1/orgs/{org}/audit", "list_audit", AUDIT, audit::of_org)
            .roles(READERS, Scope::Org)
            .query(PART)
            .query(AUDITED)
            .lists("AuditEntry")
            .also(DIRECTORY),
        Endpoint::new("GET", "/v1/audit", "list_audit_of_all", AUDIT_OF_ALL, audit::of_all)
            .roles(OPERATOR, Scope::All)
            .query(PART)
            .query(AUDITED)
            .lists("AuditEntry")
            .also(DIRECTORY),
    ]
}

const BOOKS: &[Code] = &[Code::BooksUnavailable];
const DIRECTORY: &[Code] = &[Code::DirectoryUnavailable];
const REPLACE_ORG: &str = "Creates an org, or replaces its settings.";
const APPLY: &str = "Makes an org be what an org file says, whole or not at all.";
const POOL: &str = "The pool of the current term, and what was used past it.";
const AUDIT: &str = "Who changed what of the org, newest first.";
const AUDIT_OF_ALL: &str = "Who changed tokens and what belongs to no org, newest first.";
const AUDITED: &[Parameter] = &[
    parameter("kind", "Only changes of things of this kind.", Shape::Text),
    parameter("id", "Only changes of the thing with this id.", Shape::Text),
    parameter("who", "Only what this token did.", Shape::Text),
    parameter("from", "Only what was done at this time or later.", Shape::Time),
    parameter("to", "Only what was done before this time.", Shape::Time),
];

/// Schemas of each kind of thing: as it is read, as it is created, as it is put, as a change of
/// it, and as it is answered when it was written.
const TERM: [&str; 5] = ["Term", "Term", "TermBody", "TermPatch", "Term"];
const PLAN: [&str; 5] = ["Plan", "Plan", "PlanBody", "PlanPatch", "Plan"];
const GROUP: [&str; 5] = ["Group", "Group", "GroupBody", "", "Group"];
const PROFILE: [&str; 5] = ["Profile", "Profile", "ProfileBody", "ProfilePatch", "Profile"];
const RATE_CARD: [&str; 5] = ["RateCard", "RateCard", "RateCardBody", "RateCardPatch", "RateCard"];
const KEY: [&str; 5] = ["Key", "NewKey", "NewKeyBody", "NewKeyPatch", "KeyAndSecret"];
const PERSON: [&str; 5] = ["User", "User", "UserBody", "UserPatch", "User"];
const LICENCE: [&str; 5] = ["Licence", "Licence", "LicenceBody", "LicencePatch", "Licence"];

/// The same endpoints for each kind of thing.
fn of_things() -> Vec<Endpoint> {
    let mut table = Vec::new();
    for (kind, path, word, [one, new, body, patch, given], readers) in [
        (Kind::Term, "terms", "term", TERM, READERS),
        (Kind::Plan, "plans", "plan", PLAN, READERS),
        (Kind::Group, "groups", "group", GROUP, READERS),
        (Kind::Profile, "profiles", "profile", PROFILE, EVERYONE),
        (Kind::RateCard, "rate-cards", "rate_card", RATE_CARD, READERS),
        (Kind::Key, "keys", "key", KEY, READERS),
        (Kind::User, "users", "user", PERSON, EVERYONE),
        (Kind::Licence, "licences", "licence", LICENCE, READERS),
    ] {
        let all = format!("/v1/orgs/{{org}}/{path}");
        let each = format!("{all}/{{{word}}}");
        let shown = word.replace('_', " ");
        let (listed, own) = match kind {
            Kind::Profile => (Scope::Listed, Scope::Profile),
            Kind::User => (Scope::Listed, Scope::User),
            _ => (Scope::Org, Scope::Org),
        };
        let endpoint =
            |method, path: &str, does: &str, verb: &str, answer: fn(Call, Kind) -> Answering| {
                let (name, summary) = (format!("{verb}_{word}"), format!("{does} {shown}."));
                Endpoint::new(method, path, &name, &summary, move |call| answer(call, kind))
            };
        if !matches!(kind, Kind::User | Kind::Licence) {
            table.push(
                endpoint("GET", &all, "Lists every", "list", things::list)
                    .roles(readers, listed)
                    .query(LIST)
                    .lists(one),
            );
        }
        table.push(
            endpoint("POST", &all, "Creates a", "create", things::create)
                .roles(ADMINS, Scope::Org)
                .takes(new)
                .gives(given)
                .creates()
                .once(),
        );
        table.push(
            endpoint("GET", &each, "Reads a", "read", things::read)
                .roles(readers, own)
                .gives(one)
                .also(DIRECTORY),
        );
        table.push(
            endpoint("PUT", &each, "Creates or replaces a", "replace", things::replace)
                .roles(ADMINS, Scope::Org)
                .takes(body)
                .gives(given)
                .conditional(),
        );
        // There is nothing in a group that could change.
        if kind != Kind::Group {
            table.push(
                endpoint("PATCH", &each, "Changes a", "change", things::merge)
                    .roles(ADMINS, Scope::Org)
                    .takes_merge(patch)
                    .gives(given)
                    .conditional(),
            );
        }
        table.push(
            endpoint("DELETE", &each, "Removes a", "delete", things::delete)
                .roles(ADMINS, Scope::Org)
                .removes()
                .conditional(),
        );
    }
    table
}

fn of_users() -> Vec<Endpoint> {
    let mut table = vec![
        Endpoint::new("GET", "/v1/orgs/{org}/users", "list_users", USERS, users::list)
            .roles(EVERYONE, Scope::Listed)
            .query(&[LIMIT, CURSOR, Q, parameter("sort", BY_ID.about, ORDERS_OF_USERS)])
            .query(&[
                parameter("group", "Only members of this group.", Shape::Id),
                parameter("profile", "Only members of this profile.", Shape::Id),
            ])
            .lists("UserBalance")
            .also(BOOKS),
        Endpoint::new(
            "GET",
            "/v1/orgs/{org}/users/{user}/balance",
            "read_balance",
            "A user's balance.",
            users::balance,
        )
        .roles(EVERYONE, Scope::User)
        .gives("Balance")
        .also(BOOKS),
        Endpoint::new("GET", "/v1/orgs/{org}/licences", "list_licence", LICENCES, things::licences)
            .roles(READERS, Scope::Org)
            .query(PART)
            .query(&[
                USER,
                parameter("plan", "Only licences of this plan.", Shape::Id),
                parameter("unassigned", "Only those that nobody holds.", Shape::Flag),
            ])
            .lists("Licence")
            .also(DIRECTORY),
        Endpoint::new(
            "POST",
            "/v1/orgs/{org}/keys/{key}/rotate",
            "rotate_key",
            ROTATE,
            things::rotate,
        )
        .roles(ADMINS, Scope::Org)
        .takes("Rotation")
        .or_nothing()
        .gives("KeyAndSecret")
        .conditional()
        .once(),
        Endpoint::new(
            "DELETE",
            "/v1/orgs/{org}/keys/{key}/secrets/{secret}",
            "drop_secret",
            "Refuses one of a key's two secrets from now on.",
            things::drop_secret,
        )
        .roles(ADMINS, Scope::Org)
        .removes()
        .conditional(),
    ];
    for (of, word, roles, scope) in [
        ("groups", "group", ADMINS, Scope::Org),
        ("profiles", "profile", ADMINS_OF_MEMBERS, Scope::Profile),
    ] {
        let path = format!("/v1/orgs/{{org}}/{of}/{{{word}}}/members/{{user}}");
        let (add, remove) = (format!("add_to_{word}"), format!("remove_from_{word}"));
        let adds = format!("Makes a user a direct member of a {word}.");
        let removes = format!("Ends a user's direct membership of a {word}.");
        table.extend([
            Endpoint::new("PUT", &path, &add, &adds, |call| things::set_member(call, true))
                .roles(roles, scope)
                .removes(),
            Endpoint::new("DELETE", &path, &remove, &removes, |call| {
                things::set_member(call, false)
            })
            .roles(roles, scope)
            .removes(),
        ]);
    }
    table
}

const USERS: &str = "Every user with their balance, those who used nothing too (D11).";
const LICENCES: &str = "Licences, assigned or not, by id.";
const ROTATE: &str = "Gives a key a second secret; the first lives on until it is dropped.";

fn of_charges() -> Vec<Endpoint> {
    let charge = "/v1/orgs/{org}/charges/{charge}";
    vec![
        Endpoint::new("POST", "/v1/orgs/{org}/quotes", "quote", QUOTE, quotes::quote)
            .roles(EVERYONE, Scope::Listed)
            .takes("QuoteRequest")
            .gives("Quote")
            .also(BOOKS),
        Endpoint::new("GET", "/v1/orgs/{org}/holds", "list_holds", HOLDS, charges::holds)
            .roles(EVERYONE, Scope::Listed)
            .query(LIST)
            .query(&[USER])
            .lists("Charge")
            .also(BOOKS),
        Endpoint::new(
            "POST",
            "/v1/orgs/{org}/holds/{charge}/void",
            "void_hold",
            "Voids an open charge: what it holds returns.",
            charges::void,
        )
        .roles(ADMINS, Scope::Org)
        .gives("Charge")
        .also(BOOKS),
        Endpoint::new("GET", charge, "read_charge", "A charge.", charges::read)
            .roles(EVERYONE, Scope::Listed)
            .gives("Charge")
            .also(BOOKS),
        Endpoint::new(
            "POST",
            &format!("{charge}/refund"),
            "refund_charge",
            "Gives back what a captured charge took, once.",
            adjustments::refund,
        )
        .roles(ADMINS, Scope::Org)
        .takes("RefundRequest")
        .gives("Refund")
        .creates()
        .once()
        .also(BOOKS),
        Endpoint::new(
            "GET",
            "/v1/orgs/{org}/adjustments",
            "list_adjustments",
            "Adjustments, newest first.",
            adjustments::list,
        )
        .roles(READERS, Scope::Org)
        .query(PART)
        .lists("Adjustment")
        .also(BOOKS),
        Endpoint::new("POST", "/v1/orgs/{org}/adjustments", "adjust", ADJUST, adjustments::adjust)
            .roles(ADMINS, Scope::Org)
            .takes("AdjustmentRequest")
            .gives("Adjustment")
            .creates()
            .once()
            .also(BOOKS),
    ]
}

const QUOTE: &str = "What a request would cost a user, and whether it would be served now.";
const HOLDS: &str = "Open charges, oldest first.";
const ADJUST: &str = "Adds to what an account is granted, or takes from it.";

fn of_tokens() -> Vec<Endpoint> {
    vec![
        Endpoint::new("GET", "/v1/tokens", "list_tokens", "Tokens of this API.", tokens::list)
            .roles(OPERATOR, Scope::All)
            .query(LIST)
            .lists("Token"),
        Endpoint::new("POST", "/v1/tokens", "create_token", "Makes a token.", tokens::create)
            .roles(OPERATOR, Scope::All)
            .takes("NewToken")
            .gives("TokenAndSecret")
            .creates()
            .once(),
        Endpoint::new("GET", "/v1/tokens/{token}", "read_token", "A token.", tokens::read)
            .roles(OPERATOR, Scope::All)
            .gives("Token"),
        Endpoint::new("DELETE", "/v1/tokens/{token}", "revoke_token", REVOKE, tokens::revoke)
            .roles(OPERATOR, Scope::All)
            .removes()
            .conditional(),
    ]
}

const REVOKE: &str = "Revokes a token: it is refused from the next request on.";
