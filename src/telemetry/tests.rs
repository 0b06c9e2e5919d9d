use super::*;
use crate::config::OrgLabelWord;

fn telemetry(label: OrgLabel) -> Telemetry {
    let route = RouteLabels { route: "/v1/images".into(), feature: Some("image".into()) };
    Telemetry::new(label, vec![route], vec!["media".into()])
}

#[test]
fn counters_of_all_workers_are_added_up_and_amounts_are_decimals() {
    let telemetry = telemetry(OrgLabel::Word(OrgLabelWord::All));
    for worker in [telemetry.worker(), telemetry.worker()] {
        let org = worker.org(&"acme".parse().unwrap());
        org.request(Some(0), Outcome::Captured, Some(200));
        org.captured(0, 1_250_001, 20_000, 0);
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
    let telemetry = telemetry(OrgLabel::List(vec!["acme".parse().unwrap()]));
    let worker = telemetry.worker();
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
    let telemetry = telemetry(OrgLabel::Word(OrgLabelWord::None));
    telemetry.watch("tollgate_in_flight_requests", "Requests in flight", || vec![(vec![], 3.0)]);
    assert!(telemetry.expose().contains("tollgate_in_flight_requests 3.0\n"));
}
