//! What is more than plain holds and resolutions: keys, amendments, holds that end by themselves.

use jiff::SignedDuration;
use tollgate::books::{Amended, Amendment, Books, Known, Lasting, Once, Posted, Resolved};
use tollgate::core::charge::{OutcomeMemo, State};

use super::super::ask::Asked;
use super::super::naive::{self, End, Grant, Key, Leg, More, Owner, RECOVERED, joined};
use super::{Answer, Expected, Future, Play, Subject, Then, Timestamp, charge_id, check_view};

const SCOPES: u64 = 2;
const KEYS: u8 = 10;

fn name(key: u8) -> [u8; 16] {
    [key; 16]
}

/// What is asked for, in the books' words.
pub fn lasting(more: &More) -> Option<Lasting<'_>> {
    let once = |((scope, key), request): &(Key, u8)| Once {
        scope: *scope,
        key: name(*key),
        request: name(*request),
    };
    let is_plain = more.expires.is_none() && more.once.is_none() && more.note.is_empty();
    (!is_plain).then(|| Lasting {
        expires: more.expires.map(|at| Timestamp::from_microsecond(at).unwrap()),
        once: more.once.as_ref().map(once),
        note: &more.note,
    })
}

impl<S: Subject> Play<S> {
    /// What a hold is beyond a plain one: mostly nothing.
    pub(super) fn more(&mut self) -> More {
        let once = self.random.percent(25).then(|| {
            let key = self.random.below(usize::from(KEYS)) as u8;
            ((self.random.up_to(SCOPES - 1), key), self.random.up_to(1) as u8)
        });
        let expires = self.random.percent(35).then(|| self.later());
        let note = if self.random.percent(10) { vec![7; self.random.below(20)] } else { vec![] };
        More { expires, once, known: None, note }
    }

    fn later(&mut self) -> i64 {
        let days = if self.random.percent(50) { 3 } else { 40 };
        let hours = self.random.up_to(24 * days) as i64;
        (self.now + SignedDuration::from_hours(hours)).as_microsecond()
    }

    /// What to keep of legs: all, less, none, more than there is, or of more legs.
    pub(super) fn keep(&mut self, legs: &[Leg], count: usize) -> Vec<u64> {
        let amounts = legs.iter().map(|leg| leg.amount).chain([3]).take(count);
        let whole = self.random.percent(50);
        amounts.map(|a| if whole { a } else { self.random.up_to(a + 1) }).collect()
    }

    /// A hold under a key that another charge has.
    pub(super) fn is_known(&mut self, future: Future, owner: Owner) {
        self.saw("known");
        match self.ready(future) {
            Answer::Posted(Ok(Posted::Known(known))) => {
                assert_eq!(known.charge, charge_id(owner.charge));
                assert_eq!((known.request, known.captured), (name(owner.request), owner.captured));
            }
            _ => panic!("charge {} has the key", owner.charge),
        }
    }

