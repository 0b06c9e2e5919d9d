//! The audit at the end of every run: what the driver got, what the backend saw, what the metrics,
//! the books and the archive say, and what the records add up to, are one number. Of requests of
//! which nobody knows what became of them, each may have been charged or not; what is known is
//! compared exactly.

use serde::{Deserialize, Serialize};

use crate::backend::Seen;
use crate::driver::Stats;
use crate::exact::Amount;
use crate::gateway::Metrics;
use crate::http::Receipt;
use crate::request::Kind;

/// What the driver got, over all lanes of a gateway and all phases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driven {
    /// Served on metered routes.
    pub metered: u64,
    /// Served on free routes.
    pub free: u64,
    /// Refused, or not served by the gateway's own fault.
    pub refused: u64,
    /// Of these 5xx, which a backend may have seen and a charge been voided for.
    pub unavailable: u64,
    /// Failed by the backend, as it was told to.
    pub planted: u64,
    /// Answers that are none.
    pub wrong: u64,
    /// Of which nobody knows.
    pub unknown: u64,
    /// What all that was served costs by the rate card.
    pub cost: Amount,
    /// What those cost of which nobody knows.
    pub unknown_cost: Amount,
    /// Sums of all receipts that are final.
    pub receipts: Receipt,
    /// Receipts that are not.
    pub held: u64,
}

impl Driven {
    /// Adds a lane's phase.
    pub fn add(&mut self, kind: Kind, stats: &Stats) {
        let counts = &stats.counts;
        let served = if kind.metered() { &mut self.metered } else { &mut self.free };
        *served += counts.served;
        self.refused += counts.refused + counts.unavailable;
        self.unavailable += counts.unavailable;
        self.planted += counts.planted;
        self.wrong += counts.wrong;
        self.unknown += counts.unknown;
        self.cost = self.cost.plus(stats.cost);
        self.unknown_cost = self.unknown_cost.plus(stats.unknown_cost);
        let (sum, more) = (&mut self.receipts, &stats.receipts);
        sum.cost = sum.cost.plus(more.cost);
        sum.seat = sum.seat.plus(more.seat);
        sum.pool = sum.pool.plus(more.pool);
        sum.overage = sum.overage.plus(more.overage);
        self.held += stats.held;
    }
}

/// What everybody else says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The backend.
    pub backend: Seen,
    /// The metrics; not of a gateway that was started again, which has forgotten.
    pub metrics: Option<Metrics>,
    /// Charges by the records, and those that are open.
    pub verified: Option<(u64, u64)>,
    /// Credits captured by the books, as the admin API tells them.
    pub captured: Option<Amount>,
    /// Charges looked up in the archive, and those that are there as they were told.
    pub archived: Option<(u64, u64)>,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What is compared.
    pub what: String,
    /// By the driver.
    pub driver: String,
    /// By whom it is compared with.
    pub found: String,
    /// Whether they agree.
    pub agrees: bool,
}

/// Compares all that is there.
pub fn compare(driven: &Driven, found: &Found) -> Vec<Line> {
    let mut lines = Lines(of_backend(driven, found.backend));
    let unknown = driven.unknown;
    let seats = match driven.held {
        0 => driven.receipts.seat,
        _ => driven.cost,
    };
    if driven.held == 0 {
        let (by_card, told) = (driven.cost, driven.receipts.cost);
        lines.amount("credits by the rate card, and by receipts", by_card, Amount::default(), told);
    }
    if let Some(metrics) = &found.metrics {
        lines.count("captured, by the metrics", driven.metered, unknown, metrics.of("captured"));
        lines.count("free, by the metrics", driven.free, unknown, metrics.of("free"));
        let counted: u64 = metrics.outcomes.values().sum();
        let rest = counted - metrics.of("captured") - metrics.of("free");
        lines.count("not charged, by the metrics", driven.refused + driven.planted, unknown, rest);
        lines.amount("credits, by the metrics", seats, driven.unknown_cost, metrics.credits);
        if driven.held == 0 {
            let (pool, overage) = (driven.receipts.pool, driven.receipts.overage);
            lines.amount("Operations of pools", pool, driven.unknown_cost, metrics.pool);
            lines.amount("Operations of overage", overage, driven.unknown_cost, metrics.overage);
        }
        lines.count("records not archived", 0, 0, metrics.lag + metrics.dead);
    }
    if let Some(captured) = found.captured {
        lines.amount("credits, by the books", seats, driven.unknown_cost, captured);
    }
    if let Some((charges, open)) = found.verified {
        let charged = driven.metered + driven.planted;
        lines.count("charges, by the records", charged, unknown + driven.unavailable, charges);
        lines.count("open charges, by the records", 0, 0, open);
    }
    if let Some((asked, right)) = found.archived {
        lines.count("charges looked up in the archive", asked, 0, right);
    }
    lines.0
}

/// What the driver got, and what the backend saw.
pub fn of_backend(driven: &Driven, backend: Seen) -> Vec<Line> {
    let mut lines = Lines(Vec::new());
    let (reached, unknown) = (driven.metered + driven.free + driven.planted, driven.unknown);
    lines.count("answers that are none", 0, 0, driven.wrong);
    lines.count("requests at the backend", reached, unknown + driven.unavailable, backend.requests);
    lines.count("failures that the backend made", driven.planted, unknown, backend.failed);
    lines.0
}

struct Lines(Vec<Line>);

