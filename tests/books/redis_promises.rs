//! Captures that Redis is silent to: this gateway's disk has them, and they are made all the same (D30).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ::redis::Commands;
use tollgate::books::{Ask, Books, Lasting, Resolution, Resolved};
use tollgate::core::account::Source;
use tollgate::core::charge::{OutcomeMemo, State};

use crate::engine::{NOW, account, ask, balance, id, name, payer, post, resolution, take};
use crate::redis_rejoin::{Running, Several};
use crate::redis_server::until;

/// One gateway that does not wait long for a capture, with a hold of ten for ten seconds that the server
/// keeps.
fn impatient() -> Several {
    waiting_for(Duration::from_millis(100))
}

/// A shard that comes back waits so long for gateways.
fn waiting_for(patience: Duration) -> Several {
    let mut books = Several::start(2, patience);
    books.settle_timeout = Duration::from_millis(50);
    books.gateways[0].running = None;
    books.open(0);
    let (accounts, take_ten) = ([account("a", 100, 1)], take(10, &[0]));
    let lasting =
        Lasting { expires: Some(NOW + jiff::SignedDuration::from_secs(10)), ..Lasting::default() };
    books.hold(0, &Ask { lasting: Some(lasting), ..ask(1, &accounts, &take_ten) }).unwrap();
    books.save();
    books
}

#[test]
fn d30_f25_a_capture_that_redis_is_silent_to_counts_by_this_gateways_disk() {
    let mut books = impatient();
    books.server.kill();
    assert!(matches!(books.capture(0, 1, 4), Resolved::Recorded));
    books.server.start_again();
    assert!(books.open_charge(0, 1).is_none(), "it was asked until it was done");
    assert_eq!(books.balances(0)[&name("a")], balance(100, 0, 0, 4));
    books.is_as_recorded(0);
}

#[test]
fn d30_f23_what_a_killed_gateway_had_recorded_is_captured_at_its_next_start() {
    for since in ["nothing", "given up", "expired"] {
        let mut books = impatient();
        books.server.kill();
        assert!(matches!(books.capture(0, 1, 4), Resolved::Recorded));
        books.gateways[0].running = None;
        books.server.start_again();
        if since == "given up" {
            books.run(1, async |session| session.abandon(id(1), NOW).await.unwrap().unwrap());
        } else if since == "expired" {
            let Running { engine, runtime, .. } = books.gateways[1].running.as_ref().unwrap();
            let later = NOW + jiff::SignedDuration::from_secs(20);
            let ended = runtime.handle.block_on(engine.expire(later)).whole().unwrap();
            assert_eq!(ended.len(), 1);
        }
        let held = if since == "nothing" { 10 } else { 0 };
        assert_eq!(books.balances(1)[&name("a")], balance(100, 0, held, 0));
        for _ in 0..2 {
            books.open(0);
            assert_eq!(books.balances(1)[&name("a")], balance(100, 0, 0, 4), "{since}");
            books.gateways[0].running = None;
        }
        books.is_as_recorded(1);
    }
}

/// How much waits on the disk of a gateway.
fn recorded(books: &Several, at: usize) -> u64 {
    let files = std::fs::read_dir(books.gateways[at].journal.path()).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let is_theirs = |path: &PathBuf| path.extension().is_some_and(|it| it == "captures");
    files.filter(is_theirs).map(|path| path.metadata().unwrap().len()).sum()
}

#[test]
fn d31_the_excess_of_a_recorded_capture_is_owed_where_those_who_had_it_have_not() {
    let accounts = [account("a", 100, 1), account("owes", 0, 1)];
    let forced = Source { forced: true, ..Source::take(5, [payer(1)]) };
    let (planned, owed) = (take(5, &[0]), post([forced]));
    for (lives_on, others, owes) in [(true, 85, 0), (true, 86, 5), (false, 85, 0), (false, 86, 5)] {
        let mut books = impatient();
        books.hold(1, &ask(2, &accounts, &take(others, &[0]))).unwrap();
        books.save();
        books.server.kill();
        let memo = OutcomeMemo::default();
        let keep = [10];
        let capture = resolution(State::Captured, &keep, &memo);
        let last = Resolution { extra: Some((&accounts[..], &owed)), ..capture.clone() };
        let extra = Some((&accounts[..], &planned));
        let capture = Resolution { extra, last: Some(&last), ..capture };
        let told = books.run(0, async |session| session.resolve(id(1), &capture).await.unwrap());
        assert!(matches!(told, Resolved::Recorded), "{told:?}");
        assert!(recorded(&books, 0) > 0);
        if !lives_on {
            books.gateways[0].running = None;
        }
        books.server.start_again();
        if !lives_on {
            books.open(0);
        }
        // What is not known is uncertain until all have entered.
        books.open_charge(1, 2);
        until("it is made", || recorded(&books, 0) == 0);
        assert!(books.open_charge(0, 1).is_none());
        let found = books.balances(1);
        assert_eq!(found[&name("a")], balance(100, 0, others, 15 - owes), "{lives_on} {others}");
        let owed = found.get(&name("owes")).map_or(0, |balance| balance.captured);
        assert_eq!(owed, owes, "{lives_on} {others}");
        books.is_as_recorded(1);
    }
}

