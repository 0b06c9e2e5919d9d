//! The directory as its callers see it: documents in, snapshots out.

mod administration;
mod changes;
mod edits;
mod moves;
#[path = "../../tests/support/postgres.rs"]
#[expect(dead_code, reason = "the gateway's tests need more of it")]
mod postgres;
mod replicas;
mod rules;
mod search;

use jiff::Timestamp;
use tempfile::TempDir;

use self::postgres::Postgres;
use super::difference::Change;
use super::file::Source;
use super::snapshot::{Org, Payer};
use super::*;
use crate::core::amount::{MICRO, Operations};

/// An org with two seats, a pool and both kinds of profiles.
const ACME: &str = r#"
[org]
id = "acme"
contract = "etla"
products = ["firefly-services", "cce-4"]

[[term]]
id = "2026"
start = "2026-01-01"
end = "2027-01-01"
pool = "10000"

[[plan]]
id = "cc-pro"
credits = "4000"
[[plan]]
id = "addon-2000"
credits = "2000"

[[group]]
id = "design"

[[user]]
id = "alice"
email = "alice@acme.example"
licences = [{ id = "lic-1", plan = "cc-pro" }, { id = "lic-2", plan = "addon-2000", priority = 2 }]
groups = ["design"]
[[user]]
id = "bob"

[[profile]]
id = "ffs-creative"
product = "firefly-services"
shared_credits = true
groups = ["design"]
pool_limit = "100"
[[profile]]
id = "cce"
product = "cce-4"
groups = ["design"]

[[rate_card]]
version = "2026-11"
operations_per_credit = "0.02"
[[rate_card.rate]]
feature = "text-to-image"
unit = "image"
credits = "1"

[[key]]
id = "studio"
kind = "service"
secret = "tg_studio_0123456789abcdef"
"#;

const NOVEMBER: &str = "2026-11-10T12:00:00Z";
const DECEMBER: &str = "2026-12-10T12:00:00Z";

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn operations(text: &str) -> Operations {
    text.parse().unwrap()
}

/// A directory in a data dir of its own, or in a database of its own where a server is lent.
struct Bench {
    dir: TempDir,
    place: Place,
    directory: Directory,
}

impl Bench {
    async fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = match postgres::given() {
            Some(_) => Place::Server(Postgres::start().await.database().into()),
            None => Place::in_data_dir(dir.path()),
        };
        let directory = Directory::open(place.clone(), 1).await.unwrap();
        Self { dir, place, directory }
    }

    async fn acme() -> Self {
        let bench = Self::empty().await;
        bench.apply(ACME).await;
        bench
    }

    /// Closes and opens it again.
    async fn reopen(self, least_epoch: u32) -> Self {
        let Self { dir, place, directory } = self;
        directory.close().await.unwrap();
        let directory = Directory::open(place.clone(), least_epoch).await.unwrap();
        Self { dir, place, directory }
    }

    async fn try_apply(&self, toml: &str, now: &str) -> Result<Applied, ApplyError> {
        let document = Source::from_toml(toml).unwrap().document();
        self.directory.apply(&id("acme"), &document, false, "tests", at(now)).await
    }

    async fn apply_at(&self, toml: &str, now: &str) -> Vec<String> {
        let applied = self.try_apply(toml, now).await.unwrap();
        applied.changes.iter().map(Change::to_string).collect()
    }

    async fn apply(&self, toml: &str) -> Vec<String> {
        self.apply_at(toml, NOVEMBER).await
    }

    async fn dry_run(&self, toml: &str) -> Vec<String> {
        let document = Source::from_toml(toml).unwrap().document();
        let applied =
            self.directory.apply(&id("acme"), &document, true, "tests", at(NOVEMBER)).await;
        applied.unwrap().changes.iter().map(Change::to_string).collect()
    }

    /// The problems of a document that must not be applied.
    async fn problems(&self, toml: &str) -> Vec<String> {
        match self.try_apply(toml, NOVEMBER).await {
            Err(ApplyError::Invalid(problems)) => {
                problems.iter().map(|problem| problem.pointer.clone()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Changes rows behind the directory's back.
    async fn execute(&self, query: crate::sql::Query) {
        let mut database = self.directory.database.lock().await;
        query.execute(database.link.connection().await.unwrap()).await.unwrap();
    }

    fn org(&self) -> Arc<Org> {
        Arc::clone(&self.directory.live.load().orgs[&id("acme")])
    }

    /// A user's licences that pay at `now`, as account names and credits.
    fn seat(&self, user: &str, now: &str) -> Vec<(String, u64)> {
        let org = self.org();
        let user = Arc::clone(org.users.get(user).unwrap());
        let moment = org.moment(at(now));
        let position = org.position(Payer::User(&user), &moment, at(now));
        let paying = position.accounts.iter().take(position.licences.into());
        let whole = |micro| micro / MICRO;
        paying.map(|account| (account.name.to_string(), whole(account.grant.base))).collect()
    }

    fn access(&self, user: &str) -> Result<Arc<crate::core::entitlement::Access>, Vec<String>> {
        let decision = self.org().users.get(user).unwrap().standing.access.clone();
        decision.map_err(|missing| missing.iter().map(rows::word).collect())
    }
}