impl Lines {
    fn count(&mut self, what: &str, least: u64, more: u64, found: u64) {
        let most = least.saturating_add(more);
        let driver = if more == 0 { format!("{least}") } else { format!("{least} to {most}") };
        let agrees = (least..=most).contains(&found);
        self.0.push(Line { what: what.to_owned(), driver, found: found.to_string(), agrees });
    }

    fn amount(&mut self, what: &str, least: Amount, more: Amount, found: Amount) {
        let most = least.plus(more);
        let driver = if least == most { format!("{least}") } else { format!("{least} to {most}") };
        let agrees = (least..=most).contains(&found);
        self.0.push(Line { what: what.to_owned(), driver, found: found.to_string(), agrees });
    }
}

/// What does not agree, in words; nothing where all is one number.
pub fn findings(lines: &[Line]) -> Vec<String> {
    let wrong = lines.iter().filter(|line| !line.agrees);
    wrong
        .map(|line| format!("{}: {} by the driver, found {}", line.what, line.driver, line.found))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credits(count: u64) -> Amount {
        Amount::millionths(1_000_000).times(count)
    }

    fn driven() -> Driven {
        let receipts = Receipt {
            cost: credits(12),
            seat: credits(9),
            pool: Amount::millionths(60_000),
            ..Receipt::default()
        };
        Driven {
            metered: 5,
            free: 2,
            refused: 4,
            planted: 0,
            cost: credits(12),
            receipts,
            ..Driven::default()
        }
    }

    fn found() -> Found {
        let outcomes = [("captured", 5), ("free", 2), ("refused", 4)];
        let metrics = Metrics {
            outcomes: outcomes.map(|(name, count)| (name.to_owned(), count)).into(),
            credits: credits(9),
            pool: Amount::millionths(60_000),
            ..Metrics::default()
        };
        Found {
            backend: Seen { requests: 7, failed: 0, bytes: 1400 },
            metrics: Some(metrics),
            verified: Some((5, 0)),
            captured: Some(credits(9)),
            archived: Some((5, 5)),
        }
    }

    fn wrong(driven: &Driven, found: &Found) -> usize {
        findings(&compare(driven, found)).len()
    }

    #[test]
    fn what_is_one_number_agrees() {
        assert_eq!(findings(&compare(&driven(), &found())), [""; 0]);
    }

    #[test]
    fn any_two_numbers_that_differ_are_found() {
        let metrics = |change: fn(&mut Metrics)| {
            let mut found = found();
            found.metrics.iter_mut().for_each(change);
            found
        };
        let planted: [Found; 14] = [
            Found { backend: Seen { requests: 8, ..found().backend }, ..found() },
            Found { backend: Seen { requests: 6, ..found().backend }, ..found() },
            Found { backend: Seen { failed: 1, ..found().backend }, ..found() },
            Found { verified: Some((6, 0)), ..found() },
            Found { verified: Some((4, 0)), ..found() },
            Found { verified: Some((5, 1)), ..found() },
            Found { captured: Some(credits(9).plus(Amount::millionths(1))), ..found() },
            Found { archived: Some((5, 4)), ..found() },
            metrics(|metrics| *metrics.outcomes.get_mut("captured").unwrap() += 1),
            metrics(|metrics| *metrics.outcomes.get_mut("free").unwrap() -= 1),
            metrics(|metrics| metrics.outcomes.extend([("voided".to_owned(), 1)])),
            metrics(|metrics| metrics.credits = credits(8)),
            metrics(|metrics| metrics.pool = Amount::millionths(60_001)),
            metrics(|metrics| metrics.lag = 1),
        ];
        for planted in planted {
            assert_eq!(wrong(&driven(), &planted), 1, "{planted:?}");
        }
        let overage = metrics(|metrics| metrics.overage = Amount::millionths(1));
        assert_eq!(wrong(&driven(), &overage), 1);
        assert_eq!(wrong(&Driven { wrong: 1, ..driven() }, &found()), 1);
        // One answer more than anybody else knows of.
        assert!(wrong(&Driven { metered: 6, ..driven() }, &found()) >= 3);
        // A receipt that says another price than the rate card.
        assert_eq!(wrong(&Driven { cost: credits(13), ..driven() }, &found()), 1);
    }

    #[test]
    fn what_nobody_knows_may_be_charged_or_not_and_no_more() {
        let mut driven = Driven { unknown: 1, unknown_cost: credits(2), ..driven() };
        assert_eq!(wrong(&driven, &found()), 0);
        let mut one = found();
        one.backend.requests += 1;
        one.verified = Some((6, 0));
        one.captured = Some(credits(11));
        assert_eq!(wrong(&driven, &one), 0);
        one.verified = Some((7, 0));
        assert_eq!(wrong(&driven, &one), 1);
        driven.unknown = 0;
        assert!(wrong(&driven, &one) >= 2);
    }

    #[test]
    fn receipts_that_are_not_final_are_compared_by_the_rate_card() {
        let driven = Driven {
            metered: 5,
            cost: credits(5),
            held: 5,
            receipts: Receipt::default(),
            ..Driven::default()
        };
        let outcomes = [("captured".to_owned(), 5)].into();
        let metrics = Metrics { outcomes, credits: credits(5), ..Metrics::default() };
        let backend = Seen { requests: 5, failed: 0, bytes: 0 };
        let found = Found { backend, metrics: Some(metrics), ..Found::default() };
        assert_eq!(wrong(&driven, &found), 0);
        let less = Found { captured: Some(credits(4)), ..found };
        assert_eq!(wrong(&driven, &less), 1);
    }
}
