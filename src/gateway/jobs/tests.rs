//! The index of open jobs: which are asked for, when, and how many.

use super::*;

fn charge(at: u128) -> ChargeId {
    ChargeId::v7(1, at)
}

fn note(upstream: &str, job: u128) -> JobNote {
    let path = format!("/jobs/a%20{job}");
    JobNote { upstream: upstream.to_owned(), path, poll: 1_000, ..JobNote::default() }
}

/// Until their charges end by themselves.
const DAY: SignedDuration = SignedDuration::from_hours(24);

#[test]
fn d34_a_job_is_asked_for_a_last_time_before_its_charge_ends() {
    let (now, day) = (Instant::now(), Duration::from_secs(24 * 3600));
    for (due, last, expected) in [
        (now + day * 2, Some(now + day), now + day),
        (now + day / 2, Some(now + day), now + day / 2),
        (now + day * 2, None, now + day * 2),
    ] {
        assert_eq!(sooner(due, last), expected);
    }
    let jobs = Jobs::default();
    let note = JobNote { poll: 3_600_000, ..note("media", 1) };
    jobs.put(charge(1), "acme", &note, SignedDuration::from_mins(10));
    let due = jobs.index.lock().open[&charge(1)].due.unwrap();
    let left = due.duration_since(now);
    assert!((590..=596).contains(&left.as_secs()), "{left:?}");
    // A question before that moment does not stand for the last one.
    let jobs = Arc::new(jobs);
    drop(jobs.take_due("media", due).unwrap());
    assert_eq!(jobs.index.lock().open[&charge(1)].due, Some(due));
    // That moment may pass while an earlier question is not answered.
    let asking = jobs.take_due("media", due).unwrap();
    let last = asking.began + Duration::from_nanos(1);
    jobs.index.lock().open.get_mut(&charge(1)).unwrap().last = Some(last);
    drop(asking);
    assert_eq!(jobs.index.lock().open[&charge(1)].due, Some(last));
    drop(jobs.take_due("media", last).unwrap());
    assert!(jobs.take_due("media", last + LONGEST_WAIT).is_none());
}

#[test]
fn d34_a_question_that_hangs_is_given_up_when_the_last_one_is_to_be_asked() {
    let (now, of) = (Instant::now(), Duration::from_millis);
    for (last, expected) in [
        (None, PATIENCE),
        (Some(of(11_000)), PATIENCE),
        (Some(of(3_000)), of(3_000)),
        (Some(of(999)), LEAST_PATIENCE),
        (Some(of(1)), LEAST_PATIENCE),
        // It is the last one.
        (Some(of(0)), PATIENCE),
    ] {
        assert_eq!(patience(last.map(|last| now + last), now), expected, "{last:?}");
    }
    let jobs = Arc::new(Jobs::default());
    jobs.put(charge(1), "acme", &note("media", 1), SignedDuration::from_secs(8));
    let asking = jobs.take_due("media", now + of(2_000)).unwrap();
    assert!((LEAST_PATIENCE..=of(3_000)).contains(&asking.patience), "{:?}", asking.patience);
}

#[test]
fn d34_what_was_over_while_nobody_served_is_asked_for_once_by_all() {
    let jobs = Arc::new(Jobs::default());
    let count = 2 * queue::AT_ONCE as u128;
    for at in 0..=count {
        jobs.take_up(charge(at), "acme", &note("media", at), SignedDuration::from_secs(4));
    }
    jobs.take_up(charge(99), "acme", &note("else", 99), SignedDuration::from_secs(60));
    let now = Instant::now();
    let asked: Vec<Asking> = std::iter::from_fn(|| jobs.take_due("media", now)).collect();
    assert_eq!(asked.len() as u128, count, "those for a last time have places of their own");
    drop(asked);
    assert!(jobs.owes_questions());
    let rest = jobs.take_due("media", now).unwrap();
    assert!(jobs.owes_questions(), "it is not answered");
    drop(rest);
    assert!(!jobs.owes_questions());
    assert!(jobs.take_due("media", now).is_none());
    // One that ends otherwise is not waited for.
    jobs.take_up(charge(100), "acme", &note("media", 100), SignedDuration::ZERO);
    assert!(jobs.owes_questions());
    jobs.remove(charge(100));
    assert!(!jobs.owes_questions());
}

#[test]
fn d34_a_charge_may_end_here_where_its_job_was_asked_for() {
    let jobs = Arc::new(Jobs::default());
    assert!(!jobs.may_end(charge(1)), "it is another gateway's");
    jobs.put(charge(1), "acme", &note("media", 1), DAY);
    assert!(jobs.may_end(charge(1)));
    jobs.take_up(charge(2), "acme", &note("media", 2), SignedDuration::ZERO);
    assert!(!jobs.may_end(charge(2)), "it was not asked for since");
    drop(jobs.take_due("media", Instant::now()).unwrap());
    assert!(jobs.may_end(charge(2)));
}

