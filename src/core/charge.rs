//! Charges: what the books and the ledger remember of a metered request, and the document that
//! a caller may read.
//!
//! A charge has two memos, opaque to the books: one is written with the hold, one with what
//! resolved it. Together with the legs they are the whole record.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::account::{AccountKind, LegKind};
use super::amount::{Credits, Text};
use super::cycle::Label;
use super::ids::ChargeId;
use super::note::{HoldNote, OutcomeNote};
use super::price::Price;
use super::refusal::Both;
use super::waterfall;

/// What is known of a charge when it is held. Borrowed from the request, so that writing it
/// costs no copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldMemo<'a> {
    /// The org.
    pub org: &'a str,
    /// The user; `None` for a principal.
    pub user: Option<&'a str>,
    /// The key that asked.
    pub key: &'a str,
    /// The feature.
    pub feature: &'a str,
    /// The route's name: its path pattern, or `holds` for the holds API.
    pub route: &'a str,
    /// Quantities by meter; a route's only meter has no name.
    pub measures: Vec<(Option<&'a str>, u64)>,
    /// The price held.
    pub price: Price,
    /// False where only seats may pay.
    pub pool: bool,
    /// The rate card's version.
    pub rate_card: &'a str,
    /// The cycle it belongs to (D7).
    pub cycle: Label,
    /// The term it belongs to, if there is one.
    pub term: Option<&'a str>,
    /// The granting profile, if there is pool access.
    pub profile: Option<&'a str>,
    /// The caller's request id; `None` where the gateway made it: then it is the charge's id.
    pub request_id: Option<&'a str>,
}

/// What resolved a charge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeMemo {
    /// The final cost; zero for what was voided.
    pub cost: Credits,
    /// Actual quantities, where usage was told.
    pub measures: Option<Vec<u64>>,
    /// What is particular about it.
    pub flags: Flags,
}

/// Particulars of a charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags(u8);

impl Flags {
    /// The backend did not say how much was used, so the whole hold was captured (D30).
    pub const USAGE_MISSING: Self = Self(1);
    /// Resolved without its owner (D36).
    pub const IN_DOUBT: Self = Self(2);
    /// Captured after it was resolved otherwise (D36).
    pub const LATE: Self = Self(4);
    /// Let through in observe mode (D28). Nobody records it with an outcome: the hold's note says
    /// so from the beginning.
    pub const WOULD_REFUSE: Self = Self(8);

    const WORDS: [(Self, &'static str); 4] = [
        (Self::USAGE_MISSING, "usage_missing"),
        (Self::IN_DOUBT, "in_doubt"),
        (Self::LATE, "late"),
        (Self::WOULD_REFUSE, "would_refuse"),
    ];

    /// True when all of these are set.
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// The words for the charge document.
    pub fn words(self) -> Vec<&'static str> {
        Self::WORDS
            .into_iter()
            .filter(|(flag, _)| self.0 & flag.0 != 0)
            .map(|(_, word)| word)
            .collect()
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What resolves a hold that nobody settles (D36).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InDoubt {
    /// Nothing is charged.
    #[default]
    Void,
    /// The whole hold is captured.
    Capture,
}

/// Where a charge stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Authorised, not yet settled.
    Held,
    /// Paid for, in part or whole.
    Captured,
    /// Not paid for.
    Voided,
    /// Voided because nobody settled it in time.
    Expired,
}

impl State {
    /// The word in receipts and documents.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Captured => "captured",
            Self::Voided => "voided",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A leg as the charge document shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegDocument {
    /// The account's name.
    pub account: String,
    /// licence, pool, overage or overdraft.
    pub kind: String,
    /// Credits of the cost that it covers.
    pub covers: String,
    /// What the account paid, in its unit.
    pub amount: String,
    /// credits or operations.
    pub unit: String,
}

/// A charge as its user, its key and admins may read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeDocument {
    /// Its id.
    pub charge: String,
    /// Where it stands.
    pub state: State,
    /// The org.
    pub org: String,
    /// The user; `null` for a principal's charge.
    pub user: Option<String>,
    /// The key that asked.
    pub key: String,
    /// The feature.
    pub feature: String,
    /// What was measured: a number as text, or by meter.
    pub quantity: serde_json::Value,
    /// The route's path pattern.
    pub route: String,
    /// Credits: held, or finally charged.
    pub cost: Credits,
    /// Who paid what.
    pub legs: Vec<LegDocument>,
    /// The rate card's version.
    pub rate_card: String,
    /// The cycle's label.
    pub cycle: String,
    /// The term's id.
    pub term: Option<String>,
    /// What is particular about it.
    pub flags: Vec<String>,
    /// The code of the refusal that observe mode did not carry out (D28).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_refuse: Option<String>,
    /// What of the cost nobody pays, in observe mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncovered: Option<Both>,
    /// The request's id.
    pub request_id: String,
    /// When it was held.
    pub created_at: Timestamp,
    /// When the hold ends by itself, if it does.
    pub expires_at: Option<Timestamp>,
    /// When it was resolved.
    pub resolved_at: Option<Timestamp>,
}

/// A leg to be described.
#[derive(Clone, Copy, Debug)]
pub struct LegLine<'a> {
    /// The account's name.
    pub account: &'a str,
    /// What runs out there.
    pub account_kind: AccountKind,
    /// What the leg stands for.
    pub kind: LegKind,
    /// Millionths of the account's unit.
    pub amount: u64,
}