    pub(super) fn amend(&mut self) {
        let session = self.session();
        let Some(number) = self.pick_charge() else { return };
        let hold = self.model.live.open.get(&number).filter(|hold| !hold.resolving).cloned();
        let extra = self
            .random
            .percent(50)
            .then(|| Asked::random(&mut self.random, &self.world, &self.model));
        let named = extra.as_ref().map_or(Vec::new(), Asked::all_named);
        let said = self.said(hold.as_ref(), extra.as_ref(), &named);
        let known = said.known.as_ref().map(|keep| Known {
            keep: keep.iter().copied().collect(),
            memo: OutcomeMemo::default(),
        });
        let amendment = Amendment {
            extra: extra.as_ref().map(|extra| (&extra.accounts[..], &extra.post)),
            known: known.as_ref(),
            expires: said.expires.map(|at| Timestamp::from_microsecond(at).unwrap()),
            names: &[],
            note: said.note.as_deref(),
            answer: if self.random.percent(5) { b"HTTP/1.1 202 Accepted" } else { b"" },
            now: self.now,
        };
        let future = self.sessions[session].amend(charge_id(number), &amendment);
        let future: Future = Box::pin(async move { Answer::Amended(future.await) });
        let Some(hold) = hold else { return self.amend_again(number, future) };
        let with = extra.as_ref().map(|extra| extra.extra(&named));
        let done = self.model.amend(number, with, said);
        self.touched.extend(named.iter().map(|(id, _)| *id));
        match (done, extra) {
            (Some(legs), extra) => {
                self.saw("amended");
                if !legs.is_empty() {
                    self.saw("amended extra");
                }
                if hold.home == RECOVERED {
                    self.saw("amended after its process");
                }
                let view = self.view(&self.charges[number as usize].0);
                let ids = extra.map_or(Vec::new(), |extra| extra.ids);
                self.fly(future, Expected::Amended(legs, view), ids, hold.home);
            }
            (None, Some(extra)) => {
                self.saw("amended short");
                let view = self.view(&extra.named);
                match self.ready(future) {
                    Answer::Amended(Ok(Amended::Short(found))) => check_view(&view, &found),
                    _ => panic!("the books took more than there is"),
                }
            }
            (None, None) => unreachable!("nothing but an extra can be short"),
        }
    }

    /// A charge that others have ended: nothing of it changes any more.
    pub(super) fn is_over(&mut self, ended: End, future: Future) {
        self.saw("already over");
        let state = if ended == End::Void { State::Voided } else { State::Captured };
        self.fly(future, Expected::Already(state), Vec::new(), 0);
    }

    /// A capture of a charge that others have voided: what its owner keeps of it is taken from
    /// whoever has it or not (f23).
    pub(super) fn capture_late(
        &mut self,
        number: u64,
        future: Future,
        keep: &[u64],
        extra: Option<Asked>,
    ) {
        let named = extra.as_ref().map_or(Vec::new(), Asked::all_named);
        let with = extra.as_ref().map(|extra| extra.extra(&named));
        let done = self.model.capture_late(number, keep, with);
        self.touched.extend(named.iter().map(|(id, _)| *id));
        match (done, extra) {
            (Ok((legs, all)), extra) => {
                self.touched.extend(all.iter().map(|leg| leg.account));
                self.saw("captured late");
                if !legs.is_empty() {
                    self.saw("captured late extra");
                }
                let view = self.view(&self.charges[number as usize].0);
                let ids = extra.map_or(Vec::new(), |extra| extra.ids);
                self.fly(future, Expected::Resolved(legs, Then::Asked(view)), ids, 0);
            }
            (Err(forced), Some(extra)) => {
                self.saw("captured late short");
                let seen = |(id, grant)| forced.sums_under(id, grant);
                let view: Vec<_> = extra.named.iter().map(|named| named.map(seen)).collect();
                match self.ready(future) {
                    Answer::Resolved(Ok(Resolved::Short(found))) => check_view(&view, &found),
                    _ => panic!("the books took an extra that is not there"),
                }
            }
            (Err(_), None) => unreachable!("nothing but an extra can be short"),
        }
    }

    fn said(
        &mut self,
        hold: Option<&naive::Hold>,
        extra: Option<&Asked>,
        named: &[(naive::Id, Grant)],
    ) -> naive::Amendment {
        let grants = named.iter().copied().collect();
        let taken = extra.and_then(|extra| self.model.live.take(&extra.sources, &grants));
        let legs = hold.map_or(Vec::new(), |hold| joined(&hold.legs, &taken.unwrap_or_default()));
        let known = self.random.percent(40).then(|| {
            let count = self.random.below(legs.len() + 2);
            self.keep(&legs, count)
        });
        let expires = self.random.percent(30).then(|| self.later());
        let note = self.random.percent(30).then(|| vec![9; self.random.below(20)]);
        naive::Amendment { known, expires, note }
    }

