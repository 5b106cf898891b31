//! Tokens in each second of the wall clock, by which replicas on several machines can be compared.
//!
//! Whole seconds are counted and nothing is interpolated. Comparing them takes machines whose clocks agree, as NTP sees to.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Tokens of one region by the second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenClock {
    /// When the region began, in seconds since 1970.
    pub started_unix_seconds: f64,
    /// Tokens in each second since 1970, from the second in which the region began.
    pub output_tokens_by_second: Vec<u64>,
}

impl TokenClock {
    /// The clock of a region that begins now.
    pub fn starting(now: SystemTime) -> Self {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { started_unix_seconds: since.as_secs_f64(), output_tokens_by_second: Vec::new() }
    }

    /// The clock of several regions, one after the other: seconds between them have no tokens.
    pub fn together<'a>(mut regions: impl Iterator<Item = &'a Self>) -> Self {
        let mut sum = regions.next().cloned().unwrap_or_default();
        for region in regions {
            for (second, tokens) in (region.first_second()..).zip(&region.output_tokens_by_second) {
                let place = usize::try_from(second.saturating_sub(sum.first_second())).unwrap_or(0);
                if place >= sum.output_tokens_by_second.len() {
                    sum.output_tokens_by_second.resize(place + 1, 0);
                }
                sum.output_tokens_by_second[place] += tokens;
            }
        }
        sum
    }

    /// The second in which the region began.
    pub fn first_second(&self) -> u64 {
        self.started_unix_seconds as u64
    }

    /// Counts a token that came `seconds` after the beginning.
    pub fn tick(&mut self, seconds: f64) {
        let place = (self.started_unix_seconds + seconds) as u64 - self.first_second();
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        // Seconds without a token are kept as zeros: replicas are compared second by second.
        if place >= self.output_tokens_by_second.len() {
            self.output_tokens_by_second.resize(place + 1, 0);
        }
        self.output_tokens_by_second[place] += 1;
    }

    /// Tokens in the seconds from `from` up to `to`, without `to`.
    pub fn tokens_between(&self, from: u64, to: u64) -> u64 {
        let seconds = (self.first_second()..).zip(&self.output_tokens_by_second);
        seconds.filter(|(second, _)| (from..to).contains(second)).map(|(_, tokens)| tokens).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn regions_follow_each_other_on_one_clock() {
        let clock = |started, tokens: &[u64]| TokenClock {
            started_unix_seconds: started,
            output_tokens_by_second: tokens.to_vec(),
        };
        let (first, second) = (clock(100.5, &[1, 2]), clock(101.9, &[4, 0, 8]));
        assert_eq!(TokenClock::together([&first, &second].into_iter()), clock(100.5, &[1, 6, 0, 8]));
        assert_eq!(
            TokenClock::together([&clock(100.0, &[1]), &clock(103.0, &[1])].into_iter()),
            clock(100.0, &[1, 0, 0, 1])
        );
    }

    #[test]
    fn tokens_are_counted_in_the_second_in_which_they_came() {
        let mut clock = TokenClock::starting(SystemTime::UNIX_EPOCH + Duration::from_millis(100_750));
        for seconds in [0.0, 0.2, 0.3, 1.2, 1.3, 4.0] {
            clock.tick(seconds);
        }
        assert_eq!(clock.output_tokens_by_second, [2, 2, 1, 0, 1]);
        for (from, to, tokens) in [(0, 1_000, 6), (101, 102, 2), (101, 104, 3), (103, 104, 0), (104, 104, 0)] {
            assert_eq!(clock.tokens_between(from, to), tokens, "{from} to {to}");
        }
    }
}
