//! Objects in memory that arrive in pieces, late, or not at all, as a test says.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use flashjob_bucket::Object;
use flashjob_mount::source::{BlockSource, Reading};
use flashjob_mount::{Fault, FaultKind};
use tokio::sync::Semaphore;

/// Scripted behaviour of one read.
#[derive(Clone, Copy, Debug)]
pub enum Behaviour {
    Serve,
    /// Serves so many bytes and then fails.
    FailAfter(usize, FaultKind),
    /// Says that all is well after so many bytes.
    StopAfter(usize),
    /// Gives so many bytes more than it was asked for.
    Overshoot(usize),
    Panic,
    /// Serves so many bytes, then waits for a permit of the gate before the rest.
    WaitAfter(usize),
}

type Script = dyn FnMut(&str, &Range<u64>) -> Behaviour + Send;

pub struct ScriptedSource {
    contents: HashMap<String, Arc<Vec<u8>>>,
    script: Mutex<Box<Script>>,
    /// Length of the pieces in which bytes arrive.
    pub piece_bytes: usize,
    /// Before the first byte.
    pub latency: Duration,
    /// Permits that `WaitAfter` waits for.
    pub gate: Semaphore,
    /// Number of throttling answers to report.
    pub throttled: AtomicU64,
    /// Every read so far.
    reads: Mutex<Vec<(String, Range<u64>)>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

/// A byte for each place, the same in every run, different in neighbouring blocks and objects.
pub fn content(seed: u64, len: usize) -> Vec<u8> {
    let mix = |place: u64| place.wrapping_add(seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let words = (0..len.div_ceil(8) as u64).flat_map(|place| (mix(place) ^ (mix(place) >> 29)).to_le_bytes());
    words.take(len).collect()
}

impl ScriptedSource {
    /// Serves `files`; their listing comes with it.
    pub fn new<N: Into<String>>(files: impl IntoIterator<Item = (N, Vec<u8>)>) -> (Self, Vec<Object>) {
        let contents: HashMap<String, Arc<Vec<u8>>> =
            files.into_iter().map(|(name, bytes)| (name.into(), Arc::new(bytes))).collect();
        let mut objects: Vec<Object> = contents.iter().map(|(name, bytes)| object(name, bytes.len() as u64)).collect();
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        let source = Self {
            contents,
            script: Mutex::new(Box::new(|_, _| Behaviour::Serve)),
            piece_bytes: 64 << 10,
            latency: Duration::ZERO,
            gate: Semaphore::new(0),
            throttled: AtomicU64::new(0),
            reads: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        };
        (source, objects)
    }

    pub fn behave(&self, script: impl FnMut(&str, &Range<u64>) -> Behaviour + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub fn reads(&self) -> Vec<(String, Range<u64>)> {
        self.reads.lock().unwrap().clone()
    }

    pub fn most_under_way(&self) -> usize {
        self.most_under_way.load(Ordering::SeqCst)
    }
}

/// The listed object. Its time has a fraction of a second, as the service's have.
pub fn object(name: &str, size_bytes: u64) -> Object {
    Object {
        name: name.to_owned(),
        size_bytes,
        etag: Some(format!("etag-{name}")),
        modified: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123_u64.wrapping_add(size_bytes))),
        md5: None,
    }
}

impl BlockSource for ScriptedSource {
    fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::SeqCst)
    }

    fn read<'a>(
        &'a self,
        object: &'a Object,
        range: Range<u64>,
        sink: &'a mut (dyn FnMut(&[u8]) + Send + 'a),
    ) -> Reading<'a> {
        let behaviour = self.script.lock().unwrap()(&object.name, &range);
        self.reads.lock().unwrap().push((object.name.clone(), range.clone()));
        let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
        Box::pin(async move {
            if !self.latency.is_zero() {
                tokio::time::sleep(self.latency).await;
            }
            let bytes = self.contents[&object.name][range.start as usize..range.end as usize].to_vec();
            let stop = match behaviour {
                Behaviour::FailAfter(count, _) | Behaviour::StopAfter(count) | Behaviour::WaitAfter(count) => count,
                Behaviour::Panic => panic!("the source panics, as the test says"),
                Behaviour::Serve | Behaviour::Overshoot(_) => bytes.len(),
            };
            let (now, later) = bytes.split_at(stop.min(bytes.len()));
            for piece in now.chunks(self.piece_bytes) {
                sink(piece);
                tokio::task::yield_now().await;
            }
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            match behaviour {
                Behaviour::FailAfter(_, kind) => return Err(Fault::new(kind, "the test says so")),
                Behaviour::Overshoot(count) => sink(&vec![0; count]),
                Behaviour::WaitAfter(_) => {
                    self.gate.acquire().await.expect("the gate is never closed").forget();
                    later.chunks(self.piece_bytes).for_each(sink);
                }
                _ => {}
            }
            Ok(())
        })
    }
}
