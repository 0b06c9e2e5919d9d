//! Licences that change hands in the middle of a cycle (D10).
//!
//! A licence's account is its *bucket*: named by the licence and by the user who first paid from
//! it in the cycle. Whoever held the licence in this cycle keeps the bucket they had, so that
//! giving it back never resets what they used. With the cycle all of this is over: the holder
//! then is the bucket again.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::core::cycle::Cycle;
use crate::core::ids::Id;

/// What the new holder of a licence that was already used in this cycle gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReassign {
    /// What is left in the last holder's bucket.
    #[default]
    Remaining,
    /// Nothing until the reset.
    NextCycle,
    /// A full bucket of their own.
    Full,
}

/// Who held a licence in one cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The end of that cycle.
    pub until: Timestamp,
    /// One entry for each user who held it, the last of them at the end.
    pub tenures: Vec<Tenure>,
}

/// How one user holds, or held, a licence in a cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenure {
    /// The user.
    pub user: Id,
    /// Whose bucket the licence pays from.
    pub bucket: Id,
    /// From when it pays; `None` for at once.
    pub pays_from: Option<Timestamp>,
}

impl Tenure {
    fn own(user: &Id) -> Self {
        Self { user: user.clone(), bucket: user.clone(), pays_from: None }
    }
}

