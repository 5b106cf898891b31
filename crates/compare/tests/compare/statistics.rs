//! p-values beside those of scipy (`stats.ttest_ind(equal_var=False)`).

use flashjob_compare::welch_p_value;

/// Two samples of a textbook, whose variances differ.
const ONE: [f64; 15] = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4];
const OTHER: [f64; 15] = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.5, 24.0];

fn near(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-9, "{found} is not {expected}");
}

#[test]
fn p_values_are_those_of_welch_s_test() {
    let short: (&[f64], &[f64]) = (&[100.0, 101.0, 99.5], &[104.0, 103.2, 104.9, 103.7]);
    for (one, other, expected) in [
        (&ONE[..], &OTHER[..], 0.008551778311418774),
        (short.0, short.1, 0.002092682357287782),
        (&[100.0, 101.0], &[100.2, 101.9], 0.644378365545318),
    ] {
        near(welch_p_value(one, other).unwrap(), expected);
        near(welch_p_value(other, one).unwrap(), expected);
    }
}

#[test]
fn samples_without_spread_differ_for_certain_or_not_at_all() {
    assert_eq!(welch_p_value(&[2.0, 2.0], &[2.0, 2.0, 2.0]), Some(1.0));
    assert_eq!(welch_p_value(&[2.0, 2.0], &[3.0, 3.0]), Some(0.0));
    // One without and one with spread is an ordinary test.
    assert!(welch_p_value(&[2.0, 2.0], &[1.0, 3.0]).is_some_and(|p| (p - 1.0).abs() < 1e-12));
}

#[test]
fn one_value_has_no_test() {
    assert_eq!(welch_p_value(&[1.0], &[1.0, 2.0]), None);
    assert_eq!(welch_p_value(&[1.0, 2.0], &[]), None);
}
