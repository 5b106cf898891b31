//! Waiting requests in the order in which engines take them: that of the input, prompts that begin alike together (the depth-first
//! order of SGLang's RadixAttention: Zheng et al., 2023), or the longest first (LPT: Graham, 1969).
//!
//! Only what waits at the moment is put into order, so that whoever limits how much waits limits how far a request is overtaken. It
//! knows neither who makes requests nor what engines hold or have cached.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use flashjob_config::Schedule;

use super::request::Request;

/// Hashes of the full blocks of a prompt, each of all tokens up to the end of its block. Two prompts whose hashes collide would be
/// taken one after the other without need, and nothing else.
type BlockHashes = Arc<[u64]>;

/// Number of a request, in the order of arrival.
type Arrival = u64;

/// A request, as far as its place in an order depends on it.
pub trait Orderable {
    /// Token ids of its prompt.
    fn prompt(&self) -> &[u32];

    /// Tokens that it may generate.
    fn max_tokens(&self) -> usize;
}

impl Orderable for Request {
    fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

/// Requests that wait.
#[derive(Debug)]
pub struct WaitingRequests<R> {
    order: Waiting<R>,
    arrived: Arrival,
}

#[derive(Debug)]
enum Waiting<R> {
    Input(VecDeque<R>),
    Longest(BTreeMap<(Reverse<usize>, Arrival), R>),
    Prefix(ByPrefix<R>),
}

/// Requests by the beginnings of their prompts.
#[derive(Debug)]
struct ByPrefix<R> {
    block_size: usize,
    /// Requests with a common prefix are neighbours.
    requests: BTreeMap<(BlockHashes, Arrival), R>,
    arrivals: BTreeMap<Arrival, BlockHashes>,
    /// The prompt that each engine took last: its cache has that one's blocks.
    last: Vec<Option<(BlockHashes, Arrival)>>,
}

impl<R: Orderable> WaitingRequests<R> {
    /// None yet. `block_size` is the number of tokens of which equal beginnings are found again.
    pub fn new(schedule: Schedule, block_size: usize) -> Self {
        let order = match schedule {
            Schedule::Input => Waiting::Input(VecDeque::new()),
            Schedule::Longest => Waiting::Longest(BTreeMap::new()),
            Schedule::Prefix => Waiting::Prefix(ByPrefix {
                block_size: block_size.max(1),
                requests: BTreeMap::new(),
                arrivals: BTreeMap::new(),
                last: Vec::new(),
            }),
        };
        Self { order, arrived: 0 }
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        match &self.order {
            Waiting::Input(requests) => requests.len(),
            Waiting::Longest(requests) => requests.len(),
            Waiting::Prefix(by_prefix) => by_prefix.requests.len(),
        }
    }

    /// Returns whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in any order.
    pub fn iter(&self) -> Box<dyn Iterator<Item = &R> + '_> {
        match &self.order {
            Waiting::Input(requests) => Box::new(requests.iter()),
            Waiting::Longest(requests) => Box::new(requests.values()),
            Waiting::Prefix(by_prefix) => Box::new(by_prefix.requests.values()),
        }
    }

    /// Adds a request.
    pub fn push(&mut self, request: R) {
        let arrival = self.arrived;
        self.arrived += 1;
        match &mut self.order {
            Waiting::Input(requests) => requests.push_back(request),
            Waiting::Longest(requests) => {
                // Tokens and not time: a prompt is computed many tokens at a time, but its blocks are held as long.
                let tokens = request.prompt().len().saturating_add(request.max_tokens());
                requests.insert((Reverse(tokens), arrival), request);
            }
            Waiting::Prefix(by_prefix) => by_prefix.push(arrival, request),
        }
    }

    /// Takes the next request for `engine`, a number from 0.
    pub fn pop(&mut self, engine: usize) -> Option<R> {
        match &mut self.order {
            Waiting::Input(requests) => requests.pop_front(),
            Waiting::Longest(requests) => requests.pop_first().map(|(_, request)| request),
            Waiting::Prefix(by_prefix) => by_prefix.pop(engine),
        }
    }
}

impl<R: Orderable> ByPrefix<R> {
    fn push(&mut self, arrival: Arrival, request: R) {
        let hashes = block_hashes(request.prompt(), self.block_size);
        self.arrivals.insert(arrival, hashes.clone());
        self.requests.insert((hashes, arrival), request);
    }

    /// The one that has most in common with what `engine` took last; the oldest one where none has anything. So all that share a
    /// prefix are taken before others are, and groups come in the order of their first requests.
    fn pop(&mut self, engine: usize) -> Option<R> {
        let last = self.last.get(engine).cloned().flatten();
        let alike = last.and_then(|last| self.most_alike(&last));
        let key =
            alike.or_else(|| self.arrivals.first_key_value().map(|(&arrival, hashes)| (hashes.clone(), arrival)))?;
        // Both maps have each request, under its hashes and its arrival.
        self.arrivals.remove(&key.1);
        let request = self.requests.remove(&key);
        if self.last.len() <= engine {
            self.last.resize(engine + 1, None);
        }
        self.last[engine] = Some(key);
        request
    }

    /// The neighbour in lexical order with the longer common prefix: none further away has more in common.
    fn most_alike(&self, last: &(BlockHashes, Arrival)) -> Option<(BlockHashes, Arrival)> {
        let mut behind = self.requests.range((Bound::Excluded(last), Bound::Unbounded));
        let before = self.requests.range((Bound::Unbounded, Bound::Excluded(last))).next_back();
        let in_common = |key: &(BlockHashes, Arrival)| {
            last.0.iter().zip(key.0.iter()).take_while(|(one, other)| one == other).count()
        };
        let neighbours = before.into_iter().chain(behind.next()).map(|(key, _)| key);
        // Of two that are equally alike the one behind, which is the last maximum.
        neighbours.filter(|key| in_common(key) > 0).max_by_key(|key| in_common(key)).cloned()
    }
}

/// Without a random seed, so that the same requests have the same order in each run.
fn block_hashes(prompt: &[u32], block_size: usize) -> BlockHashes {
    let mut hasher = DefaultHasher::new();
    let block = |tokens: &[u32]| {
        tokens.hash(&mut hasher);
        hasher.finish()
    };
    prompt.chunks_exact(block_size).map(block).collect()
}

#[cfg(test)]
mod tests;