#[test]
fn d30_f27_a_promise_for_what_another_gateway_has_to_do_again_waits_for_that() {
    let mut books = impatient();
    let (accounts, one) = ([account("a", 100, 1)], take(1, &[0]));
    books.hold(1, &ask(2, &accounts, &one)).unwrap();
    books.save();
    // This one is lost, and its gateway is away.
    books.hold(1, &ask(3, &accounts, &take(10, &[0]))).unwrap();
    books.server.kill();
    assert!(matches!(books.capture(0, 3, 4), Resolved::Recorded));
    books.gateways[1].running = None;
    books.server.start_again();
    until("the shard is open", || books.hold(0, &ask(4, &accounts, &one)).is_ok());
    assert!(recorded(&books, 0) > 0, "nobody knows of the charge yet");
    books.open(1);
    until("it is made", || recorded(&books, 0) == 0);
    // What its gateway had left open is void, and this is captured late.
    until("all is done", || books.balances(1)[&name("a")] == balance(100, 0, 11, 4));
    books.is_as_recorded(1);
}

/// One that joined after the file was made, which the shard does not wait for.
#[test]
fn d30_f27_a_promise_for_what_a_gateway_has_to_do_again_that_redis_does_not_know_of_waits_for_that()
{
    let mut books = waiting_for(Duration::from_secs(60));
    let (accounts, ten) = ([account("a", 100, 1)], take(10, &[0]));
    books.hold(1, &ask(3, &accounts, &ten)).unwrap();
    books.server.kill();
    assert!(matches!(books.capture(0, 3, 4), Resolved::Recorded));
    books.gateways[1].running = None;
    books.server.start_again();
    until("the shard is open", || books.hold(0, &ask(4, &accounts, &ten)).is_ok());
    // This one is asked behind the promise.
    books.hold(0, &ask(5, &accounts, &ten)).unwrap();
    assert!(recorded(&books, 0) > 0, "nobody knows of the charge yet");
    books.open(1);
    until("it is made", || recorded(&books, 0) == 0);
    until("all is done", || books.balances(1)[&name("a")] == balance(100, 0, 30, 4));
    books.is_as_recorded(1);
}

/// Its sessions were taken away meanwhile, and the gateway that has the promise was started again.
#[test]
fn d30_f27_a_promise_of_an_earlier_life_waits_for_who_comes_later_than_anybody_waits() {
    let mut books = waiting_for(Duration::from_millis(1));
    let (accounts, ten) = ([account("a", 100, 1)], take(10, &[0]));
    books.run(1, async |session| session.balances(&accounts).await.unwrap());
    books.save();
    books.hold(1, &ask(3, &accounts, &ten)).unwrap();
    books.server.kill();
    assert!(matches!(books.capture(0, 3, 4), Resolved::Recorded));
    for gateway in &mut books.gateways {
        gateway.running = None;
    }
    books.server.start_again();
    // It starts, and what it promised waits for who is absent.
    books.deadline = Duration::from_millis(300);
    books.open(0);
    let look = |books: &Several| books.run(0, async |session| session.open_charge(id(3)).await);
    assert!(look(&books).is_err(), "nobody says that it is unknown yet");
    assert!(recorded(&books, 0) > 0);
    let mut connection = books.connection();
    let sessions: Vec<String> = connection.hkeys("tollgate:{s0}:sessions").unwrap();
    let gone: Vec<_> = sessions.iter().filter(|name| name.starts_with("gateway-1/")).collect();
    let count = gone.iter().filter(|name| !name.ends_with(":r")).count() as i64;
    assert!(count > 0);
    let mut leave = ::redis::pipe();
    leave
        .atomic()
        .hincr("tollgate:{s0}:meta", "sessions", -count)
        .hdel("tollgate:{s0}:sessions", gone);
    leave.exec(&mut connection).unwrap();
    // Nobody is absent any more, and nobody knows of it.
    until("it is unknown", || {
        books.run(0, async |session| session.open_charge(id(3)).await).is_ok()
    });
    // What nobody knew is asked four times a second.
    let since = Instant::now();
    until("the promise was told so", || look(&books).is_ok() && since.elapsed().as_secs() > 0);
    books.hold(0, &ask(5, &accounts, &ten)).unwrap();
    books.open(1);
    until("it is made", || recorded(&books, 0) == 0);
    assert_eq!(books.balances(1)[&name("a")].captured, 4);
    books.is_as_recorded(1);
}
