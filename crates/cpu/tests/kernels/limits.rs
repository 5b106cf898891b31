//! Measured limits.

use flashjob_cpu::measure_limits;

use super::pools;

#[test]
fn are_those_of_a_computer() {
    for pool in pools().iter().flatten() {
        let limits = measure_limits(pool, None).unwrap();
        assert!((1e7..1e16).contains(&limits.flops_per_second), "{limits:?}");
        assert!((1e7..1e14).contains(&limits.bytes_per_second), "{limits:?}");
    }
}

#[test]
fn are_not_measured_where_that_would_take_what_is_not_there() {
    measure_limits(&pools()[0][0], Some(1 << 20)).unwrap_err();
}
