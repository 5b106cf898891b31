//! Records of a run that are not on disk yet.
//!
//! Adding never waits. When disk and network stand still for long, live points are thinned to every second one of
//! each metric; the newest point, params and tags are never lost.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::record::Record;

/// Records that are kept before live points are thinned: a few megabytes.
const CAPACITY: usize = 20_000;

#[derive(Debug)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Inner {
    records: Vec<Record>,
    // Moves up where thinning cannot help, see `push`.
    thin_at: usize,
    not_finite: u64,
}

impl Default for Queue {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl Queue {
    fn with_capacity(capacity: usize) -> Self {
        Self { inner: Mutex::new(Inner { thin_at: capacity, ..Inner::default() }), capacity }
    }

    pub(super) fn push(&self, record: Record) {
        let mut inner = self.inner.lock();
        inner.records.push(record);
        if inner.records.len() > inner.thin_at {
            thin(&mut inner.records);
            // If thinning does not help, trying at each push would only cost time.
            inner.thin_at = self.capacity.max(inner.records.len() + self.capacity / 2);
        }
    }

    pub(super) fn count_not_finite(&self) {
        self.inner.lock().not_finite += 1;
    }

    /// Number of live values that were dropped as not finite.
    pub(super) fn not_finite(&self) -> u64 {
        self.inner.lock().not_finite
    }

    /// Passes all records to `keep`, in order. If `keep` fails, they stay queued.
    pub(super) fn drain<E>(&self, keep: impl FnOnce(&[Record]) -> Result<(), E>) -> Result<(), E> {
        // Taken out of the lock: `keep` writes to a disk, and pushes must not wait for it.
        let taken = std::mem::take(&mut self.inner.lock().records);
        if taken.is_empty() {
            return Ok(());
        }
        let kept = keep(&taken);
        let mut inner = self.inner.lock();
        if kept.is_err() {
            // Records that came meanwhile stay behind the older ones.
            let newer = std::mem::replace(&mut inner.records, taken);
            inner.records.extend(newer);
        } else {
            inner.thin_at = self.capacity;
        }
        kept
    }
}

/// Keeps every second point of each metric, counted back from the newest, and all other records.
fn thin(records: &mut Vec<Record>) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut keep: Vec<bool> = records
        .iter()
        // From the newest backwards, so that the newest of each metric always stays.
        .rev()
        .map(|record| match record {
            Record::Metric { metric, .. } => {
                let count = seen.entry(metric.clone()).or_default();
                *count += 1;
                *count % 2 == 1
            }
            _ => true,
        })
        .collect();
    records.retain(|_| keep.pop().unwrap_or(true));
}

#[cfg(test)]
mod tests {
    use super::super::record::Finite;
    use super::*;

    fn point(metric: &str, step: u64) -> Record {
        Record::Metric { metric: metric.to_owned(), value: Finite::new(1.0).unwrap(), step, timestamp_ms: 0 }
    }

    fn drained(queue: &Queue) -> Vec<Record> {
        let mut all = Vec::new();
        let taken = queue.drain(|records| {
            all.extend_from_slice(records);
            Ok::<_, ()>(())
        });
        taken.unwrap();
        all
    }

    #[test]
    fn a_full_queue_thins_points_and_nothing_else() {
        let queue = Queue::with_capacity(100);
        let tag = Record::Tag { tag: "t".to_owned(), value: "v".to_owned() };
        queue.push(tag.clone());
        queue.push(point("once", 0));
        for step in 0..10_000 {
            queue.push(point("often", step));
        }
        let kept = drained(&queue);
        assert!((50..=202).contains(&kept.len()), "{}", kept.len());
        assert!(kept.contains(&tag) && kept.contains(&point("once", 0)));
        assert_eq!(kept.last(), Some(&point("often", 9_999)));
        let steps: Vec<u64> = kept
            .iter()
            .filter_map(|record| match record {
                Record::Metric { metric, step, .. } if metric == "often" => Some(*step),
                _ => None,
            })
            .collect();
        assert!(steps.is_sorted(), "{steps:?}");
        assert!(drained(&queue).is_empty());
    }

    #[test]
    fn what_cannot_be_kept_stays_in_order() {
        let queue = Queue::default();
        queue.push(point("m", 0));
        let refused = queue.drain(|records| {
            assert_eq!(records, [point("m", 0)]);
            queue.push(point("m", 1));
            Err("disk full")
        });
        assert_eq!(refused, Err("disk full"));
        assert_eq!(drained(&queue), [point("m", 0), point("m", 1)]);
    }
}
