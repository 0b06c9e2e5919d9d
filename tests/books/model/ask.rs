//! Random posts, in both languages.

use tollgate::core::account::{Account, LegKind, Payer, Post, Slot, Source};

use super::naive::{self, Grant, Id, Model};
use super::world::{ROLE_COUNT, Random, World};

/// A post in both languages.
pub struct Asked {
    pub accounts: Vec<Account<'static>>,
    pub ids: Vec<Id>,
    pub post: Post,
    pub sources: Vec<naive::Source>,
    /// By slot: the account if the post names it.
    pub named: Vec<Option<(Id, Grant)>>,
}

impl Asked {
    /// What the model takes.
    pub fn extra<'a>(&'a self, named: &'a [(Id, Grant)]) -> naive::Extra<'a> {
        (&self.sources, named)
    }

    /// The accounts that it names.
    pub fn all_named(&self) -> Vec<(Id, Grant)> {
        self.named.iter().flatten().copied().collect()
    }

    /// A random post on some of the current accounts, often with numbers at the border of what
    /// they have.
    pub fn random(random: &mut Random, world: &World, model: &Model) -> Self {
        let count = 1 + random.below(7);
        let roles = random.some_of(ROLE_COUNT, count);
        let ids: Vec<Id> = roles.iter().map(|&role| world.current(role)).collect();
        let grants: Vec<Grant> = ids.iter().map(|&id| world.brought(id, random)).collect();
        let pairs = || ids.iter().copied().zip(grants.iter().copied());
        let accounts = pairs().map(|(id, grant)| world.account(id, grant)).collect();
        let mut named = vec![None; count];
        let mut sources = Vec::new();
        let mut post = Post::default();
        for _ in 0..=random.below(3) {
            let payers = 1 + random.below(3.min(count));
            let slots = random.some_of(count, payers);
            let mut source = Source::take(0, []);
            let mut naive = Vec::new();
            let mut total = 0_u64;
            for slot in slots {
                let cap = random.below(count);
                let cap = (cap != slot && random.percent(20)).then_some(cap);
                let kind = if random.percent(70) { LegKind::Pool } else { LegKind::Licence };
                let payer = Payer { slot: slot as Slot, kind, cap: cap.map(|cap| cap as Slot) };
                source.payers.push(payer);
                let cap_id = cap.map(|cap| ids[cap]);
                naive.push(naive::Payer { account: ids[slot], kind: number(kind), cap: cap_id });
                for slot in [Some(slot), cap].into_iter().flatten() {
                    named[slot] = Some((ids[slot], grants[slot]));
                }
                let sums = model.live.sums_under(ids[slot], grants[slot]);
                total += (sums.0 + sums.1 - sums.2 - sums.3).max(0) as u64;
            }
            source.take = match random.below(20) {
                0..2 => 0,
                2..4 => total.min(100),
                4..5 => total + 1,
                _ => random.up_to(25),
            };
            source.below = random.percent(10).then(|| total + random.up_to(2));
            source.solvent = random.percent(20);
            source.forced = random.percent(5);
            if source.forced {
                source.take = 1 + random.up_to(5);
            }
            sources.push(naive::Source {
                take: source.take,
                below: source.below,
                solvent: source.solvent,
                forced: source.forced,
                payers: naive,
            });
            post.sources.push(source);
        }
        for slot in 0..count {
            if random.percent(30) {
                post.look.push(slot as Slot);
                named[slot] = Some((ids[slot], grants[slot]));
            }
        }
        Self { accounts, ids, post, sources, named }
    }
}

/// The kind of a leg as the model has it.
pub fn number(kind: LegKind) -> naive::Kind {
    if kind == LegKind::Cap { naive::CAP } else { 1 + kind as naive::Kind }
}
