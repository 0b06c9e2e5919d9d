//! D19 to D23, D41 and f57: which rate applies, and that its price is exact.

use proptest::prelude::*;

use super::*;
use crate::core::amount::MICRO;

fn card(text: &str) -> Result<RateCard, RateCardError> {
    let head = "version = \"2026-11\"\noperations_per_credit = \"0.02\"\n";
    RateCard::new(toml::from_str(&format!("{head}{text}")).unwrap())
}

fn rate(feature: &str, rest: &str) -> String {
    format!("[[rate]]\nfeature = \"{feature}\"\n{rest}\n")
}

fn one(quantity: u64) -> [Measure<'static>; 1] {
    [Measure { meter: None, quantity }]
}

fn meters<'a>(quantities: &[(&'a str, u64)]) -> Vec<Measure<'a>> {
    quantities.iter().map(|&(meter, quantity)| Measure { meter: Some(meter), quantity }).collect()
}

/// Cost and Operations in millionths, or the refusal's code.
fn ask(
    card: &RateCard,
    attributes: &Attributes<'_>,
    measures: &[Measure<'_>],
) -> Result<(u64, u64), &'static str> {
    let quote = card.quote("image", attributes, measures);
    // What is kept with a charge prices it as the card does (D23).
    if let Ok(rates) = card.rates("image", attributes, measures) {
        let quantities: Vec<u64> = measures.iter().map(|measure| measure.quantity).collect();
        assert_eq!(rates.price(&quantities), quote.as_ref().ok().map(|quote| quote.price));
    }
    quote
        .map(|quote| (quote.price.cost.micro(), quote.price.operations.micro()))
        .map_err(|refusal| refusal.code.as_str())
}

const PRICED_BY_SIZE_AND_MODEL: &str = r#"
[[rate]]
feature = "image"
credits = "1"
[[rate]]
feature = "image"
when = { size = "2k" }
credits = "2"
[[rate]]
feature = "image"
when = { model = "pro" }
credits = "3"
[[rate]]
feature = "image"
when = { size = "2k", model = "pro" }
credits = "7"
[[rate]]
feature = "image"
when = { size = "4k" }
credits = "5"
[[rate]]
feature = "image"
when = { size = "4k", model = "pro" }
credits = "11"
"#;

#[test]
fn d19_the_most_specific_rate_wins() {
    let card = card(PRICED_BY_SIZE_AND_MODEL).unwrap();
    for (attributes, credits) in [
        (&[][..], 1),
        (&[("size", "1k")], 1),
        (&[("size", "2k")], 2),
        (&[("model", "pro")], 3),
        (&[("model", "pro"), ("size", "1k")], 3),
        (&[("model", "pro"), ("size", "2k")], 7),
        (&[("size", "2k"), ("model", "lite"), ("style", "any")], 2),
        (&[("size", "4k"), ("style", "any"), ("model", "pro")], 11),
    ] {
        let asked = ask(&card, attributes, &one(MICRO));
        assert_eq!(asked, Ok((credits * MICRO, credits * MICRO / 50)), "{attributes:?}");
    }
}

#[test]
fn d19_equally_specific_rates_are_an_error_at_load_unless_a_third_decides() {
    let image = |when: &str| rate("image", &format!("credits = \"1\"\nwhen = {{ {when} }}"));
    let (size, model) = (image("size = \"2k\""), image("model = \"pro\""));
    let (both, other) = (image("size = \"2k\", model = \"pro\""), image("size = \"4k\""));
    let wide = image("size = \"2k\", model = \"pro\", style = \"oil\"");
    let feature: Id = "image".parse().unwrap();
    for (name, rates, expected) in [
        ("one rate", vec![&size], None),
        ("different values never meet", vec![&size, &other], None),
        ("two that meet", vec![&size, &model], Some((0, 1))),
        ("the same twice", vec![&other, &size, &size], Some((1, 2))),
        ("two that meet, decided by a third", vec![&size, &model, &both], None),
        ("the third may come first", vec![&both, &model, &size], None),
        ("a third that asks for more decides too little", vec![&size, &model, &wide], Some((0, 1))),
        ("the third itself twice", vec![&both, &both], Some((0, 1))),
    ] {
        let text: String = rates.into_iter().map(String::as_str).collect();
        let error = card(&text).err();
        let expected = expected.map(|(a, b)| RateCardError::Ambiguous(a, b, feature.clone()));
        assert_eq!(error, expected, "{name}");
    }
    let features = rate("image", "credits = \"1\"") + &rate("video", "credits = \"1\"");
    assert!(card(&features).is_ok(), "two features never meet");
}

