//! Receipts: what a caller is told of a charge, as an RFC 9651 dictionary, and the `RateLimit`
//! fields (IETF draft-ietf-httpapi-ratelimit-headers-11) for seats without pool access.

use serde::Serialize;

use super::account::{LegKind, Taken, sum_of};
use super::amount::{MICRO, Text};
use super::charge::State;
use super::ids::ChargeId;

/// What a receipt says. Amounts are in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt<'a> {
    /// The charge.
    pub charge: ChargeId,
    /// Where it stands.
    pub state: State,
    /// Credits: held, or finally charged.
    pub cost: u64,
    /// Credits the seat paid.
    pub seat: u64,
    /// Operations the pool paid.
    pub pool: u64,
    /// Operations past the pool.
    pub overage: u64,
    /// What nobody could pay, if anything (D31).
    pub overdraft: u64,
    /// What the seat has after this step; `None` without a seat.
    pub seat_remaining: Option<u64>,
    /// What the pool has after this step; `None` without pool access.
    pub pool_remaining: Option<u64>,
    /// When the seat resets, as RFC 3339; `None` without a seat.
    pub resets: Option<&'a str>,
    /// The rate card's version.
    pub rate_card: &'a str,
    /// The code of the refusal that observe mode did not carry out (D28).
    pub would_refuse: Option<&'a str>,
}

/// A receipt as JSON, with the names and words of the field.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Document<'a> {
    charge: String,
    state: &'static str,
    cost: String,
    seat: String,
    pool: String,
    overage: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    overdraft: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seat_remaining: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool_remaining: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resets: Option<&'a str>,
    rate_card: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_refuse: Option<&'a str>,
}

impl<'a> Receipt<'a> {
    /// The receipt of a charge with these legs; what is left is for the caller to add.
    pub fn new(
        charge: ChargeId,
        state: State,
        cost: u64,
        legs: &[Taken],
        rate_card: &'a str,
    ) -> Self {
        let sum = |kind| sum_of(legs, kind);
        Self {
            charge,
            state,
            cost,
            seat: sum(LegKind::Licence),
            pool: sum(LegKind::Pool),
            overage: sum(LegKind::Overage),
            overdraft: sum(LegKind::Overdraft),
            seat_remaining: None,
            pool_remaining: None,
            resets: None,
            rate_card,
            would_refuse: None,
        }
    }

    /// The same as JSON, on one line.
    pub fn json(&self) -> Vec<u8> {
        // A structure of texts always serialises.
        serde_json::to_vec(&self.document()).unwrap_or_default()
    }

    fn document(&self) -> Document<'a> {
        let text = |micro| Text::of_sum(micro).as_str().to_owned();
        Document {
            charge: self.charge.text(&mut [0; 36]).to_owned(),
            state: self.state.word(),
            cost: text(self.cost),
            seat: text(self.seat),
            pool: text(self.pool),
            overage: text(self.overage),
            overdraft: (self.overdraft > 0).then(|| text(self.overdraft)),
            seat_remaining: self.seat_remaining.map(text),
            pool_remaining: self.pool_remaining.map(text),
            resets: self.resets,
            rate_card: self.rate_card,
            would_refuse: self.would_refuse,
        }
    }

    /// Writes the field's value.
    pub fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(b"charge=\"");
        to.extend_from_slice(self.charge.text(&mut [0; 36]).as_bytes());
        to.extend_from_slice(b"\", state=");
        to.extend_from_slice(self.state.word().as_bytes());
        let mut amount = |key: &str, micro: u64| {
            to.extend_from_slice(key.as_bytes());
            // What is left of a seat is a sum over its licences.
            to.extend_from_slice(Text::of_sum(micro).as_str().as_bytes());
            to.push(b'"');
        };
        amount(", cost=\"", self.cost);
        amount(", seat=\"", self.seat);
        amount(", pool=\"", self.pool);
        amount(", overage=\"", self.overage);
        if self.overdraft > 0 {
            amount(", overdraft=\"", self.overdraft);
        }
        if let Some(micro) = self.seat_remaining {
            amount(", seat-remaining=\"", micro);
        }
        if let Some(micro) = self.pool_remaining {
            amount(", pool-remaining=\"", micro);
        }
        // Times, ids and versions hold neither a quote nor a backslash.
        let mut text = |key: &str, value: &str| {
            to.extend_from_slice(key.as_bytes());
            to.extend_from_slice(value.as_bytes());
            to.push(b'"');
        };
        if let Some(resets) = self.resets {
            text(", resets=\"", resets);
        }
        text(", rate-card=\"", self.rate_card);
        if let Some(code) = self.would_refuse {
            // Codes are lower case letters and underscores, which is a token.
            to.extend_from_slice(b", would-refuse=");
            to.extend_from_slice(code.as_bytes());
        }
    }
}

