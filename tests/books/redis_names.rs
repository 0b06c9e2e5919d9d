//! Open charges on Redis that have names: other gateways find them, and let their owner ask a last
//! time before they end.

use std::collections::BTreeSet;

use tollgate::books::redis::{self, Session};
use tollgate::books::{
    Amended, Amendment, Ask, Books, Key, KeyOf, OpenCharge, Resolution, Resolved,
};
use tollgate::core::account::Account;
use tollgate::core::charge::{OutcomeMemo, State};
use tollgate::core::ids::{ChargeId, scope_of};

use crate::engine::{NOW, account, amendment, ask, done, id, resolution, second, take, until};
use crate::engine_redis::{EventLoop, options};
use crate::redis_server::RedisServer;

/// Two gateways.
struct Two {
    engines: [redis::Engine; 2],
    sessions: [Session; 2],
    runtime: EventLoop,
    server: RedisServer,
}

fn names(which: &[u8]) -> Vec<Key> {
    which.iter().map(|name| Key::new("acme", KeyOf::Job, [*name; 16])).collect()
}

/// An account of the org, in credits for all.
fn accounts() -> [Account<'static>; 1] {
    [account("a", 1_000, 1)]
}

impl Two {
    fn start() -> Self {
        let (server, runtime) = (RedisServer::start(), EventLoop::start());
        let open = |gateway: &str| {
            let options = redis::Options { gateway: gateway.into(), ..options(&server) };
            let opening = redis::Engine::open(options, runtime.handle.clone(), NOW);
            runtime.handle.block_on(opening).unwrap()
        };
        let engines = [open("one"), open("two")];
        let sessions = [engines[0].session(), engines[1].session()];
        Self { engines, sessions, runtime, server }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.handle.block_on(future)
    }

    /// The first gateway holds a charge that ends by itself, and gives it names.
    fn hold(&self, charge: u64, seconds: i64, which: &[u8]) {
        let (accounts, one) = (accounts(), take(1, &[0]));
        let asked = Ask { lasting: until(seconds), ..ask(charge, &accounts, &one) };
        assert!(done(self.run(self.sessions[0].hold(&asked)).unwrap()).is_some());
        let names = names(which);
        let amendment = Amendment { names: &names, note: Some(b"a job"), ..amendment() };
        let amended = self.run(self.sessions[0].amend(id(charge), &amendment)).unwrap();
        assert!(matches!(amended, Amended::Done(..)));
    }

    /// What the second gateway finds.
    fn found(&self, which: &[u8]) -> BTreeSet<ChargeId> {
        self.run(self.sessions[1].named(&names(which))).unwrap().into_iter().collect()
    }

    fn finds(&self, which: &[u8], charges: &[u64]) {
        assert_eq!(self.found(which), charges.iter().map(|charge| id(*charge)).collect());
    }

    fn capture(&self, by: usize, charge: u64) -> Resolved {
        let memo = OutcomeMemo::default();
        let capture: Resolution<'_> = resolution(State::Captured, &[1], &memo);
        self.run(self.sessions[by].resolve(id(charge), &capture)).unwrap()
    }

    /// What ends at the second gateway so long after, which looks after these.
    fn expire(&self, seconds: i64, own: &[u64]) -> Vec<(ChargeId, State)> {
        let own: Vec<ChargeId> = own.iter().map(|charge| id(*charge)).collect();
        let expiring = self.engines[1].expire_but(second(seconds), |charge| own.contains(&charge));
        let ended = self.run(expiring).whole().unwrap().into_iter();
        let mut ended: Vec<_> =
            ended.map(|(OpenCharge { charge, .. }, state)| (charge, state)).collect();
        ended.sort_unstable_by_key(|(charge, _)| *charge);
        ended
    }

    fn count(&self, key: &str) -> usize {
        let client = ::redis::Client::open(self.server.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let key = format!("tollgate:{{s0}}:{key}");
        ::redis::cmd("HLEN").arg(key).query(&mut connection).unwrap()
    }
}

#[test]
fn d34_other_gateways_find_open_charges_by_their_names_as_long_as_they_are_open() {
    let two = Two::start();
    two.finds(&[1], &[]);
    two.hold(1, 60, &[1, 2]);
    two.hold(2, 60, &[1]);
    two.hold(3, 60, &[3]);
    two.finds(&[1], &[1, 2]);
    two.finds(&[2], &[1]);
    two.finds(&[4, 2, 3], &[1, 3]);
    // Those of another org or kind are others, and none is the key of a charge.
    let others =
        [Key::new("globex", KeyOf::Job, [1; 16]), Key::new("acme", KeyOf::Refund, [1; 16])];
    for other in others {
        assert_eq!(two.run(two.sessions[1].named(&[other])).unwrap(), []);
    }
    let found = two.run(two.sessions[1].open_charge(id(1))).unwrap().unwrap();
    assert_eq!((&*found.note, found.expires), (&b"a job"[..], Some(second(60))));
    assert_eq!(two.run(two.engines[1].list_open()).unwrap().len(), 3);
    assert_eq!(two.run(two.sessions[1].known(scope_of("acme"), &[1; 16])).unwrap(), None);
    // Whoever is first ends one, and its names with it.
    assert!(matches!(two.capture(1, 1), Resolved::Done(..)));
    assert!(matches!(two.capture(0, 1), Resolved::Unknown));
    two.finds(&[1], &[2]);
    two.finds(&[2], &[]);
    assert!(two.run(two.sessions[0].abandon(id(2), NOW)).unwrap().is_some());
    assert_eq!(two.expire(60, &[3]), [(id(3), State::Expired)]);
    two.finds(&[1, 2, 3], &[]);
    assert_eq!((two.count("once"), two.count("holds")), (0, 0));
}

#[test]
fn d34_a_name_has_so_many_charges_and_a_charge_beyond_goes_without() {
    let two = Two::start();
    for charge in 0..34 {
        two.hold(charge, 60, &[1]);
    }
    assert_eq!(two.found(&[1]).len(), 32);
    assert!(!two.found(&[1]).contains(&id(33)));
    for charge in (0..34).rev() {
        assert!(matches!(two.capture(0, charge), Resolved::Done(..)));
    }
    assert_eq!(two.count("once"), 0);
}

#[test]
fn d34_a_charge_with_names_that_a_gateway_does_not_look_after_ends_there_a_minute_later() {
    let two = Two::start();
    two.hold(1, 60, &[1]);
    two.hold(2, 60, &[2]);
    two.hold(3, 60, &[]);
    two.hold(4, 90, &[4]);
    assert_eq!(two.expire(59, &[2]), []);
    let expired = |charge| (id(charge), State::Expired);
    assert_eq!(two.expire(60, &[2, 4]), [expired(2), expired(3)]);
    assert_eq!(two.expire(119, &[]), []);
    assert_eq!(two.expire(120, &[]), [expired(1)]);
    assert_eq!(two.expire(149, &[]), []);
    assert_eq!(two.expire(1_000, &[]), [expired(4)]);
}
