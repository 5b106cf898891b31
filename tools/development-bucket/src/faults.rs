//! Faults on demand: what can go wrong between a client and Object Storage, switched on by JSON.
//!
//! `{"kind": "status", "status": 429, "retry_after": "1", "count": 3, "operation": "get", "name_contains": ".bin"}`.
//! Several faults may hit one request; of two that refuse it, the first one added wins.

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::requests::Operation;

/// Kinds of faults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// Nothing is answered for a while: time to first byte.
    Latency { seconds: f64 },
    /// Bodies come slowly, each on its connection.
    Bandwidth { bytes_per_second: f64 },
    /// All bodies together come slowly: one wire for all connections.
    SharedBandwidth { bytes_per_second: f64 },
    /// The request is refused.
    Status { status: u16, code: Option<String>, message: Option<String>, retry_after: Option<String> },
    /// The connection is reset once this much of the body was sent.
    Reset { after_bytes: u64 },
    /// The connection is closed in good order, but too early.
    ShortBody { after_bytes: u64 },
    /// The body stops coming; the connection stays open.
    Stall { after_bytes: u64 },
    /// The request is done, but the connection is reset instead of an answer.
    LostAnswer,
    /// The range sent is not the one asked for, and says so.
    WrongContentRange,
    /// `Content-Length` and body are one byte short of what `Content-Range` says.
    WrongLength,
    /// The whole object is sent, whatever range was asked for.
    IgnoredRange,
    /// The object is another version: If-Match fails, or is ignored and another ETag is sent.
    ChangedEtag {
        #[serde(default)]
        ignores_if_match: bool,
    },
    /// The answer has another MD5 than the body that was sent.
    WrongMd5,
    /// A page of a listing is cut in the middle of its JSON.
    HalfListing,
    /// `nextStartWith` leads back to the page's own first name.
    CircularListing,
}

/// When it goes wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    #[serde(flatten)]
    pub kind: Kind,
    /// Number of requests that it affects; by default all.
    pub count: Option<u64>,
    /// Number of matching requests that pass before.
    #[serde(default)]
    pub after: u64,
    /// Share of matching requests that it affects; by default all.
    pub probability: Option<f64>,
    /// Only requests for names with this in them (the prefix of a listing counts as its name).
    pub name_contains: Option<String>,
    /// Only this operation.
    pub operation: Option<Operation>,
}

/// The faults that are switched on.
pub struct Faults(Mutex<State>);

struct State {
    faults: Vec<Fault>,
    random: StdRng,
}

impl Default for Faults {
    fn default() -> Self {
        // A fixed seed: a test that fails can be repeated.
        Self(Mutex::new(State { faults: Vec::new(), random: StdRng::seed_from_u64(0) }))
    }
}

impl Faults {
    pub fn add(&self, faults: Vec<Fault>) {
        self.state().faults.extend(faults);
    }

    pub fn clear(&self) {
        *self.state() = State { faults: Vec::new(), random: StdRng::seed_from_u64(0) };
    }

    pub fn list(&self) -> Vec<Fault> {
        self.state().faults.clone()
    }

    /// Faults of this request. Exhausted faults are removed.
    pub fn draw(&self, operation: Operation, name: &str) -> Vec<Kind> {
        let State { faults, random } = &mut *self.state();
        let mut drawn = Vec::new();
        for fault in faults.iter_mut() {
            // Faults count only requests that they concern, so that tests can aim at the third part of an upload.
            let concerned = fault.operation.is_none_or(|wanted| wanted == operation)
                && fault.name_contains.as_deref().is_none_or(|part| name.contains(part));
            if !concerned || fault.count == Some(0) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.probability.is_none_or(|share| random.random_bool(share.clamp(0.0, 1.0))) {
                fault.count = fault.count.map(|count| count - 1);
                drawn.push(fault.kind.clone());
            }
        }
        // Kept until exhausted: tests list the faults that are left.
        faults.retain(|fault| fault.count != Some(0));
        drawn
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Faults {
        let faults = Faults::default();
        faults.add(serde_json::from_str(json).unwrap());
        faults
    }

    #[test]
    fn a_fault_hits_as_often_and_as_late_as_asked() {
        let faults = faults(r#"[{"kind": "lost_answer", "after": 2, "count": 2}]"#);
        let hits: Vec<_> = (0..6).map(|_| faults.draw(Operation::Get, "a").len()).collect();
        assert_eq!(hits, [0, 0, 1, 1, 0, 0]);
        assert!(faults.list().is_empty());
    }

    #[test]
    fn a_fault_hits_only_what_it_is_meant_for() {
        let faults = faults(r#"[{"kind": "lost_answer", "operation": "get", "name_contains": ".bin"}]"#);
        for (operation, name, hits) in
            [(Operation::Get, "a.bin", 1), (Operation::Head, "a.bin", 0), (Operation::Get, "a.txt", 0)]
        {
            assert_eq!(faults.draw(operation, name).len(), hits);
        }
    }

    #[test]
    fn a_share_is_a_share() {
        let faults = faults(r#"[{"kind": "lost_answer", "probability": 0.25}]"#);
        let hits: usize = (0..4000).map(|_| faults.draw(Operation::Get, "a").len()).sum();
        assert!((800..1200).contains(&hits), "{hits}");
    }
}
