//! The golden tables of the decision, on real books: the same rows as in `src/core/waterfall`, each
//! with accounts of its own that come to the row's balances by what was granted, adjusted, held and
//! captured.

#[path = "../../src/core/waterfall/tests/table.rs"]
mod table;
#[path = "../../src/core/waterfall/tests/world.rs"]
#[expect(dead_code, reason = "the rule's own tests need more of it")]
mod world;

use tollgate::books::{Books, Posted};
use tollgate::core::account::{
    Account, AccountKey, AccountKind, AccountName, Grant, Legs, Post, Slot, Stem, Version, View,
};
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::price::Quote;
use tollgate::core::refusal::Code;
use tollgate::core::waterfall::{MAX_PLANS, Observed, PoolAccess, Position, decide};

use self::world::{Outcome, World, describe};
use crate::contract::adjust;
use crate::engine::{Engine, ask, id, resolution, run, take};

/// What was granted before anything was used.
const FIRST: Grant = Grant { base: 7, version: Version { epoch: 1, number: 1 } };

/// The callers of the rows, one after the other.
struct Callers<B> {
    session: B,
    rows: usize,
    charges: u64,
}

impl<B: Books> Callers<B> {
    fn new(engine: &impl Engine<Session = B>) -> Self {
        Self { session: engine.session(), rows: 0, charges: 0 }
    }

    fn charge(&mut self) -> u64 {
        self.charges += 1;
        self.charges
    }

    /// Accounts with the balances of a world, by slot.
    fn accounts(&mut self, world: &World) -> Vec<Account<'static>> {
        self.rows += 1;
        let row = self.rows;
        let accounts = world.balances.iter().enumerate().map(|(slot, balance)| {
            let kind = kind(&world.position, slot as Slot);
            let text: &'static str = format!("{row}-{slot}").leak();
            let period = "2026-11-01".parse().unwrap();
            let key = AccountKey { stem: Stem::new(&["acme", text]), period, kind };
            let name = AccountName { org: "acme", kind, ids: [text, ""], period };
            let account = Account { key, name, grant: FIRST };
            for (amount, state) in
                [(balance.captured, State::Captured), (balance.held, State::Held)]
            {
                let (charge, post) = (self.charge(), take(amount, &[0]));
                let held = run(self.session.hold(&ask(charge, &[account], &post))).unwrap();
                assert!(matches!(held, Posted::Done(..)), "{held:?}");
                if state == State::Captured {
                    let memo = OutcomeMemo::default();
                    let whole = [amount];
                    run(self.session.resolve(id(charge), &resolution(state, &whole, &memo)))
                        .unwrap();
                }
            }
            let grant = Grant { base: balance.base, version: Version { epoch: 1, number: 2 } };
            let account = Account { grant, ..account };
            let after = adjust(&self.session, &account, balance.adjusted);
            assert_eq!(after.unwrap(), *balance);
            account
        });
        accounts.collect()
    }

    fn post(&mut self, accounts: &[Account<'_>], post: &Post) -> Result<(Legs, View), Box<View>> {
        let charge = self.charge();
        match run(self.session.hold(&ask(charge, accounts, post))).unwrap() {
            Posted::Done(legs, view) => Ok((legs, view)),
            Posted::Short(view) => Err(Box::new(view)),
            Posted::Known(known) => panic!("nobody uses keys here: {known:?}"),
        }
    }

    fn play(&mut self, world: &World, quote: &Quote) -> (Outcome, usize) {
        let accounts = self.accounts(world);
        world::run(&world.position, quote, |_, post| self.post(&accounts, post))
    }

    /// What is paid in observe mode, in one line.
    fn observe(&mut self, world: &World, quote: &Quote) -> String {
        let accounts = self.accounts(world);
        let mut known: Option<View> = None;
        for plans in 0..=MAX_PLANS {
            let planned = (known.as_ref(), plans);
            let (post, observed) = decide(quote, &world.position, planned, true).unwrap();
            match self.post(&accounts, &post) {
                Ok((legs, view)) => return line(Outcome::Done(legs, view), observed),
                Err(seen) => known = Some(*seen),
            }
        }
        panic!("observe mode refuses nothing");
    }
}

fn line(paid: Outcome, observed: Option<Observed>) -> String {
    let uncovered = observed.unwrap_or_default().uncovered;
    let (credits, operations) = (uncovered.credits.micro(), uncovered.operations.micro());
    let code = observed.and_then(|observed| observed.code).map_or("-", Code::as_str);
    format!("{} | {code} {credits}/{operations}", describe(&paid))
}

/// What runs out in a slot.
fn kind(position: &Position<'_>, slot: Slot) -> AccountKind {
    match &position.pool {
        _ if slot < position.licences => AccountKind::Licence,
        _ if position.overdraft == Some(slot) => AccountKind::Overdraft,
        PoolAccess::Open(side) if side.pool == slot => AccountKind::Pool,
        PoolAccess::Open(side) if side.draw == slot => AccountKind::Draw,
        _ => AccountKind::Overage,
    }
}

pub fn d24_d25_d26_golden_table_of_what_is_paid<E: Engine>() {
    let engine = E::start();
    let mut callers = Callers::new(&engine);
    table::check(table::paid(), |world, quote| callers.play(world, quote));
}

pub fn d14_d17_d24_d26_d31_golden_table_of_refusals<E: Engine>() {
    let engine = E::start();
    let mut callers = Callers::new(&engine);
    table::check(table::refused(), |world, quote| callers.play(world, quote));
}

pub fn d28_golden_table_of_what_is_paid_of_what_would_be_refused<E: Engine>() {
    let engine = E::start();
    let mut callers = Callers::new(&engine);
    for (name, setup, quote, expected) in table::observed() {
        assert_eq!(callers.observe(&setup.world(), &quote), expected, "{name}");
    }
}