/// Writes `RateLimit-Policy`: the seat's quota in whole credits and its window in seconds.
pub fn write_rate_limit_policy(granted: u64, window: i64, to: &mut Vec<u8>) {
    to.extend_from_slice(b"\"seat\";q=");
    to.extend_from_slice(itoa::Buffer::new().format(granted / MICRO).as_bytes());
    to.extend_from_slice(b";qu=\"credits\";w=");
    to.extend_from_slice(itoa::Buffer::new().format(window).as_bytes());
}

/// Writes `RateLimit`: what is left in whole credits and the seconds to the reset.
pub fn write_rate_limit(available: u64, seconds: i64, to: &mut Vec<u8>) {
    to.extend_from_slice(b"\"seat\";r=");
    to.extend_from_slice(itoa::Buffer::new().format(available / MICRO).as_bytes());
    to.extend_from_slice(b";t=");
    to.extend_from_slice(itoa::Buffer::new().format(seconds.max(0)).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_reads_as_a_structured_dictionary() {
        let receipt = Receipt {
            charge: ChargeId::v7(1_764_547_200_000, 7),
            state: State::Captured,
            cost: 100 * MICRO,
            seat: 30 * MICRO,
            pool: 1_400_000,
            overage: 0,
            overdraft: 0,
            seat_remaining: Some(0),
            pool_remaining: Some(998_600_000),
            resets: Some("2026-12-01T08:00:00Z"),
            rate_card: "2026-11",
            would_refuse: None,
        };
        let write = |receipt: &Receipt<'_>| {
            let mut bytes = Vec::new();
            receipt.write(&mut bytes);
            String::from_utf8(bytes).unwrap()
        };
        let text = write(&receipt);
        assert_eq!(
            text,
            "charge=\"019ad735-8400-7000-8000-000000000007\", state=captured, cost=\"100\", \
             seat=\"30\", pool=\"1.4\", overage=\"0\", seat-remaining=\"0\", \
             pool-remaining=\"998.6\", resets=\"2026-12-01T08:00:00Z\", rate-card=\"2026-11\""
        );
        let parsed = sfv::Parser::new(&text).parse::<sfv::Dictionary>().unwrap();
        assert_eq!(parsed.len(), 10);
        // D28: a token, and there only where something was observed.
        let observed = write(&Receipt { would_refuse: Some("seat_exhausted"), ..receipt });
        assert_eq!(observed, format!("{text}, would-refuse=seat_exhausted"));
        let parsed = sfv::Parser::new(&observed).parse::<sfv::Dictionary>().unwrap();
        let Some(sfv::ListEntry::Item(item)) = parsed.get("would-refuse") else {
            panic!("{observed}")
        };
        assert_eq!(item.bare_item.as_token().map(|token| token.as_str()), Some("seat_exhausted"));
        // The document has the same names and words.
        let json = String::from_utf8(receipt.json()).unwrap();
        let again = text.replace("state=captured", "state=\"captured\"");
        assert_eq!(json.replace("\":\"", "=\""), format!("{{\"{}}}", again.replace(", ", ",\"")));
    }

    #[test]
    fn rate_limit_fields_are_in_whole_credits() {
        let (mut policy, mut limit) = (Vec::new(), Vec::new());
        write_rate_limit_policy(6_000_999_999, 2_592_000, &mut policy);
        write_rate_limit(29_999_999, 86_400, &mut limit);
        assert_eq!(policy, b"\"seat\";q=6000;qu=\"credits\";w=2592000");
        assert_eq!(limit, b"\"seat\";r=29;t=86400");
    }

    #[test]
    fn d31_a_receipt_adds_up_its_legs_and_tells_of_debt_where_there_is_some() {
        let leg = |kind, amount| Taken { slot: 0, kind, amount };
        let legs = [
            leg(LegKind::Licence, 2 * MICRO),
            leg(LegKind::Licence, MICRO),
            leg(LegKind::Pool, 4 * MICRO),
            leg(LegKind::Overage, 5 * MICRO),
            leg(LegKind::Limit, 9 * MICRO),
            leg(LegKind::Overdraft, 1),
        ];
        let write = |legs: &[Taken]| {
            let id = ChargeId::v7(0, 0);
            let receipt = Receipt::new(id, State::Held, 7 * MICRO, legs, "v1");
            let mut bytes = Vec::new();
            receipt.write(&mut bytes);
            let text = String::from_utf8(bytes).unwrap();
            text.split_once("state=").unwrap().1.to_owned()
        };
        let paid = "held, cost=\"7\", seat=\"3\", pool=\"4\", overage=\"5\"";
        let debt = ", overdraft=\"0.000001\"";
        assert_eq!(write(&legs), format!("{paid}{debt}, rate-card=\"v1\""));
        assert_eq!(write(&legs[..5]), format!("{paid}, rate-card=\"v1\""));
    }

    #[test]
    fn a_reset_that_has_passed_is_now() {
        let mut limit = Vec::new();
        write_rate_limit(MICRO, -5, &mut limit);
        assert_eq!(limit, b"\"seat\";r=1;t=0");
    }
}
