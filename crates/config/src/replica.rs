//! Share of this process in a job: all of it, or one of several replicas that share its prompts.

use std::num::NonZeroUsize;
use std::ops::Range;

/// Position of this process among the replicas of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Share of the prompts.
    pub share: Share,
    /// UID of the job, by which replicas and repeated attempts find each other in MLflow.
    pub job_uid: Option<String>,
}

/// One of `count` equal parts of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    index: usize,
    count: NonZeroUsize,
}

impl Share {
    /// The whole list.
    pub const ALL: Self = Self { index: 0, count: NonZeroUsize::MIN };

    /// The part at `index`, from 0; `None` if `index` is too large.
    pub fn new(index: usize, count: NonZeroUsize) -> Option<Self> {
        (index < count.get()).then_some(Self { index, count })
    }

    /// Index of the part.
    pub fn index(self) -> usize {
        self.index
    }

    /// Number of parts.
    pub fn count(self) -> usize {
        self.count.get()
    }

    /// Range of this part in a list of `total` entries. The parts are disjoint and complete; their lengths differ by
    /// one at most.
    pub fn of(self, total: usize) -> Range<usize> {
        // In 128 bits, so that the product cannot overflow.
        let cut = |index: usize| (index as u128 * total as u128 / self.count.get() as u128) as usize;
        cut(self.index)..cut(self.index + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_are_everything_once_and_even(total in 0_usize..5_000, count in 1_usize..70) {
            let count = NonZeroUsize::new(count).unwrap();
            let shares: Vec<Range<usize>> =
                (0..count.get()).map(|index| Share::new(index, count).unwrap().of(total)).collect();
            let all: Vec<usize> = shares.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..total).collect::<Vec<_>>());
            let lengths = || shares.iter().map(Range::len);
            prop_assert!(lengths().max().unwrap() - lengths().min().unwrap() <= 1);
        }
    }

    #[test]
    fn there_is_no_share_beyond_the_count_and_no_list_too_long() {
        assert_eq!(Share::new(3, NonZeroUsize::new(3).unwrap()), None);
        let last = Share::new(2, NonZeroUsize::new(3).unwrap()).unwrap();
        assert_eq!(last.of(usize::MAX).end, usize::MAX);
    }
}