#[test]
fn d34_a_job_that_two_take_up_at_once_is_there_once() {
    let jobs = Jobs::default();
    jobs.put(charge(1), "acme", &note("media", 1), DAY);
    jobs.take_up(charge(1), "acme", &note("media", 1), DAY);
    jobs.put(charge(1), "acme", &note("media", 1), DAY);
    assert_eq!((jobs.len(), jobs.index.lock().orgs["acme"]), (1, 1));
    jobs.remove(charge(1));
    let index = jobs.index.lock();
    assert!(index.orgs.is_empty() && index.backends.is_empty());
}

#[test]
fn d34_one_org_leaves_some_jobs_to_others() {
    let jobs = Jobs::default();
    for at in 0..MAX_OF_ORG as u128 {
        assert!(jobs.admit("acme").is_ok());
        jobs.put(charge(at), "acme", &note("media", at), DAY);
    }
    assert_eq!(jobs.admit("acme").unwrap_err().refusal.code, Code::TooManyInFlight);
    assert!(jobs.admit("globex").is_ok());
    jobs.remove(charge(7));
    assert!(jobs.admit("acme").is_ok());
    for at in 0..MAX_OF_ORG as u128 {
        jobs.remove(charge(at));
    }
    assert!(jobs.index.lock().orgs.is_empty());
}

#[test]
fn d34_a_job_is_asked_for_after_a_while_and_then_twice_as_long_apart() {
    let jobs = Arc::new(Jobs::default());
    let began = Instant::now();
    jobs.put(charge(1), "acme", &note("media", 1), DAY);
    let mut before = began;
    for wait in [1, 1, 2, 4, 8, 16, 32, 60, 60] {
        let early = before + Duration::from_millis(wait * 1_000 - 1);
        assert!(jobs.take_due("media", early).is_none(), "{wait}");
        assert!(jobs.backends_due(early).is_empty());
        let due = Instant::now() + Duration::from_secs(wait);
        assert_eq!(jobs.backends_due(due), [Box::from("media")]);
        let asking = jobs.take_due("media", due).unwrap();
        assert!(jobs.take_due("media", due + LONGEST_WAIT * 2).is_none(), "it is asked for");
        before = Instant::now();
        drop(asking);
    }
}

#[test]
fn d34_so_many_jobs_of_an_upstream_are_asked_for_at_once() {
    let jobs = Arc::new(Jobs::default());
    let later = Instant::now() + Duration::from_secs(5);
    for at in 0..queue::AT_ONCE as u128 + 1 {
        jobs.put(charge(at), "acme", &note("hangs", at), DAY);
    }
    jobs.put(charge(99), "acme", &note("works", 99), DAY);
    let asked: Vec<Asking> = std::iter::from_fn(|| jobs.take_due("hangs", later)).collect();
    assert_eq!(asked.len(), queue::AT_ONCE);
    assert_eq!(jobs.backends_due(later), [Box::from("works")]);
    assert!(jobs.take_due("works", later).is_some());
    drop(asked);
    assert!(jobs.take_due("hangs", later).is_some());
}

#[test]
fn d34_no_more_jobs_are_open_than_may_be() {
    let jobs = Jobs::default();
    for at in 0..MAX_OPEN as u128 {
        assert!(jobs.admit("globex").is_ok());
        jobs.put(charge(at), "acme", &note("media", at), DAY);
    }
    let refused = jobs.admit("globex").unwrap_err();
    assert_eq!((refused.refusal.code, refused.retry_after), (Code::TooManyInFlight, Some(5)));
    jobs.remove(charge(7));
    assert!(jobs.admit("globex").is_ok());
}

#[test]
fn d34_a_job_that_is_over_leaves_nothing_whoever_still_asks_for_it() {
    let jobs = Arc::new(Jobs::default());
    let later = Instant::now() + Duration::from_secs(5);
    for at in 0..4 {
        jobs.put(charge(at), if at == 3 { "else" } else { "acme" }, &note("media", at / 2), DAY);
    }
    assert_eq!(jobs.at("media", "/jobs/a 0", "acme")[..], [charge(0), charge(1)]);
    assert_eq!(jobs.at("media", "/jobs/a 1", "acme")[..], [charge(2)]);
    assert_eq!(jobs.at("media", "/jobs/a 1", "else")[..], [charge(3)]);
    for (upstream, path) in [("other", "/jobs/a 0"), ("media", "/jobs/a%200"), ("media", "/")] {
        assert!(jobs.at(upstream, path, "acme").is_empty());
    }
    let asking = jobs.take_due("media", later).unwrap();
    for at in 0..4 {
        assert!(jobs.is_open(charge(at)));
        jobs.remove(charge(at));
        jobs.remove(charge(at));
    }
    assert!(jobs.is_empty() && !jobs.is_open(charge(0)));
    assert_eq!(jobs.index.lock().backends.len(), 1, "somebody still asks");
    drop(asking);
    assert!(jobs.index.lock().backends.is_empty());
}
