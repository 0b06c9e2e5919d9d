//! D12 to D14, D17, D18 and D26: who has pool access, what is missing, and whose limits apply.

use proptest::prelude::*;

use super::*;

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn ids(texts: &[&str]) -> Vec<Id> {
    texts.iter().copied().map(id).collect()
}

fn operations(micro: u64) -> Operations {
    Operations::from_micro(micro).unwrap()
}

/// An org, owned, so that a test can borrow its terms.
struct Org {
    contract: &'static str,
    products: Vec<Id>,
    offers: Vec<Id>,
    bases: Vec<Id>,
    pool_limit: Option<Operations>,
    overage: Overage,
}

impl Org {
    fn new(contract: &'static str, products: &[&str]) -> Self {
        Self {
            contract,
            products: ids(products),
            offers: ids(&OFFERS),
            bases: ids(&BASES),
            pool_limit: None,
            overage: Overage::Reject,
        }
    }

    fn terms(&self) -> OrgTerms<'_> {
        OrgTerms {
            contract: self.contract,
            products: &self.products,
            offers: &self.offers,
            bases: &self.bases,
            pool_limit: self.pool_limit,
            overage: self.overage,
        }
    }
}

fn whole_org() -> Org {
    Org::new("etla", &["firefly-services", "cce-4"])
}

/// A profile, owned: its id, product, switch, limit and overage.
type Profile = (Id, Id, bool, Option<Operations>, Option<Overage>);

fn profile(name: &str, product: &str, shared_credits: bool) -> Profile {
    (id(name), id(product), shared_credits, None, None)
}

fn memberships(profiles: &[Profile]) -> Vec<Membership<'_>> {
    profiles
        .iter()
        .map(|(profile, product, shared_credits, pool_limit, overage)| Membership {
            profile,
            product,
            shared_credits: *shared_credits,
            pool_limit: *pool_limit,
            overage: *overage,
        })
        .collect()
}

/// `yes`, or what is missing by first letters.
fn cell(org: &Org, profiles: &[Profile]) -> String {
    match access(&org.terms(), &memberships(profiles), None) {
        Ok(_) => "yes".to_owned(),
        Err(missing) => {
            missing.iter().map(|missing| format!("{missing:?}").remove(0)).collect::<String>()
        }
    }
}