/// The state of a licence after it goes from `holder` to `to` in `cycle`; `None` when its holder
/// simply pays from their own bucket and nobody else did.
pub fn reassign(
    holder: Option<&Id>,
    moved: Option<&Moved>,
    to: Option<&Id>,
    policy: OnReassign,
    cycle: &Cycle,
) -> Option<Moved> {
    let mut tenures = match moved {
        Some(moved) if moved.until > cycle.start => moved.tenures.clone(),
        _ => holder.map(Tenure::own).into_iter().collect(),
    };
    if let Some(to) = to {
        let next = match tenures.iter().position(|tenure| tenure.user == *to) {
            Some(before) => tenures.remove(before),
            None => match (tenures.last(), policy) {
                (None, _) | (_, OnReassign::Full) => Tenure::own(to),
                (Some(last), OnReassign::Remaining) => {
                    Tenure { user: to.clone(), bucket: last.bucket.clone(), pays_from: None }
                }
                (Some(last), OnReassign::NextCycle) => Tenure {
                    user: to.clone(),
                    bucket: last.bucket.clone(),
                    pays_from: Some(cycle.end),
                },
            },
        };
        tenures.push(next);
    }
    let plain = match tenures.as_slice() {
        [] => true,
        [only] => to == Some(&only.user) && *only == Tenure::own(&only.user),
        _ => false,
    };
    (!plain).then_some(Moved { until: cycle.end, tenures })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cycle::{Anchor, Schedule};

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn cycle(month: &str) -> Cycle {
        Schedule::new(Anchor::CalendarMonth, jiff::tz::TimeZone::UTC)
            .cycle_at(format!("2026-{month}-10T00:00:00Z").parse().unwrap())
    }

    /// A licence that alice holds goes through `moves`; says how each of them then holds it.
    fn walk(moves: &[(&str, &str, OnReassign)]) -> Vec<(Id, bool)> {
        let mut holder = Some(id("alice"));
        let mut moved = None;
        let mut seen = Vec::new();
        for (month, to, policy) in moves {
            let to = (!to.is_empty()).then(|| id(to));
            let cycle = cycle(month);
            moved = reassign(holder.as_ref(), moved.as_ref(), to.as_ref(), *policy, &cycle);
            holder = to;
            if let Some(holder) = &holder {
                let own = Tenure::own(holder);
                let tenure = moved.as_ref().map_or(&own, |moved| moved.tenures.last().unwrap());
                assert_eq!(tenure.user, *holder);
                assert!(tenure.pays_from.is_none_or(|from| from == cycle.end));
                seen.push((tenure.bucket.clone(), tenure.pays_from.is_none()));
            }
        }
        seen
    }

    use OnReassign::{Full, NextCycle, Remaining};

    #[test]
    fn d10_remaining_pays_from_the_same_bucket() {
        assert_eq!(walk(&[("11", "bob", Remaining)]), [(id("alice"), true)]);
        let round = walk(&[("11", "bob", Remaining), ("11", "alice", Remaining)]);
        assert_eq!(round, [(id("alice"), true), (id("alice"), true)]);
    }

    #[test]
    fn d10_remaining_also_after_lying_unassigned() {
        let moves = [("11", "", Remaining), ("11", "bob", Remaining)];
        assert_eq!(walk(&moves), [(id("alice"), true)]);
    }

    #[test]
    fn d10_next_cycle_pays_nothing_until_the_reset_and_gives_back_at_once() {
        let moves = [
            ("11", "bob", NextCycle),
            ("11", "", NextCycle),
            ("11", "bob", NextCycle),
            ("11", "alice", NextCycle),
        ];
        let expected = [(id("alice"), false), (id("alice"), false), (id("alice"), true)];
        assert_eq!(walk(&moves), expected);
    }

    #[test]
    fn d10_full_opens_a_bucket_of_ones_own_and_giving_back_resets_nothing() {
        let moves = [("11", "bob", Full), ("11", "alice", Full), ("11", "bob", Full)];
        assert_eq!(walk(&moves), [(id("bob"), true), (id("alice"), true), (id("bob"), true)]);
    }

    #[test]
    fn d10_a_change_of_policy_does_not_refill_a_bucket() {
        // Bob drew on alice's bucket; that stays his, whatever the policy is by then.
        let moves = [("11", "bob", Remaining), ("11", "carol", Full), ("11", "bob", Full)];
        assert_eq!(walk(&moves), [(id("alice"), true), (id("carol"), true), (id("alice"), true)]);
    }

    #[test]
    fn d10_in_the_next_cycle_the_holder_is_the_bucket() {
        let moves = [("11", "bob", Remaining), ("12", "carol", Remaining), ("12", "alice", Full)];
        assert_eq!(walk(&moves), [(id("alice"), true), (id("bob"), true), (id("alice"), true)]);
        let idle = [("11", "", Remaining), ("12", "bob", NextCycle)];
        assert_eq!(walk(&idle), [(id("bob"), true)]);
    }

    #[test]
    fn d10_whoever_held_it_in_this_cycle_keeps_the_bucket_in_every_order() {
        // Every sequence of four moves among three users and nobody, under every policy.
        let users = ["", "alice", "bob", "carol"];
        let policies = [Remaining, NextCycle, Full];
        for code in 0..12_usize.pow(4) {
            let moves: Vec<_> = (0..4)
                .map(|step| code / 12_usize.pow(step) % 12)
                .map(|pick| ("11", users[pick / 3], policies[pick % 3]))
                .collect();
            let mut had = vec![(id("alice"), (id("alice"), true))];
            let holders = moves.iter().filter(|(_, to, _)| !to.is_empty());
            let seen = walk(&moves);
            for ((_, to, policy), now) in holders.zip(seen) {
                match had.iter().find(|(user, _)| user.as_str() == *to) {
                    Some((_, before)) => assert_eq!(now, *before, "{moves:?}"),
                    None => {
                        // Only `full` opens another bucket.
                        let opened = had.iter().all(|(_, (bucket, _))| *bucket != now.0);
                        assert_eq!(opened, *policy == Full, "{moves:?}");
                        had.push((id(to), now));
                    }
                }
            }
        }
    }

    #[test]
    fn d08_a_licence_that_nobody_held_pays_at_once() {
        for policy in [Remaining, NextCycle, Full] {
            assert_eq!(reassign(None, None, Some(&id("bob")), policy, &cycle("11")), None);
        }
    }
}
