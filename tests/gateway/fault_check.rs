//! What clients were told, what the archive has and what the books say, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

use super::fault_load::Wanted;
use super::faults::{Campaign, OWNER_TIMEOUT};
use crate::support::world::{TOKEN, micro};
use crate::support::{Call, World, burst_over};

/// Whose balances are compared. Whoever looks whether it serves is charged too.
const USERS: [&str; 4] = ["alice", "bob", "carol", "probe"];

/// An org, and what was wanted of it.
pub struct Round {
    pub org: String,
    pub wanted: Vec<Wanted>,
    /// Redis may have lost what it acknowledged.
    pub is_lossy: bool,
    /// What its users had used when it was checked: credits of the seat, and Operations.
    pub used: BTreeMap<&'static str, [u64; 2]>,
}

/// What was seen in all rounds.
#[derive(Debug, Default)]
pub struct Figures {
    pub ends: BTreeMap<&'static str, usize>,
    pub states: BTreeMap<String, usize>,
    pub late: usize,
    pub in_doubt: usize,
    /// Accounts from which more was spent than was granted.
    pub in_the_red: usize,
}

impl Campaign {
    /// A document of the admin API of one of the gateways.
    async fn document(&self, at: usize, path: &str) -> Value {
        let began = Instant::now();
        loop {
            let (status, document) = self.worlds[at % 3].admin(path);
            if status == 200 {
                return document;
            }
            assert!(began.elapsed() < OWNER_TIMEOUT * 5, "{path}: {document}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until nothing of an org is held any more: what was open has ended, or was resolved by
    /// others.
    async fn nothing_is_held(&self, org: &str) {
        let began = Instant::now();
        for at in 0..3 {
            loop {
                let open = self.document(at, &format!("/v1/orgs/{org}/holds")).await;
                let pool = self.document(at, &format!("/v1/orgs/{org}/pool")).await;
                let is_empty = open["items"].as_array().unwrap().is_empty();
                if is_empty && pool["held"] == "0" {
                    break;
                }
                assert!(began.elapsed() < OWNER_TIMEOUT * 5, "still held: {open} {pool}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// All charges of an org that the archive has, once it has all that there is.
    async fn archived(&self, org: &str) -> BTreeMap<String, Value> {
        // Whoever asks for these waits for the archive.
        self.document(0, &format!("/v1/orgs/{org}/adjustments")).await;
        let sql = format!("SELECT encode(id, 'hex') FROM charges WHERE org = '{org}'");
        let ids = self.postgres.ask(&self.database, &sql);
        let to: Vec<_> = self.worlds.iter().map(World::admin_address).collect();
        let dashed =
            |id: &str| [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-");
        let mut ids: Vec<String> = ids.lines().map(dashed).collect();
        let (mut charges, began) = (BTreeMap::new(), Instant::now());
        while !ids.is_empty() {
            let of = |id: &String| Call::get(&format!("/v1/orgs/{org}/charges/{id}")).key(TOKEN);
            for answer in burst_over(&to, ids.iter().map(of).collect(), 6).await {
                // A machine that is busy answers later.
                if answer.status != 503 || began.elapsed() >= OWNER_TIMEOUT * 5 {
                    let charge = answer.is(200).json();
                    charges.insert(charge["charge"].as_str().unwrap().to_owned(), charge);
                }
            }
            ids.retain(|id| !charges.contains_key(id));
        }
        charges
    }

    /// Checks everything that was told about an org.
    pub async fn check(&self, round: &mut Round, figures: &mut Figures) {
        let began = Instant::now();
        let charges = loop {
            self.nothing_is_held(&round.org).await;
            let charges = self.archived(&round.org).await;
            // What nobody waits for any more may be held and given back meanwhile.
            let held = charges.values().find(|charge| charge["state"] == "held");
            let Some(held) = held else { break charges };
            assert!(began.elapsed() < OWNER_TIMEOUT * 5, "only the archive has it as held: {held}");
            sleep(Duration::from_millis(200)).await;
        };
        let forwarded = self.forwarded(&round.org);
        as_told(round, &charges, &forwarded);
        round.used = self.as_in_the_books(round, &charges, figures).await;
        for wanted in &round.wanted {
            *figures.ends.entry(wanted.end).or_default() += 1;
        }
        for charge in charges.values() {
            let state = charge["state"].as_str().unwrap().to_owned();
            *figures.states.entry(state).or_default() += 1;
            figures.late += usize::from(has_flag(charge, "late"));
            figures.in_doubt += usize::from(has_flag(charge, "in_doubt"));
        }
    }

    /// What the backends were sent of an org: charge, and the request's id.
    fn forwarded(&self, org: &str) -> BTreeMap<String, String> {
        let mut forwarded = BTreeMap::new();
        for (world, from) in self.worlds.iter().zip(&self.seen) {
            for seen in world.backend.seen_from(*from) {
                let id = seen.header("x-request-id").unwrap_or_default().to_owned();
                if id.starts_with(&format!("{org}-")) {
                    let charge = seen.charge().expect("forwarded without a hold").to_owned();
                    let before = forwarded.insert(charge, id);
                    assert_eq!(before, None, "forwarded twice under one charge");
                }
            }
        }
        forwarded
    }

    /// What the archive's charges took is what the books say, and no more than there was.
    async fn as_in_the_books(
        &self,
        round: &Round,
        charges: &BTreeMap<String, Value>,
        figures: &mut Figures,
    ) -> BTreeMap<&'static str, [u64; 2]> {
        let mut sums: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
        for charge in charges.values().filter(|charge| charge["state"] == "captured") {
            let sum = sums.entry(charge["user"].as_str().unwrap()).or_default();
            for leg in charge["legs"].as_array().unwrap() {
                let at = match leg["kind"].as_str().unwrap() {
                    "licence" => 0,
                    "pool" | "overage" => 1,
                    _ => 2,
                };
                sum[at] += micro(&leg["amount"]);
            }
        }
        let mut used = BTreeMap::new();
        let mut beyond = 0;
        for (at, user) in USERS.into_iter().enumerate() {
            let path = format!("/v1/orgs/{}/users/{user}/balance", round.org);
            let summed = sums.get(user).copied().unwrap_or_default();
            let began = Instant::now();
            let (balance, stated) = loop {
                let balance = self.document(at, &path).await;
                let (seat, pool) = (&balance["seat"], &balance["pool"]["drawn"]);
                let stated = [micro(&seat["captured"]), micro(pool), micro(&balance["overdraft"])];
                if stated == summed && seat["held"] == "0" {
                    break (balance, stated);
                }
                // A worker that nobody asked may still do again what it knows of.
                let is_late = began.elapsed() >= OWNER_TIMEOUT * 5;
                assert!(!is_late, "{} {user}: {balance}, and charges {summed:?}", round.org);
                sleep(Duration::from_millis(50)).await;
            };
            let (seat, owed) = (&balance["seat"], stated[2]);
            let spent = micro(&seat["captured"]).saturating_sub(micro(&seat["granted"]));
            figures.in_the_red += usize::from(spent + owed > 0);
            beyond += spent + owed;
            used.insert(user, [stated[0], stated[1]]);
        }
        let pool = self.document(0, &format!("/v1/orgs/{}/pool", round.org)).await;
        let drawn = sums.values().map(|sum| sum[1]).sum::<u64>();
        let overage = micro(&pool["overage"]["captured"]);
        assert_eq!(micro(&pool["captured"]) + overage, drawn, "{}: {pool}", round.org);
        let spent = drawn.saturating_sub(micro(&pool["granted"]));
        figures.in_the_red += usize::from(spent > 0);
        // What came late is posted whatever there is (f23).
        let late = charges.values().filter(|charge| has_flag(charge, "late"));
        let late: u64 = late.map(|charge| micro(&charge["cost"])).sum();
        let is_allowed = round.is_lossy || beyond + spent <= late;
        assert!(is_allowed, "{}: {beyond} and {spent} beyond the grants, {late} late", round.org);
        used
    }

    /// An org that was checked before has what it had.
    pub async fn is_as_before(&self, round: &Round) {
        for (at, (user, used)) in round.used.iter().enumerate() {
            if *user == "probe" {
                continue;
            }
            let path = format!("/v1/orgs/{}/users/{user}/balance", round.org);
            let began = Instant::now();
            loop {
                let balance = self.document(at, &path).await;
                let stated = [&balance["seat"]["captured"], &balance["pool"]["drawn"]].map(micro);
                if stated == *used {
                    break;
                }
                // A worker that nobody asked may still do again what it knows of.
                let org = &round.org;
                assert!(began.elapsed() < OWNER_TIMEOUT * 5, "{org} {user}: {used:?}, {balance}");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn has_flag(charge: &Value, flag: &str) -> bool {
    charge["flags"].as_array().unwrap().iter().any(|known| known == flag)
}

/// What clients were told is what the archive has.
fn as_told(round: &Round, charges: &BTreeMap<String, Value>, forwarded: &BTreeMap<String, String>) {
    let mut captured: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (id, charge) in charges {
        if charge["state"] == "captured" {
            captured.entry(charge["request_id"].as_str().unwrap()).or_default().push(id);
        }
    }
    for (id, charges) in &captured {
        assert_eq!(charges.len(), 1, "charged more than once: {id} {charges:?}");
    }
    for charge in forwarded.keys() {
        assert!(charges.contains_key(charge), "forwarded, and the archive has no {charge}");
    }
    let sent: BTreeSet<&str> = forwarded.values().map(String::as_str).collect();
    for wanted in &round.wanted {
        let has = captured.get(wanted.id.as_str());
        for (id, cost) in &wanted.charged {
            let charge = charges.get(id).unwrap_or_else(|| panic!("{wanted:?} is not archived"));
            let found = (charge["state"].as_str().unwrap(), micro(&charge["cost"]));
            assert_eq!(found, ("captured", *cost), "{wanted:?}: {charge}");
        }
        for id in &wanted.read {
            let charge = charges.get(id).unwrap_or_else(|| panic!("{wanted:?} is not archived"));
            assert_eq!(charge["state"], "captured", "{wanted:?}: {charge}");
        }
        // A refusal was not forwarded, and is not charged; but where its gateway was not heard of for
        // too long, others capture what its route says they should, and flag it.
        let not_sent = wanted.refused.is_some() && !sent.contains(wanted.id.as_str());
        let is_given_up = has.is_some_and(|has| has_flag(&charges[has[0]], "in_doubt"));
        assert!(!not_sent || has.is_none() || is_given_up, "{wanted:?} is charged: {has:?}");
        let is_refused = wanted.refused == Some(402);
        assert!(!is_refused || not_sent, "{wanted:?} was forwarded");
    }
}
