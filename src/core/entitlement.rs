//! Pool access and the granting profile (D12–D14, D17).

use serde::{Deserialize, Serialize};

use super::amount::Operations;
use super::ids::Id;
use super::refusal::{DecidedBy, Missing};

/// The contract under which Shared Credits may be used.
pub const ELIGIBLE_CONTRACT: &str = "etla";
/// The default offer products.
pub const OFFERS: [&str; 2] = ["firefly-services", "firefly-creative-production"];
/// The default base products.
pub const BASES: [&str; 2] = ["cce-4", "cce-4-stock"];

/// What happens to Operations used past the pool (D26).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overage {
    /// Refused.
    #[default]
    Reject,
    /// Billed later.
    Bill,
    /// Billed later, up to so many Operations a term.
    BillUpTo(Operations),
}

impl Overage {
    /// How many Operations may be used past the pool.
    pub const fn cap(self) -> Operations {
        match self {
            Self::Reject => Operations::ZERO,
            Self::Bill => Operations::MAX,
            Self::BillUpTo(cap) => cap,
        }
    }
}

/// What of an org decides eligibility and limits.
#[derive(Clone, Debug)]
pub struct OrgTerms<'a> {
    /// The kind of contract.
    pub contract: &'a str,
    /// The products the org has.
    pub products: &'a [Id],
    /// Which products are offers.
    pub offers: &'a [Id],
    /// Which products are bases.
    pub bases: &'a [Id],
    /// The org's limit on pool draws per member and cycle.
    pub pool_limit: Option<Operations>,
    /// The org's overage policy.
    pub overage: Overage,
}

/// A product profile that holds a user, directly or through a group.
#[derive(Clone, Copy, Debug)]
pub struct Membership<'a> {
    /// The profile.
    pub profile: &'a Id,
    /// The product it belongs to.
    pub product: &'a Id,
    /// The Shared Credits switch.
    pub shared_credits: bool,
    /// The profile's limit on pool draws per member and cycle.
    pub pool_limit: Option<Operations>,
    /// The profile's own overage policy, where it is stricter than the org's.
    pub overage: Option<Overage>,
}

/// A limit on pool draws and who set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrawLimit {
    /// Operations per cycle.
    pub limit: Operations,
    /// Whose limit it is.
    pub decided_by: DecidedBy,
}

/// Access to the pool, and what the granting profile decides (D17).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The profile that grants it.
    pub profile: Id,
    /// The profile's product: it chooses the rate card (D20).
    pub offer: Id,
    /// The limit on draws, if any.
    pub limit: Option<DrawLimit>,
    /// Overage under the stricter of org and profile.
    pub overage: Overage,
    /// True when `overage` is the profile's cap, counted beside the org's.
    pub profile_cap: bool,
}

/// Whether the org may use Shared Credits at all (D12).
fn eligible(org: &OrgTerms<'_>) -> bool {
    let any_of = |kind: &[Id]| org.products.iter().any(|product| kind.contains(product));
    org.contract == ELIGIBLE_CONTRACT && any_of(org.offers) && any_of(org.bases)
}

/// Decides pool access from memberships, or says what is missing (D12, D14).
///
/// `own_limit` is the user's or key's own limit on draws, which overrides the profile's, which
/// overrides the org's (D17).
///
/// # Errors
/// What is missing, in the order eligibility, offer, base.
pub fn access(
    org: &OrgTerms<'_>,
    memberships: &[Membership<'_>],
    own_limit: Option<DrawLimit>,
) -> Result<Access, Vec<Missing>> {
    let granting = memberships.iter().filter(|m| offers(org, m)).max_by(|a, b| {
        let generous = |m: &Membership<'_>| m.pool_limit.map_or(u64::MAX, Operations::micro);
        generous(a).cmp(&generous(b)).then_with(|| b.profile.cmp(a.profile))
    });
    let base = memberships.iter().any(|m| org.bases.contains(m.product));
    let mut missing = Vec::new();
    if !eligible(org) {
        missing.push(Missing::Eligibility);
    }
    if granting.is_none() {
        missing.push(Missing::Offer);
    }
    if !base {
        missing.push(Missing::Base);
    }
    match granting {
        Some(granting) if missing.is_empty() => Ok(grant(org, granting, own_limit)),
        _ => Err(missing),
    }
}

/// Decides a principal's pool access: an eligible org, and its key's profile is one of an offer
/// with the switch on. It has no seat, so it needs no base product (D18).
///
/// # Errors
/// What is missing, in the order eligibility, offer.
pub fn principal_access(
    org: &OrgTerms<'_>,
    profile: Option<&Membership<'_>>,
    own_limit: Option<DrawLimit>,
) -> Result<Access, Vec<Missing>> {
    let granting = profile.filter(|profile| offers(org, profile));
    let mut missing = Vec::new();
    if !eligible(org) {
        missing.push(Missing::Eligibility);
    }
    if granting.is_none() {
        missing.push(Missing::Offer);
    }
    match granting {
        Some(granting) if missing.is_empty() => Ok(grant(org, granting, own_limit)),
        _ => Err(missing),
    }
}

/// Whether a profile is one of an offer product with the Shared Credits switch on.
fn offers(org: &OrgTerms<'_>, profile: &Membership<'_>) -> bool {
    profile.shared_credits && org.offers.contains(profile.product)
}

/// What a profile grants: limit, overage policy and offer (D17, D26).
fn grant(org: &OrgTerms<'_>, profile: &Membership<'_>, own_limit: Option<DrawLimit>) -> Access {
    let by =
        |limit: Option<Operations>, decided_by| limit.map(|limit| DrawLimit { limit, decided_by });
    let limit = own_limit
        .or_else(|| by(profile.pool_limit, DecidedBy::Profile))
        .or_else(|| by(org.pool_limit, DecidedBy::Org));
    // A profile may be stricter than its org, never looser.
    let stricter = profile.overage.filter(|own| own.cap() < org.overage.cap());
    Access {
        profile: profile.profile.clone(),
        offer: profile.product.clone(),
        limit,
        overage: stricter.unwrap_or(org.overage),
        profile_cap: stricter.is_some_and(|own| !own.cap().is_zero()),
    }
}

#[cfg(test)]
mod tests;
