//! Adjustments: what an admin adds to an account or takes from it, and what a refund gives back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::account::AccountKind;
use super::amount::{Text, parse_micro};
use super::ids::ChargeId;

/// What the ledger remembers of an adjustment, beside the account and the amount. Opaque to the
/// books.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdjustMemo<'a> {
    /// Its id, by which it is known to have been made.
    #[serde(with = "serde_bytes")]
    pub id: [u8; 16],
    /// The org.
    pub org: &'a str,
    /// The name of the token that asked.
    pub who: &'a str,
    /// Why.
    pub reason: &'a str,
    /// The charge it gives back, or a part of it.
    pub charge: Option<[u8; 16]>,
}

/// An adjustment as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdjustmentDocument {
    /// Its id.
    pub id: String,
    /// The account's name.
    pub account: String,
    /// What runs out there.
    pub kind: &'static str,
    /// `credits` or `operations`.
    pub unit: &'static str,
    /// How much, negative where it was taken away.
    pub amount: String,
    /// Why.
    pub reason: String,
    /// The charge it gives back, or a part of it.
    pub charge: Option<String>,
    /// The name of the token that asked.
    pub who: String,
    /// When.
    pub at: Timestamp,
}

impl AdjustMemo<'_> {
    /// The document, with what the record says beside the memo.
    pub fn document(
        &self,
        account: &str,
        kind: AccountKind,
        delta: i64,
        at: Timestamp,
    ) -> AdjustmentDocument {
        AdjustmentDocument {
            id: ChargeId(self.id).to_string(),
            account: account.to_owned(),
            kind: kind.word(),
            unit: kind.unit(),
            amount: signed_text(delta),
            reason: self.reason.to_owned(),
            charge: self.charge.map(|charge| ChargeId(charge).to_string()),
            who: self.who.to_owned(),
            at,
        }
    }
}

/// The text of millionths that may be negative.
fn signed_text(micro: i64) -> String {
    let sign = if micro < 0 { "-" } else { "" };
    format!("{sign}{}", Text::new(micro.unsigned_abs()).as_str())
}

/// Reads an amount of millionths that may be negative.
pub fn parse_signed(text: &str) -> Option<i64> {
    let (sign, amount) = match text.strip_prefix('-') {
        Some(amount) => (-1, amount),
        None => (1, text),
    };
    i64::try_from(parse_micro(amount).ok()?).ok().map(|micro| sign * micro)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_amounts_read_back() {
        for (text, micro) in [("-0.000001", -1), ("0", 0), ("1.5", 1_500_000), ("-12", -12_000_000)]
        {
            assert_eq!(parse_signed(text), Some(micro));
            assert_eq!(signed_text(micro), text);
        }
        assert_eq!(parse_signed("-9007199254.740991"), Some(-((1 << 53) - 1)));
        for odd in ["", "-", "--1", "+1", "- 1", "1e3", "-.5", "9007199254.740992"] {
            assert_eq!(parse_signed(odd), None, "{odd}");
        }
    }

    #[test]
    fn an_adjustment_is_shown_with_its_sign_and_its_charge() {
        let memo = AdjustMemo {
            id: [1; 16],
            org: "acme",
            who: "ops",
            reason: "refund",
            charge: Some([2; 16]),
        };
        let shown = memo.document("acme/pool/2026", AccountKind::Pool, -1_500_000, Timestamp::MAX);
        assert_eq!(shown.id, ChargeId([1; 16]).to_string());
        assert_eq!(shown.charge, Some(ChargeId([2; 16]).to_string()));
        assert_eq!((shown.amount.as_str(), shown.kind, shown.unit), ("-1.5", "pool", "operations"));
    }
}
