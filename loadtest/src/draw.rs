//! Whom a request is for, drawn from a seed: the same seed draws the same users in the same order
//! for every system that is measured.

use serde::{Deserialize, Serialize};

/// How users are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// By Zipf's law with exponent 1: the first most often.
    #[default]
    Zipf,
    /// All alike.
    Uniform,
    /// One after the other, each once.
    Each,
}

/// A sequence of users.
pub struct Draw {
    users: u64,
    how: How,
    random: Random,
    zipf: Zipf,
    next: u64,
}

impl Draw {
    /// Of so many users; not of none.
    ///
    /// # Errors
    /// When there is nobody to draw.
    pub fn new(users: u64, how: How, seed: u64) -> anyhow::Result<Self> {
        anyhow::ensure!(users > 0, "nobody to draw");
        Ok(Self { users, how, random: Random(seed), zipf: Zipf::new(users), next: 0 })
    }

    /// The number, from 0, of the next user; `None` where each was there once.
    pub fn user(&mut self) -> Option<u64> {
        match self.how {
            How::Zipf => Some(self.zipf.rank(&mut self.random) - 1),
            How::Uniform => Some(self.random.next() % self.users),
            How::Each => {
                let user = self.next;
                self.next += 1;
                (user < self.users).then_some(user)
            }
        }
    }

    /// How many are left to be drawn, where each comes once.
    pub fn left(&self) -> Option<u64> {
        (self.how == How::Each).then(|| self.users.saturating_sub(self.next))
    }
}

/// SplitMix64: a sequence that is the same for ever, because one that changes with a library's
/// version would make old results incomparable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Ranks from 1 by Zipf's law with exponent 1, by rejection from the hyperbola above it (Hörmann
/// and Derflinger 1996): nothing is kept for each rank, however many there are.
struct Zipf {
    ranks: f64,
    /// Where the integral of 1/x begins and ends.
    low: f64,
    high: f64,
    /// A rank that is nearer than this needs no second look.
    near: f64,
}

impl Zipf {
    fn new(ranks: u64) -> Self {
        let ranks = ranks as f64;
        let (low, high) = (1.5_f64.ln() - 1.0, (ranks + 0.5).ln());
        Self { ranks, low, high, near: 2.0 - (2.5_f64.ln() - 0.5).exp() }
    }

    fn rank(&self, random: &mut Random) -> u64 {
        loop {
            let area = self.high + random.share() * (self.low - self.high);
            let at = area.exp();
            let rank = at.round().clamp(1.0, self.ranks);
            if rank - at <= self.near || area >= (rank + 0.5).ln() - 1.0 / rank {
                return rank as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_drawn_by_zipf() {
        let (users, draws) = (100_000_u32, 1_000_000_u32);
        let mut draw = Draw::new(u64::from(users), How::Zipf, 1).unwrap();
        let mut counts = vec![0_u32; users as usize];
        for _ in 0..draws {
            counts[draw.user().unwrap() as usize] += 1;
        }
        let total: f64 = (1..=users).map(|rank| 1.0 / f64::from(rank)).sum();
        let chance = |user: usize| 1.0 / (user as f64 + 1.0) / total;
        for (user, count) in counts.iter().take(20).enumerate() {
            let expected = f64::from(draws) * chance(user);
            let off = (f64::from(*count) - expected).abs();
            assert!(off < 5.0 * expected.sqrt(), "user {user}: {count}, expected {expected:.0}");
        }
        let drawn = counts.iter().filter(|count| **count > 0).count() as f64;
        let expected: f64 =
            (0..users as usize).map(|user| 1.0 - (1.0 - chance(user)).powf(f64::from(draws))).sum();
        assert!(
            (drawn - expected).abs() < 0.01 * expected,
            "{drawn} users, expected {expected:.0}"
        );
    }

    #[test]
    fn a_seed_draws_the_same_again_and_another_draws_others() {
        let drawn = |seed| {
            let mut draw = Draw::new(1000, How::Zipf, seed).unwrap();
            (0..100).map(|_| draw.user().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    #[test]
    fn each_is_drawn_once() {
        let mut draw = Draw::new(3, How::Each, 1).unwrap();
        assert_eq!(draw.left(), Some(3));
        let drawn: Vec<_> = std::iter::from_fn(|| draw.user()).collect();
        assert_eq!(drawn, [0, 1, 2]);
        assert_eq!(draw.left(), Some(0));
    }
}
