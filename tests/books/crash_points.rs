//! What another process finds when this one is killed: at every point, a state without
//! overspend, and always the same.

use tollgate::books::{Books, Resolved};
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{
    Embedded, Engine, account, ask, balance, done, id, name, resolution, run, take,
};

#[test]
fn f23_who_is_told_of_a_resolution_finds_it_again() {
    let engine = Embedded::start();
    let (mine, other) = (engine.session(), engine.session());
    let accounts = [account("a", 10, 1)];
    let memo = OutcomeMemo::default();
    run(async {
        assert!(done(mine.hold(&ask(1, &accounts, &take(10, &[0]))).await.unwrap()).is_some());
        let first = mine.resolve(id(1), &resolution(State::Captured, &[10], &memo));
        let second = other.resolve(id(1), &resolution(State::Voided, &[], &memo)).await.unwrap();
        assert!(matches!(second, Resolved::Already(State::Captured)));
        let found = engine.killed_now();
        assert_eq!(found.all()[&name("a")], balance(10, 0, 0, 10));
        first.await.unwrap();
    });
}