/// Describes the legs that pay, with what each covers of what is covered of the cost.
pub fn leg_documents(lines: &[LegLine<'_>], covered: Credits) -> Vec<LegDocument> {
    let paying: Vec<&LegLine<'_>> =
        lines.iter().filter(|line| line.kind.pays() && line.amount > 0).collect();
    let in_credits = |kind: AccountKind| kind.unit() == "credits";
    let legs: Vec<(LegKind, u64, bool)> =
        paying.iter().map(|line| (line.kind, line.amount, in_credits(line.account_kind))).collect();
    let covers = waterfall::covers(&legs, covered);
    let describe = |(line, covers): (&&LegLine<'_>, u64)| LegDocument {
        account: line.account.to_owned(),
        kind: line.kind.word().to_owned(),
        covers: Text::new(covers).as_str().to_owned(),
        amount: Text::new(line.amount).as_str().to_owned(),
        unit: line.account_kind.unit().to_owned(),
    };
    paying.iter().zip(covers).map(describe).collect()
}

/// A charge and how it ended, as read from the records.
#[derive(Clone, Debug)]
pub struct ChargeRecord<'a> {
    /// Its id.
    pub id: ChargeId,
    /// When it was held.
    pub held_at: Timestamp,
    /// When the hold ends by itself, if it does.
    pub expires: Option<Timestamp>,
    /// The hold's memo.
    pub memo: HoldMemo<'a>,
    /// Where it stands, when it was resolved and with what memo.
    pub resolved: Option<(State, Timestamp, OutcomeMemo)>,
    /// What was noted with the hold, and with what resolved it.
    pub notes: (HoldNote, OutcomeNote),
}

impl ChargeRecord<'_> {
    /// The cost as it stands.
    pub fn cost(&self) -> Credits {
        match (&self.resolved, &self.notes.0.held) {
            (Some((_, _, outcome)), _) => outcome.cost,
            (None, Some(held)) => held.cost,
            (None, None) => self.memo.price.cost,
        }
    }

    /// What nobody pays, if anything (D28). Who captured a whole hold without its owner noted
    /// nothing more of it.
    pub fn uncovered(&self) -> Option<Both> {
        let (hold, outcome) = &self.notes;
        let held = || hold.observed.as_ref().map(|observed| observed.uncovered);
        let uncovered = match &self.resolved {
            None => hold.held.as_ref().map(|held| held.uncovered).or_else(held),
            Some((State::Captured, ..)) => outcome.uncovered.or_else(held),
            Some(_) => None,
        };
        uncovered.filter(|uncovered| *uncovered != Both::default())
    }

    /// How much of the cost its legs cover.
    pub fn covered(&self) -> Credits {
        let uncovered = self.uncovered().unwrap_or_default().credits;
        let covered = self.cost().micro().saturating_sub(uncovered.micro());
        Credits::from_micro(covered).unwrap_or_default()
    }

    /// The document, given the legs already described.
    pub fn document(&self, legs: Vec<LegDocument>) -> ChargeDocument {
        let memo = &self.memo;
        let outcome = self.resolved.as_ref();
        let mut flags = outcome.map_or(Flags::default(), |(_, _, memo)| memo.flags);
        let would_refuse =
            self.notes.0.observed.as_ref().and_then(|note| note.would_refuse.clone());
        if would_refuse.is_some() {
            flags = flags | Flags::WOULD_REFUSE;
        }
        ChargeDocument {
            charge: self.id.to_string(),
            state: outcome.map_or(State::Held, |(state, _, _)| *state),
            org: memo.org.to_owned(),
            user: memo.user.map(str::to_owned),
            key: memo.key.to_owned(),
            feature: memo.feature.to_owned(),
            quantity: self.quantity(),
            route: memo.route.to_owned(),
            cost: self.cost(),
            legs,
            rate_card: memo.rate_card.to_owned(),
            cycle: memo.cycle.to_string(),
            term: memo.term.map(str::to_owned),
            flags: flags.words().into_iter().map(str::to_owned).collect(),
            would_refuse,
            uncovered: self.uncovered(),
            request_id: memo.request_id.map_or_else(|| self.id.to_string(), str::to_owned),
            created_at: self.held_at,
            expires_at: self.expires,
            resolved_at: outcome.map(|(_, at, _)| *at),
        }
    }

    fn quantity(&self) -> serde_json::Value {
        let actual = self.resolved.as_ref().and_then(|(_, _, outcome)| outcome.measures.as_ref());
        let actual = actual.or_else(|| self.notes.0.held.as_ref().map(|held| &held.measures));
        let measured = self.memo.measures.iter().enumerate().map(|(index, (meter, held))| {
            let quantity = actual.and_then(|actual| actual.get(index)).unwrap_or(held);
            (*meter, serde_json::Value::from(Text::new(*quantity).as_str()))
        });
        let mut by_meter = serde_json::Map::new();
        for (meter, quantity) in measured {
            match meter {
                None => return quantity,
                Some(meter) => by_meter.insert(meter.to_owned(), quantity),
            };
        }
        by_meter.into()
    }
}

#[cfg(test)]
mod tests;
