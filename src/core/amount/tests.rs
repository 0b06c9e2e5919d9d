//! Amounts as texts, their bounds, and ratios that are exact.

use super::*;

#[test]
fn amounts_print_without_trailing_zeros_and_parse_back() {
    for (micro, text) in [
        (0, "0"),
        (1, "0.000001"),
        (10, "0.00001"),
        (1_400_000, "1.4"),
        (100_000_000, "100"),
        (MAX_MICRO, "9007199254.740991"),
    ] {
        assert_eq!(Text::new(micro).as_str(), text);
        assert_eq!(parse_micro(text), Ok(micro));
    }
    assert_eq!(parse_micro("1.50"), Ok(1_500_000));
}

#[test]
fn what_is_not_an_amount_is_refused() {
    for text in
        ["", ".", "1.", ".5", "01", "00", "-1", "+1", "1e3", "1.0000001", " 1", "1 ", "NaN", "١"]
    {
        assert_eq!(parse_micro(text), Err(AmountError::Syntax), "{text:?}");
    }
    for text in ["9007199254.740992", "99999999999999999999", "18446744073709551616"] {
        assert_eq!(parse_micro(text), Err(AmountError::TooLarge), "{text:?}");
    }
}

#[test]
fn f57_an_amount_that_would_wrap_to_a_small_one_is_too_large() {
    for text in ["18446744073709.551616", "18446744073709.999999", "9007199255.000000"] {
        assert_eq!(parse_micro(text), Err(AmountError::TooLarge), "{text:?}");
    }
}

#[test]
fn ratios_are_exact_and_in_lowest_terms() {
    assert_eq!("0.2".parse::<Ratio>(), "1/5".parse());
    assert_eq!("1/3".parse::<Ratio>().unwrap().to_string(), "1/3");
    assert_eq!("50/100".parse::<Ratio>().unwrap().to_string(), "0.5");
    assert_eq!("5000000000.5".parse::<Ratio>().unwrap().to_string(), "5000000000.5");
    // As a decimal it would be beyond what an amount can be, and not be read back.
    assert_eq!("10000000000/1".parse::<Ratio>().unwrap().to_string(), "10000000000/1");
    assert_eq!("1/0".parse::<Ratio>(), Err(AmountError::ZeroDenominator));
    assert_eq!("-1/2".parse::<Ratio>(), Err(AmountError::Syntax));
}

#[test]
fn fractions_sum_exactly() {
    let third = Fraction::integer(1).times("1/3".parse().unwrap()).unwrap();
    let sum = third.plus(third).unwrap().plus(third).unwrap();
    assert_eq!(sum.ceil(), Some(1));
    assert_eq!(third.ceil(), Some(1));
    assert_eq!(Fraction::ZERO.ceil(), Some(0));
}

#[test]
fn f57_an_amount_ends_at_its_bound() {
    assert_eq!(Credits::from_micro(MAX_MICRO), Some(Credits::MAX));
    assert_eq!(Operations::from_micro(MAX_MICRO + 1), None);
    assert!(Credits::ZERO.is_zero() && !Credits::MAX.is_zero());
    assert_eq!(serde_json::to_string(&Credits::MAX).unwrap(), "\"9007199254.740991\"");
    assert!(serde_json::from_str::<Credits>("\"9007199254.740992\"").is_err());
}

#[test]
fn f57_both_parts_of_a_ratio_end_at_the_bound() {
    assert_eq!(Ratio::new(MAX_MICRO, MAX_MICRO), Ratio::new(1, 1));
    assert_eq!(Ratio::new(MAX_MICRO + 1, 1), Err(AmountError::TooLarge));
    assert_eq!(Ratio::new(1, MAX_MICRO + 1), Err(AmountError::TooLarge));
    assert!(Ratio::ZERO.is_zero() && !Ratio::new(1, MAX_MICRO).unwrap().is_zero());
}

#[test]
fn ratios_are_texts_in_documents() {
    for text in ["0.2", "1/3", "0"] {
        let ratio: Ratio = text.parse().unwrap();
        let json = serde_json::to_string(&ratio).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Ratio>(&json).unwrap(), ratio);
    }
    for text in ["/2", "1/", "+1/2", "1/2/3", "1/99999999999999999999"] {
        assert!(text.parse::<Ratio>().is_err(), "{text}");
    }
}
