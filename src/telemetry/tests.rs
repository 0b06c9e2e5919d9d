use super::*;
use crate::config::OrgLabelWord;

fn labels() -> Arc<Labels> {
    let route = RouteLabels { route: "/v1/images".into(), feature: Some("image".into()) };
    Arc::new(Labels { routes: vec![route], upstreams: vec!["media".into()] })
}

#[test]
fn counters_of_all_workers_are_added_up_and_amounts_are_decimals() {
    let telemetry = Telemetry::new(OrgLabel::Word(OrgLabelWord::All));
    for worker in [telemetry.worker(&labels()), telemetry.worker(&labels())] {
        let org = worker.org(&"acme".parse().unwrap());
        org.request(Some(0), Outcome::Captured, Some(200));
        org.captured(Some(0), 1_250_001, 20_000, 0);
        org.refusal(Code::SeatExhausted);
        worker.overhead(Some(0), Duration::from_micros(30));
    }
    let text = telemetry.expose();
    for line in [
        "tollgate_requests_total{org=\"acme\",route=\"/v1/images\",outcome=\"captured\",status_class=\"2xx\"} 2\n",
        "tollgate_credits_captured_total{org=\"acme\",feature=\"image\"} 2.500002\n",
        "tollgate_operations_captured_total{org=\"acme\",feature=\"image\",source=\"pool\"} 0.04\n",
        "tollgate_refusals_total{org=\"acme\",code=\"seat_exhausted\"} 2\n",
        "tollgate_overhead_duration_seconds_bucket{le=\"0.00005\",route=\"/v1/images\"} 2\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("overage"));
}

#[test]
fn f75_orgs_without_a_label_of_their_own_share_one() {
    let telemetry = Telemetry::new(OrgLabel::List(vec!["acme".parse().unwrap()]));
    let worker = telemetry.worker(&labels());
    for org in ["acme", "bolt", "crux"] {
        worker.org(&org.parse().unwrap()).request(None, Outcome::Refused, Some(404));
    }
    let text = telemetry.expose();
    assert!(
        text.contains("{org=\"other\",route=\"-\",outcome=\"refused\",status_class=\"4xx\"} 2")
    );
    assert!(text.contains("{org=\"acme\",route=\"-\","));
    assert!(!text.contains("bolt"));
}

#[test]
fn watched_gauges_are_asked_at_every_scrape() {
    let telemetry = Telemetry::new(OrgLabel::Word(OrgLabelWord::None));
    telemetry.watch("tollgate_in_flight_requests", "Requests in flight", || vec![(vec![], 3.0)]);
    assert!(telemetry.expose().contains("tollgate_in_flight_requests 3.0\n"));
}

#[test]
fn counters_go_on_over_reloads_and_old_meters_are_let_go() {
    let telemetry = Telemetry::new(OrgLabel::Word(OrgLabelWord::All));
    let acme = "acme".parse().unwrap();
    let other = RouteLabels { route: "/v1/other".into(), feature: None };
    let mut reordered = (*labels()).clone();
    reordered.routes.insert(0, other);
    let reordered = Arc::new(reordered);
    for at in 0..10 {
        // The same route at another place in the file is the same route.
        let (labels, index) = if at % 2 == 0 { (labels(), 0) } else { (reordered.clone(), 1) };
        let worker = telemetry.worker(&labels);
        worker.org(&acme).request(Some(index), Outcome::Captured, Some(200));
        worker.overhead(Some(index), Duration::from_micros(30));
        let text = telemetry.expose();
        let total = format!("outcome=\"captured\",status_class=\"2xx\"}} {}\n", at + 1);
        assert!(text.contains(&total), "{text}");
        let count = format!("_seconds_count{{route=\"/v1/images\"}} {}\n", at + 1);
        assert!(text.contains(&count), "{text}");
        assert_eq!(telemetry.shared.workers.lock().live.len(), 1, "one counts, nine are summed");
    }
}

#[test]
fn f75_requests_make_no_label_however_many_there_are() {
    let telemetry = Telemetry::new(OrgLabel::Word(OrgLabelWord::All));
    let worker = telemetry.worker(&labels());
    let count = |telemetry: &Telemetry| telemetry.expose().lines().count();
    worker.nobody().request(None, Outcome::Refused, Some(404));
    let before = count(&telemetry);
    for status in 0..1000 {
        worker.nobody().request(None, Outcome::Refused, Some(400 + status % 100));
        // A route that there is not counts as none.
        worker.nobody().request(Some(7 + usize::from(status)), Outcome::Refused, Some(404));
    }
    assert_eq!(count(&telemetry), before);
}