#[test]
fn d12_d14_every_combination_of_contract_products_and_memberships() {
    let off = || profile("o", "firefly-services", false);
    let on = || profile("o", "firefly-services", true);
    let base = || profile("b", "cce-4", false);
    let other = || profile("x", "photoshop", true);
    let columns = [
        vec![],
        vec![off()],
        vec![on()],
        vec![base()],
        vec![off(), base()],
        vec![on(), base()],
        vec![other()],
        vec![base(), other(), on()],
        // The switch of one profile does not count for another.
        vec![off(), other(), base()],
        // One profile of each kind is enough.
        vec![
            off(),
            profile("p", "firefly-creative-production", true),
            profile("q", "cce-4-stock", false),
        ],
    ];
    let table = "
        etla   firefly-services,cce-4                    OB OB B  O  O  yes OB yes O yes
        etla   firefly-creative-production,cce-4-stock   OB OB B  O  O  yes OB yes O yes
        etla   firefly-services,cce-4,photoshop          OB OB B  O  O  yes OB yes O yes
        etla   firefly-services,firefly-services         EOB EOB EB EO EO E EOB E EO E
        etla   cce-4,cce-4-stock                         EOB EOB EB EO EO E EOB E EO E
        etla   photoshop                                 EOB EOB EB EO EO E EOB E EO E
        etla   -                                         EOB EOB EB EO EO E EOB E EO E
        vip    firefly-services,cce-4                    EOB EOB EB EO EO E EOB E EO E
        ETLA   firefly-services,cce-4                    EOB EOB EB EO EO E EOB E EO E
        vip    firefly-services                          EOB EOB EB EO EO E EOB E EO E
        vip    cce-4                                     EOB EOB EB EO EO E EOB E EO E
        vip    -                                         EOB EOB EB EO EO E EOB E EO E";
    let mut wrong = String::new();
    for line in table.trim().lines() {
        let cells: Vec<&'static str> = line.split_whitespace().collect();
        let products: Vec<&str> = cells[1].split(',').filter(|product| *product != "-").collect();
        let org = Org::new(cells[0], &products);
        let got: Vec<String> = columns.iter().map(|profiles| cell(&org, profiles)).collect();
        if got != cells[2..] {
            wrong += &format!("{line}\n  got: {got:?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn d18_every_combination_of_an_eligible_org_and_a_keys_profile() {
    let cell = |org: &Org, profile: Option<Profile>| {
        let profiles: Vec<Profile> = profile.into_iter().collect();
        match principal_access(&org.terms(), memberships(&profiles).first(), None) {
            Ok(access) => format!("{} {}", access.profile, access.offer),
            Err(missing) => format!("{missing:?}"),
        }
    };
    let on = || Some(profile("o", "firefly-services", true));
    let off = || Some(profile("o", "firefly-services", false));
    let base = || Some(profile("b", "cce-4", true));
    let (eligible, other) = (whole_org(), Org::new("vip", &["firefly-services", "cce-4"]));
    // It has no seat: its own profile is never one of a base product as well.
    assert_eq!(cell(&eligible, on()), "o firefly-services");
    for profile in [None, off(), base()] {
        assert_eq!(cell(&eligible, profile.clone()), "[Offer]");
        assert_eq!(cell(&other, profile), "[Eligibility, Offer]");
    }
    assert_eq!(cell(&other, on()), "[Eligibility]");
}

#[test]
fn d12_which_products_count_is_configurable() {
    let mut org = Org::new("etla", &["painter", "basis"]);
    let profiles = [profile("p", "painter", true), profile("b", "basis", false)];
    assert_eq!(cell(&org, &profiles), "EOB");
    (org.offers, org.bases) = (ids(&["painter"]), ids(&["basis"]));
    assert_eq!(cell(&org, &profiles), "yes");
}

#[test]
fn d13_losing_either_membership_or_the_switch_ends_access() {
    let org = whole_org();
    let (on, base) = (profile("o", "firefly-services", true), profile("b", "cce-4", true));
    assert_eq!(cell(&org, &[on.clone(), base.clone()]), "yes");
    assert_eq!(cell(&org, std::slice::from_ref(&base)), "O");
    assert_eq!(cell(&org, std::slice::from_ref(&on)), "B");
    assert_eq!(cell(&org, &[(on.0, on.1, false, None, None), base]), "O");
}

#[test]
fn d17_the_granting_profile_is_the_most_generous_then_the_lowest_id() {
    let limited = |name: &str, limit: Option<u64>, on: bool| {
        (id(name), id("firefly-services"), on, limit.map(operations), None)
    };
    let base = profile("0-base", "cce-4", true);
    for (name, profiles, granting) in [
        ("the larger", vec![limited("a", Some(5), true), limited("b", Some(6), true)], "b"),
        ("none is unlimited", vec![limited("a", Some(6), true), limited("b", None, true)], "b"),
        (
            "even above the largest amount",
            vec![
                (id("a"), id("firefly-services"), true, Some(Operations::MAX), None),
                limited("b", None, true),
            ],
            "b",
        ),
        (
            "lowest id of equals",
            vec![
                limited("c", Some(5), true),
                limited("b", Some(5), true),
                limited("d", Some(5), true),
            ],
            "b",
        ),
        ("lowest id of unlimited", vec![limited("b", None, true), limited("a", None, true)], "a"),
        ("byte order", vec![limited("a", None, true), limited("B", None, true)], "B"),
        ("switched off", vec![limited("a", None, false), limited("b", Some(1), true)], "b"),
        ("zero is a limit", vec![limited("a", Some(0), true), limited("b", Some(1), true)], "b"),
    ] {
        for order in [profiles.clone(), profiles.into_iter().rev().collect()] {
            let all: Vec<Profile> = order.into_iter().chain([base.clone()]).collect();
            let access = access(&whole_org().terms(), &memberships(&all), None).unwrap();
            assert_eq!(access.profile.as_str(), granting, "{name}");
        }
    }
}

#[test]
fn d17_the_granting_profile_decides_limit_overage_and_offer() {
    let mut org = whole_org();
    org.overage = Overage::Bill;
    let profiles = [
        (id("a"), id("firefly-services"), true, Some(operations(5)), Some(Overage::Reject)),
        (
            id("b"),
            id("firefly-creative-production"),
            true,
            Some(operations(6)),
            Some(Overage::BillUpTo(operations(9))),
        ),
        profile("c", "cce-4", false),
    ];
    let access = access(&org.terms(), &memberships(&profiles), None).unwrap();
    let limit = Some(DrawLimit { limit: operations(6), decided_by: DecidedBy::Profile });
    assert_eq!(
        access,
        Access {
            profile: id("b"),
            offer: id("firefly-creative-production"),
            limit,
            overage: Overage::BillUpTo(operations(9)),
            profile_cap: true,
        }
    );
}

#[test]
fn d17_d18_the_users_or_keys_limit_overrides_the_profiles_and_that_the_orgs() {
    let own = |by| Some(DrawLimit { limit: operations(1), decided_by: by });
    for (own, profile_limit, org_limit, expected) in [
        (None, None, None, None),
        (None, None, Some(3), Some((3, DecidedBy::Org))),
        (None, Some(2), None, Some((2, DecidedBy::Profile))),
        (None, Some(2), Some(3), Some((2, DecidedBy::Profile))),
        (None, Some(9), Some(3), Some((9, DecidedBy::Profile))),
        (own(DecidedBy::User), Some(0), Some(0), Some((1, DecidedBy::User))),
        (own(DecidedBy::User), Some(9), None, Some((1, DecidedBy::User))),
        (own(DecidedBy::User), None, None, Some((1, DecidedBy::User))),
        (own(DecidedBy::Key), Some(2), Some(3), Some((1, DecidedBy::Key))),
        (own(DecidedBy::Key), None, Some(3), Some((1, DecidedBy::Key))),
    ] {
        let mut org = whole_org();
        org.pool_limit = org_limit.map(operations);
        let granting =
            [(id("a"), id("firefly-services"), true, profile_limit.map(operations), None)];
        let access = grant(&org.terms(), &memberships(&granting)[0], own);
        let limit = access.limit.map(|limit| (limit.limit.micro(), limit.decided_by));
        assert_eq!(limit, expected);
    }
}

#[test]
fn d26_the_default_is_reject() {
    assert_eq!(Overage::default(), Overage::Reject);
    assert_eq!(Overage::default().cap(), Operations::ZERO);
}

#[test]
fn d26_a_profile_may_be_stricter_than_its_org_never_looser() {
    use Overage::{Bill, BillUpTo, Reject};
    let (five, six) = (BillUpTo(operations(5)), BillUpTo(operations(6)));
    for (org_says, profile_says, expected, own_cap) in [
        (Reject, None, Reject, false),
        (Reject, Some(Reject), Reject, false),
        (Reject, Some(five), Reject, false),
        (Reject, Some(Bill), Reject, false),
        (five, None, five, false),
        (five, Some(Reject), Reject, false),
        (five, Some(five), five, false),
        (five, Some(six), five, false),
        (six, Some(five), five, true),
        (five, Some(Bill), five, false),
        (Bill, None, Bill, false),
        (Bill, Some(Reject), Reject, false),
        (Bill, Some(five), five, true),
        (Bill, Some(Bill), Bill, false),
        (Bill, Some(BillUpTo(Operations::ZERO)), BillUpTo(Operations::ZERO), false),
    ] {
        let mut org = whole_org();
        org.overage = org_says;
        let granting = [(id("a"), id("firefly-services"), true, None, profile_says)];
        let access = grant(&org.terms(), &memberships(&granting)[0], None);
        let got = (access.overage, access.profile_cap);
        assert_eq!(got, (expected, own_cap), "{org_says:?} {profile_says:?}");
    }
}

fn overages() -> impl Strategy<Value = Overage> {
    prop_oneof![
        Just(Overage::Reject),
        Just(Overage::Bill),
        (0u64..20).prop_map(|cap| Overage::BillUpTo(operations(cap))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn d26_no_profile_loosens_its_org(org_says in overages(), profile_says in proptest::option::of(overages())) {
        let mut org = whole_org();
        org.overage = org_says;
        let granting = [(id("a"), id("firefly-services"), true, None, profile_says)];
        let access = grant(&org.terms(), &memberships(&granting)[0], None);
        prop_assert!(access.overage.cap() <= org_says.cap());
        prop_assert!(profile_says.is_none_or(|own| access.overage.cap() <= own.cap()));
    }

    #[test]
    fn d17_the_order_of_memberships_does_not_matter(
        limits in proptest::collection::vec(proptest::option::of(0u64..4), 1..6), turn in 0usize..6,
    ) {
        let mut profiles: Vec<Profile> = limits.iter().enumerate()
            .map(|(at, limit)| (id(&format!("p{at}")), id("firefly-services"), true, limit.map(operations), None))
            .chain([profile("b", "cce-4", false)])
            .collect();
        let org = whole_org();
        let first = access(&org.terms(), &memberships(&profiles), None);
        let len = profiles.len();
        profiles.rotate_left(turn % len);
        prop_assert_eq!(access(&org.terms(), &memberships(&profiles), None), first);
    }
}
