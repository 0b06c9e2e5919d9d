//! Rows to the snapshot that the hot path reads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::reassign::Tenure;
use super::rows::{self, Details, KeyKind, Licence as LicenceRow, Rows, Table, When, instant_of};
use super::snapshot::{
    self, Decision, Key, KeyHash, Licence, Org, PoolTerm, ProfileCap, Shared, Standing, Terms,
    User, Users, stems,
};
use crate::core::account::Version;
use crate::core::amount::Operations;
use crate::core::cycle::{Schedule, Term};
use crate::core::entitlement::{DrawLimit, Membership, OrgTerms, access, principal_access};
use crate::core::ids::{Id, home_of};
use crate::core::price::RateCard;
use crate::core::refusal::DecidedBy;

/// A stored state that no snapshot can be made of. Only checked states are stored, so this is a
/// damaged database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unbuildable(pub String);

/// Builds the users and keys of one org.
pub struct Builder<'a> {
    id: &'a Id,
    details: &'a Details,
    schedule: &'a Schedule,
    profiles: Vec<Membership<'a>>,
    /// Indexes into `profiles`.
    by_id: HashMap<&'a Id, usize>,
    /// Indexes into `profiles` by group.
    by_group: HashMap<&'a Id, Vec<usize>>,
    /// Users with the same profiles and limit share one decision: there are few kinds of users.
    decisions: HashMap<(Vec<usize>, Option<Operations>), Decision>,
    /// So do those who stand alike, of whom there are many.
    standings: HashMap<Kind, Arc<Standing>>,
    /// What licences have alike, by plan and end.
    terms: HashMap<(Id, Option<When>), Arc<Terms>>,
}

/// All that a user's standing follows from.
#[derive(PartialEq, Eq, Hash)]
struct Kind {
    suspended: bool,
    groups: Vec<Id>,
    profiles: Vec<Id>,
    pool_limit: Option<Operations>,
}

impl<'a> Builder<'a> {
    /// For an org in this state.
    pub fn new(id: &'a Id, details: &'a Details, schedule: &'a Schedule) -> Self {
        let mut builder = Self {
            id,
            details,
            schedule,
            profiles: Vec::new(),
            by_id: HashMap::new(),
            by_group: HashMap::new(),
            decisions: HashMap::new(),
            standings: HashMap::new(),
            terms: HashMap::new(),
        };
        for (id, row) in &details.profiles {
            let index = builder.profiles.len();
            builder.profiles.push(membership(id, row));
            builder.by_id.insert(id, index);
            for group in &row.groups {
                builder.by_group.entry(group).or_default().push(index);
            }
        }
        builder
    }