#[test]
fn d19_a_rate_with_no_price_is_an_error_at_load() {
    let image = |rest: &str| card(&rate("image", rest)).err();
    let id: Id = "image".parse().unwrap();
    assert_eq!(image(""), Some(RateCardError::NoCredits(0, id.clone())));
    assert_eq!(image("credits = \"0\""), Some(RateCardError::NoCredits(0, id.clone())));
    assert_eq!(
        image("credits = \"1\"\noperations = \"0\""),
        Some(RateCardError::NoOperations(0, id.clone()))
    );
    assert_eq!(image("credits = \"1\"\noperations = \"0\"\npool = false"), None);
    assert_eq!(
        image("tier = \"standard\"\ncredits = \"1\""),
        Some(RateCardError::PricedStandard(0, id.clone()))
    );
    assert_eq!(image("tier = \"standard\""), None);
}

#[test]
fn d19_one_request_has_one_tier_but_a_feature_may_have_both() {
    let line = |meter: &str, rest: &str| rate("image", &format!("meter = \"{meter}\"\n{rest}"));
    let premium = "credits = \"1\"";
    let mini = "when = { model = \"mini\" }\ntier = \"standard\"";
    assert_eq!(
        card(&(line("input", premium) + &line("output", "tier = \"standard\""))).err(),
        Some(RateCardError::MixedTiers(0, 1, "image".parse().unwrap()))
    );
    assert!(matches!(
        card(&(line("input", premium) + &line("output", premium) + &line("output", mini))).err(),
        Some(RateCardError::MixedTiers(0, 2, _))
    ));
    // Every meter of the small model is standard, so no request meets both tiers.
    let card = card(
        &(line("input", premium)
            + &line("output", premium)
            + &line("input", mini)
            + &line("output", mini)),
    )
    .unwrap();
    let measures = meters(&[("input", MICRO), ("output", MICRO)]);
    for (model, tier, cost) in [("mini", Tier::Standard, 0), ("big", Tier::Premium, 2 * MICRO)] {
        let quote = card.quote("image", &[("model", model)], &measures).unwrap();
        assert_eq!((quote.tier, quote.price.cost.micro()), (tier, cost), "{model}");
    }
}