    fn amend_again(&mut self, number: u64, future: Future) {
        if let Some(ended) = self.model.ended(number) {
            return self.is_over(ended, future);
        }
        match self.model.live.open.get(&number).map(|hold| hold.home) {
            Some(home) => {
                self.saw("amended already");
                let state = self.charges[number as usize].1.unwrap();
                self.fly(future, Expected::Already(state), Vec::new(), home);
            }
            None => {
                self.saw("amended unknown");
                let answer = self.ready(future);
                assert!(matches!(answer, Answer::Amended(Ok(Amended::Unknown))));
            }
        }
    }

    /// Holds end whose time is over, and nothing else does.
    pub(super) fn expire(&mut self) {
        let now = self.now;
        self.wait_for_all();
        let mut ended = self.subject.expire(now);
        ended.sort_by_key(|(charge, _)| *charge);
        let expected = self.model.expire(now.as_microsecond());
        self.all_written();
        self.model.forget(now.as_microsecond());
        for (charge, end) in &expected {
            let hold = &mut self.charges[*charge as usize];
            let (state, what) = match end {
                End::Void => (State::Expired, "expired"),
                End::Capture => (State::Captured, "ended captured"),
            };
            hold.1 = Some(state);
            self.saw(what);
        }
        let state = |charge: u64| self.charges[charge as usize].1.unwrap();
        let expected: Vec<_> =
            expected.into_iter().map(|(charge, _)| (charge_id(charge), state(charge))).collect();
        assert_eq!(ended, expected);
        for (charge, state) in ended {
            let again = self.sessions[0].resolve(
                charge,
                &crate::engine::resolution(State::Voided, &[], &OutcomeMemo::default()),
            );
            let again = self.ready(Box::pin(again));
            match state {
                State::Captured if S::AT_ONCE => {
                    assert!(matches!(again, Ok(Resolved::Already(State::Captured))));
                }
                _ => assert!(matches!(again, Ok(Resolved::Unknown))),
            }
        }
        self.check_everything();
    }

    /// All that was decided is written, by whoever writes for all sessions.
    pub(in super::super) fn all_written(&mut self) {
        for session in 0..=RECOVERED {
            self.written(session, self.batches[session]);
        }
    }

    /// The answer of what a session asked last is given up.
    pub(in super::super) fn give_up(&mut self, session: usize) {
        let waits = |flight: &super::Flight| {
            flight.session == session && flight.batch == self.batches[session]
        };
        let at = self.flights.iter().position(waits).unwrap();
        self.flights.swap_remove(at);
    }

    /// The slots of holds that outlived their process are their legs.
    pub(in super::super) fn adopt(&mut self) {
        let unseen = Grant { base: 0, version: (0, 0) };
        for (charge, hold) in &self.model.live.open {
            let legs = hold.legs.iter().map(|leg| Some((leg.account, unseen)));
            self.charges[*charge as usize].0 = legs.collect();
        }
    }

    /// Every key is that of the charge that the model says.
    pub(super) fn check_keys(&self) {
        let now = self.now.as_microsecond();
        for (scope, key) in (0..SCOPES).flat_map(|scope| (0..KEYS).map(move |key| (scope, key))) {
            let named = name(key);
            let known = self.ready(Box::pin(self.sessions[0].known(scope, &named))).unwrap();
            let found = known.map(|known| (known.charge, known.captured));
            let told = |owner: Owner| (charge_id(owner.charge), owner.captured);
            match self.model.live.owner((scope, key), now) {
                Ok(owner) => assert_eq!(found, owner.map(told), "key {key} of scope {scope}"),
                // Where it is known when that is, it is not forgotten yet.
                Err(owner) if S::AT_ONCE => {
                    assert_eq!(found, Some(told(owner)), "key {key} of scope {scope}");
                }
                // It may be forgotten, or not yet.
                Err(owner) => assert!(found.is_none_or(|found| found == told(owner))),
            }
        }
    }
}