    /// Which org.
    pub fn org(&self) -> &'a Id {
        self.id
    }

    /// The users of `users`, with their licences among `licences`.
    ///
    /// # Errors
    /// When a licence is of a plan that does not exist.
    pub fn users(
        &mut self,
        users: &Table<rows::User>,
        licences: &Table<LicenceRow>,
    ) -> Result<Vec<User>, Unbuildable> {
        let mut held: HashMap<&Id, Vec<(&Id, &LicenceRow)>> = HashMap::new();
        for (id, row) in licences {
            if let Some(holder) = &row.holder {
                held.entry(holder).or_default().push((id, &row.value));
            }
        }
        users
            .iter()
            .map(|(id, row)| self.user(id, row, held.remove(id).unwrap_or_default()))
            .collect()
    }

    fn user(
        &mut self,
        id: &Id,
        row: &rows::User,
        mut held: Vec<(&Id, &LicenceRow)>,
    ) -> Result<User, Unbuildable> {
        // Burn order (D3): soonest expiry, then priority, then id.
        held.sort_by_cached_key(|(licence, row)| {
            let expires = row.expires.map(|expires| expires.instant(self.schedule));
            (expires.is_none(), expires, row.priority, (*licence).clone())
        });
        let licences: Result<_, _> =
            held.into_iter().map(|(licence, row)| self.licence(id, licence, row)).collect();
        let stem = stems::user(self.id.as_str(), id.as_str());
        Ok(User::new(id, row.email.as_deref(), self.standing(row), licences?, stem))
    }

    fn standing(&mut self, row: &rows::User) -> Arc<Standing> {
        let kind = Kind {
            suspended: row.suspended,
            groups: row.groups.clone(),
            profiles: row.profiles.clone(),
            pool_limit: row.pool_limit,
        };
        if let Some(known) = self.standings.get(&kind) {
            return Arc::clone(known);
        }
        let standing = Arc::new(Standing {
            suspended: row.suspended,
            // The table's own ids: standings may be many too.
            groups: row.groups.iter().map(|id| interned(&self.details.groups, id)).collect(),
            profiles: row.profiles.iter().map(|id| interned(&self.details.profiles, id)).collect(),
            access: self.access(row),
        });
        self.standings.insert(kind, Arc::clone(&standing));
        standing
    }

    fn terms(&mut self, licence: &Id, row: &LicenceRow) -> Result<Arc<Terms>, Unbuildable> {
        let key = (row.plan.clone(), row.expires);
        if let Some(known) = self.terms.get(&key) {
            return Ok(Arc::clone(known));
        }
        let (plan, value) =
            self.details.plans.get_key_value(&row.plan).ok_or_else(|| {
                Unbuildable(format!("licence {licence} is of no plan: {}", row.plan))
            })?;
        let terms = Arc::new(Terms {
            plan: plan.clone(),
            credits: value.credits.micro(),
            expires: row.expires.map(|expires| expires.instant(self.schedule)),
        });
        self.terms.insert(key, Arc::clone(&terms));
        Ok(terms)
    }

    fn licence(&mut self, holder: &Id, id: &Id, row: &LicenceRow) -> Result<Licence, Unbuildable> {
        let terms = self.terms(id, row)?;
        let stem = |bucket: &Id| stems::licence(self.id.as_str(), id.as_str(), bucket.as_str());
        let moved = row.moved.as_ref();
        let tenure = moved.and_then(|moved| Some((moved, moved.tenures.last()?)));
        let shared = tenure.filter(|(_, last)| last.user == *holder).and_then(|(moved, last)| {
            let takes = |tenure: &&Tenure| {
                let takes = tenure.bucket == last.bucket && tenure.user != tenure.bucket;
                takes && (last.bucket == *holder || tenure.user == *holder)
            };
            let taker = |tenure: &Tenure| {
                let stem = stems::tally(self.id.as_str(), id.as_str(), tenure.user.as_str());
                (tenure.user.clone(), stem)
            };
            let takers: Box<[_]> = moved.tenures.iter().filter(takes).map(taker).collect();
            if takers.is_empty() {
                return None;
            }
            let (until, pays_from) = (moved.until, last.pays_from);
            let (bucket, stem) = (last.bucket.clone(), stem(&last.bucket));
            Some(Box::new(Shared { until, bucket, stem, pays_from, takers }))
        });
        let stem = stem(holder);
        Ok(Licence { id: id.as_str().into(), terms, stem, shared })
    }

    fn access(&mut self, row: &rows::User) -> Decision {
        let direct = row.profiles.iter().filter_map(|id| self.by_id.get(id).copied());
        let through = row.groups.iter().filter_map(|id| self.by_group.get(id)).flatten().copied();
        let mut indexes: Vec<usize> = direct.chain(through).collect();
        indexes.sort_unstable();
        indexes.dedup();
        let key = (indexes, row.pool_limit);
        if let Some(known) = self.decisions.get(&key) {
            return known.clone();
        }
        let memberships: Vec<Membership<'_>> =
            key.0.iter().map(|index| self.profiles[*index]).collect();
        let own = key.1.map(|limit| DrawLimit { limit, decided_by: DecidedBy::User });
        let decision =
            access(&org_terms(self.details), &memberships, own).map(Arc::new).map_err(Arc::from);
        self.decisions.insert(key, decision.clone());
        decision
    }

    /// The org's keys by the hash of each live secret.
    pub fn keys(&self) -> Vec<(KeyHash, Arc<Key>)> {
        let mut keys = Vec::new();
        for (id, row) in &self.details.keys {
            let kind = match &row.kind {
                KeyKind::Service(acts_for) => snapshot::KeyKind::Service(acts_for.clone()),
                KeyKind::User(user) => snapshot::KeyKind::User(user.clone()),
                KeyKind::Principal(profile) => {
                    snapshot::KeyKind::Principal(self.principal(profile, row.pool_limit))
                }
            };
            for secret in &row.secrets {
                let key = Key {
                    id: id.clone(),
                    org: self.id.clone(),
                    kind: kind.clone(),
                    hash: secret.hash,
                    expires: secret.expires,
                    stem: stems::key(self.id.as_str(), id.as_str()),
                };
                keys.push((secret.hash, Arc::new(key)));
            }
        }
        keys
    }

    fn principal(&self, profile: &Id, own_limit: Option<Operations>) -> Decision {
        let profile = self.by_id.get(profile).map(|index| &self.profiles[*index]);
        let own = own_limit.map(|limit| DrawLimit { limit, decided_by: DecidedBy::Key });
        let decided = principal_access(&org_terms(self.details), profile, own);
        decided.map(Arc::new).map_err(Into::into)
    }
}