#[test]
fn d19_seat_only_where_one_meter_says_so() {
    let line = |meter: &str, pool: bool| {
        rate("image", &format!("meter = \"{meter}\"\ncredits = \"1\"\npool = {pool}"))
    };
    let card = card(&(line("a", true) + &line("b", false))).unwrap();
    let pool = |measures: &[Measure<'_>]| card.quote("image", &[], measures).unwrap().pool;
    assert!(pool(&meters(&[("a", 1)])));
    assert!(!pool(&meters(&[("b", 1)])));
    assert!(!pool(&meters(&[("a", 1), ("b", 1)])));
}

#[test]
fn d19_a_card_that_is_shown_is_the_card_that_was_written() {
    for pool in [true, false] {
        let rest = format!("credits = \"1\"\npool = {pool}");
        let card = card(&rate("f", &rest)).unwrap();
        let shown = serde_json::to_value(card.file()).unwrap();
        // What is usual is not said.
        assert_eq!(shown["rate"][0].get("pool").is_none(), pool);
        assert_eq!(serde_json::from_value::<RateCardFile>(shown).unwrap(), *card.file());
    }
}

#[test]
fn d20_operations_by_the_cards_ratio_or_their_own_price() {
    let mut text = rate("image", "credits = \"7\"");
    for (size, operations) in [("540p", "0.4"), ("720p", "1"), ("1080p", "2")] {
        let rest = format!(
            "when = {{ size = \"{size}\" }}\ncredits = \"100\"\noperations = \"{operations}\""
        );
        text += &rate("image", &rest);
    }
    let card = card(&text).unwrap();
    for (size, seconds, cost, operations) in [
        ("any", MICRO, 7 * MICRO, 140_000),
        ("540p", 5 * MICRO, 500 * MICRO, 2 * MICRO),
        ("540p", MICRO, 100 * MICRO, 400_000),
        ("720p", MICRO, 100 * MICRO, MICRO),
        ("1080p", MICRO, 100 * MICRO, 2 * MICRO),
        ("1080p", 1_500_000, 150 * MICRO, 3 * MICRO),
    ] {
        assert_eq!(ask(&card, &[("size", size)], &one(seconds)), Ok((cost, operations)), "{size}");
    }
}

#[test]
fn d20_operations_come_from_the_exact_cost_not_from_the_rounded_one() {
    // A third of a micro-credit rounds up to one; at 2 Operations a credit it is ⌈2/3⌉ = 1
    // micro-Operation, and not 2.
    let file = "version = \"v\"\noperations_per_credit = \"2\"\n".to_owned()
        + &rate("image", "credits = \"1/3\"");
    let card = RateCard::new(toml::from_str(&file).unwrap()).unwrap();
    assert_eq!(ask(&card, &[], &one(1)), Ok((1, 1)));
    assert_eq!(ask(&card, &[], &one(3)), Ok((1, 2)));
    assert_eq!(ask(&card, &[], &one(4)), Ok((2, 3)));
}

#[test]
fn d22_what_has_no_rate_is_refused() {
    let card = card(&rate("image", "when = { size = \"2k\" }\ncredits = \"1\"")).unwrap();
    assert_eq!(ask(&card, &[], &one(MICRO)), Err("unpriced"));
    assert_eq!(ask(&card, &[("size", "4k")], &one(MICRO)), Err("unpriced"));
    assert_eq!(ask(&card, &[("size", "2K")], &one(MICRO)), Err("unpriced"));
    let refused = card.quote("video", &[("size", "2k")], &one(0)).unwrap_err();
    assert_eq!(refused.code, Code::Unpriced, "also at quantity zero");
    assert_eq!(ask(&card, &[("size", "2k")], &meters(&[("output", 1)])), Err("unpriced"));
    assert_eq!(ask(&card, &[("size", "2k")], &[]), Err("unpriced"), "nothing measured");
    assert!(refused.detail.contains("2026-11") && refused.detail.contains("size=2k"));
}

#[test]
fn d22_one_meter_without_a_rate_refuses_the_whole() {
    let card = card(&rate("image", "meter = \"input\"\ncredits = \"1\"")).unwrap();
    assert_eq!(ask(&card, &[], &meters(&[("input", 1)])), Ok((1, 1)));
    assert_eq!(ask(&card, &[], &meters(&[("input", 1), ("output", 1)])), Err("unpriced"));
    assert_eq!(ask(&card, &[], &one(1)), Err("unpriced"));
}

#[test]
fn d23_a_quote_names_the_version() {
    let card = card(&rate("image", "credits = \"1\"")).unwrap();
    assert_eq!(card.quote("image", &[], &one(1)).unwrap().rate_card.as_str(), "2026-11");
    assert_eq!(card.file().version.as_str(), "2026-11");
}

#[test]
fn d41_the_sum_of_meters_rounds_once() {
    let line = |meter: &str, credits: &str| {
        rate("image", &format!("meter = \"{meter}\"\ncredits = \"{credits}\""))
    };
    let card = card(&(line("a", "1/3") + &line("b", "1/3") + &line("c", "1/3"))).unwrap();
    // Three thirds of a micro-credit are one; rounded each by itself they would be three.
    let thirds = meters(&[("a", 1), ("b", 1), ("c", 1)]);
    assert_eq!(ask(&card, &[], &thirds), Ok((1, 1)));
    assert_eq!(ask(&card, &[], &meters(&[("a", 1), ("b", 1), ("c", 2)])), Ok((2, 1)));
    assert_eq!(ask(&card, &[], &meters(&[("a", 0), ("b", 0), ("c", 0)])), Ok((0, 0)));
}

#[test]
fn f57_a_cost_beyond_the_bound_is_unquotable() {
    let card = |credits: &str| card(&rate("image", &format!("credits = \"{credits}\""))).unwrap();
    assert_eq!(ask(&card("1"), &[], &one(MAX_MICRO)).map(|price| price.0), Ok(MAX_MICRO));
    assert_eq!(ask(&card("1.000001"), &[], &one(MAX_MICRO)), Err("unquotable"));
    assert_eq!(ask(&card("9007199254.740991"), &[], &one(MAX_MICRO)), Err("unquotable"));
    let doubled = super::tests::card(
        &(rate("image", "meter = \"a\"\ncredits = \"1\"")
            + &rate("image", "meter = \"b\"\ncredits = \"1\"")),
    )
    .unwrap();
    let measures = |b| meters(&[("a", MAX_MICRO - 5), ("b", b)]);
    assert_eq!(ask(&doubled, &[], &measures(5)).map(|price| price.0), Ok(MAX_MICRO));
    assert_eq!(ask(&doubled, &[], &measures(6)), Err("unquotable"));
    // The Operations may be what is too much.
    let dear = rate("image", "credits = \"1\"\noperations = \"1.000001\"");
    assert_eq!(ask(&super::tests::card(&dear).unwrap(), &[], &one(MAX_MICRO)), Err("unquotable"));
}

/// Numerator and denominator.
type Parts = (u64, u64);

/// A card with one rate for each of the meters m0, m1, …: credits and own Operations.
fn metered(ratio: Parts, rates: &[(Parts, Option<Parts>)]) -> RateCard {
    let ratio_of = |(a, b): Parts| Ratio::new(a, b).unwrap();
    let rates = rates.iter().enumerate().map(|(index, (credits, operations))| Rate {
        feature: "image".parse().unwrap(),
        meter: Some(format!("m{index}").parse().unwrap()),
        when: BTreeMap::new(),
        unit: None,
        credits: Some(ratio_of(*credits)),
        operations: operations.map(ratio_of),
        tier: Tier::Premium,
        pool: true,
    });
    RateCard::new(RateCardFile {
        version: "v".parse().unwrap(),
        offer: None,
        effective: None,
        operations_per_credit: ratio_of(ratio),
        rates: rates.collect(),
    })
    .unwrap()
}

fn any_ratio() -> impl Strategy<Value = (u64, u64)> {
    let part = || prop_oneof![1u64..1_000, 1..=MAX_MICRO];
    (part(), part())
}

fn small_ratio() -> impl Strategy<Value = (u64, u64)> {
    (1u64..1_000, 1u64..100)
}

fn names() -> [String; 3] {
    [0, 1, 2].map(|index| format!("m{index}"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn d21_a_price_rounds_up_once_on_the_exact_sum(
        ratio in small_ratio(),
        rates in proptest::collection::vec((small_ratio(), proptest::option::of(small_ratio())), 1..4),
        quantities in proptest::collection::vec(prop_oneof![0u64..50, 0u64..1 << 34], 3),
    ) {
        let card = metered(ratio, &rates);
        let names = names();
        let measures: Vec<Measure<'_>> = names.iter().zip(&quantities).take(rates.len())
            .map(|(name, &quantity)| Measure { meter: Some(name), quantity }).collect();
        // Over one common denominator, so that nothing is reduced and nothing rounds but the sum.
        let (mut cost, mut operations, mut common) = (0u128, 0u128, 1u128);
        for (((n, d), own), &quantity) in rates.iter().zip(&quantities) {
            let (n, d) = (u128::from(*n), u128::from(*d));
            let (on, od) = own.map_or(
                (n * u128::from(ratio.0), d * u128::from(ratio.1)),
                |(n, d)| (u128::from(n), u128::from(d)),
            );
            let quantity = u128::from(quantity);
            cost = cost * d * od + quantity * n * od * common;
            operations = operations * d * od + quantity * on * d * common;
            common *= d * od;
        }
        let up = |sum: u128| sum / common + u128::from(!sum.is_multiple_of(common));
        let exact = (up(cost), up(operations));
        let fits = exact.0.max(exact.1) <= u128::from(MAX_MICRO);
        let asked = ask(&card, &[], &measures)
            .map(|(cost, operations)| (u128::from(cost), u128::from(operations)));
        prop_assert_eq!(asked, if fits { Ok(exact) } else { Err("unquotable") });
    }

    #[test]
    fn d21_the_short_way_of_one_meter_is_exact(
        ratio in any_ratio(), credits in any_ratio(), own in proptest::option::of(any_ratio()),
        quantity in prop_oneof![0u64..1_000, 0..=MAX_MICRO],
    ) {
        let card = metered(ratio, &[(credits, own), ((1, 1), None)]);
        // A second meter of nothing costs nothing, and takes the long way.
        let short = ask(&card, &[], &meters(&[("m0", quantity)]));
        let long = ask(&card, &[], &meters(&[("m0", quantity), ("m1", 0)]));
        prop_assert_eq!(short, long);
    }

    #[test]
    fn d21_a_whole_number_of_units_is_not_rounded(units in 0u64..1_000, credits in 1u64..1_000) {
        let card = metered((1, 50), &[((credits, 1_000), None)]);
        let asked = ask(&card, &[], &meters(&[("m0", units * MICRO)]));
        prop_assert_eq!(asked, Ok((units * credits * 1_000, units * credits * 20)));
    }
}