/// The org with these users.
///
/// # Errors
/// When a stored rate card is not valid.
pub fn org(rows: &Rows, users: Users, version: Version) -> Result<Org, Unbuildable> {
    let Rows { id, details, schedule, .. } = rows;
    let settings = &details.settings;
    let mut terms: Vec<PoolTerm> = details
        .terms
        .iter()
        .map(|(term, row)| PoolTerm {
            term: Term {
                id: term.clone(),
                start: instant_of(row.start, schedule),
                end: instant_of(row.end, schedule),
            },
            pool: row.pool,
            pool_stem: stems::pool(id.as_str(), term.as_str()),
            overage_stem: stems::overage(id.as_str(), term.as_str()),
        })
        .collect();
    terms.sort_by_key(|entry| entry.term.start);
    let cards = details.cards.values().map(|row| {
        RateCard::new(row.value.clone())
            .map(Arc::new)
            .map_err(|error| Unbuildable(format!("rate card {}: {error}", row.version)))
    });
    let mut cards: Vec<Arc<RateCard>> = cards.collect::<Result<_, _>>()?;
    // The table has them by version; the sort is stable.
    cards.sort_by_key(|card| card.file().effective);
    Ok(Org {
        id: id.clone(),
        home: home_of(id.as_str()),
        version,
        mode: settings.mode,
        split: settings.split,
        overage: settings.overage,
        schedule: schedule.clone(),
        profile_caps: profile_caps(id, details, &terms),
        terms,
        cards,
        users,
        now: ArcSwapOption::empty(),
        details: Arc::new(details.clone()),
    })
}

fn profile_caps(id: &Id, details: &Details, terms: &[PoolTerm]) -> HashMap<Id, ProfileCap> {
    let org_cap = details.settings.overage.cap();
    let mut caps = HashMap::new();
    for (profile, row) in &details.profiles {
        let own = row.overage.map(|overage| overage.cap());
        if let Some(cap) = own.filter(|cap| *cap < org_cap && !cap.is_zero()) {
            let stem = |entry: &PoolTerm| {
                stems::profile_overage(id.as_str(), entry.term.id.as_str(), profile.as_str())
            };
            let stems = terms.iter().map(stem).collect();
            caps.insert(profile.clone(), ProfileCap { cap, stems });
        }
    }
    caps
}

fn membership<'a>(id: &'a Id, row: &'a rows::Profile) -> Membership<'a> {
    Membership {
        profile: id,
        product: &row.product,
        shared_credits: row.shared_credits,
        pool_limit: row.pool_limit,
        overage: row.overage,
    }
}

fn org_terms(details: &Details) -> OrgTerms<'_> {
    let settings = &details.settings;
    OrgTerms {
        contract: settings.contract.as_ref().map_or("", Id::as_str),
        products: &settings.products,
        offers: &settings.offers,
        bases: &settings.bases,
        pool_limit: settings.pool_limit,
        overage: settings.overage,
    }
}

fn interned<V>(table: &BTreeMap<Id, V>, id: &Id) -> Id {
    table.get_key_value(id).map_or_else(|| id.clone(), |(own, _)| own.clone())
}
