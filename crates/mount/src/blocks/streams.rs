//! Readahead by detection of sequential streams, for one file.
//!
//! Readers are not told apart by their handles: under mmap the kernel reads for all of them, from many threads
//! and out of order. A stream is a position in the file that reads keep moving forward. Each byte read in sequence earns
//! several bytes of readahead: a random read costs one block, and a sequential reader has the whole window in flight after
//! a few mebibytes, well before the first block is complete. A jump halves the window of the stream that moved last, which
//! is most likely the reader that jumped, and what bytes of this file earn from then on. A read inside of a window is no
//! jump: a large copy out of a mapped file touches its last page first.

use std::cmp::Reverse;
use std::ops::{Range, RangeInclusive};
use std::time::{Duration, Instant};

use super::readahead::Readahead;

/// Bytes of readahead that each byte read in sequence earns: the upper bound for readers that read on to the end, and
/// the initial value; the lower bound for readers that jump. The kernel reads 4 MiB around the first byte of a mapped
/// file: those fill 16 connections.
const TRUST: RangeInclusive<u64> = 2..=32;
/// Blocks read in sequence after which a reader no longer counts as random.
const PROVEN_BLOCKS: u64 = 2;

/// Streams remembered for one file: more than a loader's threads, few enough to search linearly.
const MOST_STREAMS: usize = 32;

/// Idle time after which a stream claims no memory.
const IDLE: Duration = Duration::from_secs(30);

/// Size of a file and of its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u64,
    /// Largest readahead window of a stream, in blocks.
    pub(crate) window_blocks: u64,
}

impl Shape {
    /// Number of blocks of the file.
    pub(crate) fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(self.block_bytes)
    }

    /// Largest readahead window of a stream, in bytes.
    fn window_bytes(&self) -> u64 {
        self.window_blocks * self.block_bytes
    }

    /// Byte range of block `index`.
    pub(crate) fn bytes_of(&self, index: u64) -> Range<u64> {
        let start = index * self.block_bytes;
        start..self.size_bytes.min(start + self.block_bytes)
    }
}

/// All sequential streams of one file.
#[derive(Debug)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    /// Bytes of readahead that a byte read in sequence earns now, within [`TRUST`].
    trust: u64,
}

#[derive(Debug)]
struct Stream {
    /// Offset at which the next read in sequence starts.
    next: u64,
    /// Bytes read in sequence so far.
    proven: u64,
    /// Readahead earned, in bytes from `next` on.
    earned: u64,
    /// Offset up to which the reader has promised to read.
    promised: u64,
    /// Index of the first block that has not been asked for.
    asked: u64,
    /// Set by a failed fetch: readahead waits for the next read.
    stalled: bool,
    last_read: Instant,
}

impl Stream {
    /// Returns whether `new` bytes bring a reader that is known to be sequential into another block.
    fn crosses(&self, new: u64, shape: &Shape) -> bool {
        let blocks = |proven: u64| proven / shape.block_bytes;
        // `max` keeps the first blocks from counting: a random read that spans two blocks must not raise the trust.
        blocks(self.proven + new) > blocks(self.proven).max(PROVEN_BLOCKS - 1)
    }

    /// Blocks from the reader's position to the end of its readahead window.
    fn window(&self, shape: &Shape) -> Range<u64> {
        let position = self.next / shape.block_bytes;
        let ahead = self.next.saturating_add(self.earned).max(self.promised);
        let end = ahead.div_ceil(shape.block_bytes);
        position..end.min(position + shape.window_blocks).min(shape.blocks())
    }
}

impl Default for Streams {
    fn default() -> Self {
        Self { streams: Vec::new(), trust: *TRUST.end() }
    }
}

impl Streams {
    /// Records a read of `range`. `promised` is the offset up to which the reader will certainly read on, at least
    /// `range.end`.
    pub(crate) fn read(&mut self, range: &Range<u64>, promised: u64, shape: &Shape, now: Instant) {
        // Reads within half a block of a stream's position belong to it: the kernel splits and reorders readahead
        // requests.
        let near = shape.block_bytes / 2;
        let distance = |stream: &Stream| stream.next.abs_diff(range.start);
        let first_block = range.start / shape.block_bytes;
        // Among several streams the one that has earned most: the others began as reads ahead of it, and it has caught
        // up with them.
        let candidates = self.streams.iter_mut().filter(|stream| distance(stream) <= near);
        let found = candidates.max_by_key(|stream| (stream.earned, Reverse(distance(stream))));
        match found {
            Some(stream) => {
                // Only what is new counts: reading one place again and again proves nothing.
                let new = range.end.saturating_sub(stream.next.max(range.start));
                if stream.crosses(new, shape) {
                    self.trust = (self.trust * 2).min(*TRUST.end());
                }
                stream.proven += new;
                stream.earned = shape.window_bytes().min(stream.earned.saturating_add(new.saturating_mul(self.trust)));
                stream.next = stream.next.max(range.end);
                stream.promised = stream.promised.max(promised);
                stream.stalled = false;
                stream.last_read = now;
                // Blocks behind the reader need no readahead, even if the stream never asked for them.
                stream.asked = stream.asked.max(stream.next / shape.block_bytes);
            }
            None => {
                // A read inside of a window is a look ahead, no jump: the stream that owns the window is still alive.
                let looks_ahead = self.streams.iter().any(|stream| stream.window(shape).contains(&first_block));
                // The stream that moved last is most likely the reader that has just jumped.
                if let Some(left) = self.streams.iter_mut().max_by_key(|stream| stream.last_read)
                    && !looks_ahead
                {
                    left.earned /= 2;
                    self.trust = (self.trust / 2).max(*TRUST.start());
                }
                // At the limit the least recently used stream makes room.
                if self.streams.len() == MOST_STREAMS
                    && let Some(oldest) = (0..MOST_STREAMS).min_by_key(|&place| self.streams[place].last_read)
                {
                    self.streams.swap_remove(oldest);
                }
                // A read at the start of a file is the start of a sequence; elsewhere the second one proves it.
                let proven = if range.start == 0 { range.end } else { 0 };
                self.streams.push(Stream {
                    next: range.end,
                    proven,
                    earned: shape.window_bytes().min(proven.saturating_mul(self.trust)),
                    promised,
                    asked: first_block,
                    stalled: false,
                    last_read: now,
                });
            }
        }
    }

    /// The next block to ask for and its distance in blocks: the nearest over all streams for which `readahead` has not
    /// enough. `complete` returns `None` for a block that has not been asked for, else whether all of its bytes have
    /// arrived.
    pub(crate) fn wanted(
        &mut self,
        shape: &Shape,
        readahead: &mut Readahead,
        complete: impl Fn(u64) -> Option<bool>,
        now: Instant,
    ) -> Option<(u64, u64)> {
        // The nearest first, over all streams: bandwidth goes to the reader that will wait soonest.
        let mut nearest = None;
        for stream in self.streams.iter_mut().filter(|stream| !stream.stalled) {
            if now.duration_since(stream.last_read) > IDLE {
                continue;
            }
            let window = stream.window(shape);
            // Moves past blocks behind the reader, and past those that another stream or a read has asked for.
            while stream.asked < window.end && (stream.asked < window.start || complete(stream.asked).is_some()) {
                stream.asked += 1;
            }
            if stream.asked < window.end && !readahead.is_enough((window.start..stream.asked).map(&complete)) {
                let candidate = (stream.asked, stream.asked - window.start);
                if nearest.is_none_or(|(_, distance)| candidate.1 < distance) {
                    nearest = Some(candidate);
                }
            }
        }
        nearest
    }

    /// Distance of `block` from the nearest reader whose window holds it, in blocks.
    pub(crate) fn distance(&self, block: u64, shape: &Shape, now: Instant) -> Option<u64> {
        let live = self.streams.iter().filter(|stream| now.duration_since(stream.last_read) <= IDLE);
        live.map(|stream| stream.window(shape)).filter(|w| w.contains(&block)).map(|w| block - w.start).min()
    }

    /// Stops readahead until the next read.
    pub(crate) fn stall(&mut self) {
        self.streams.iter_mut().for_each(|stream| stream.stalled = true);
    }

    /// Forgets all streams, as the file was closed.
    pub(crate) fn clear(&mut self) {
        self.streams.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const SHAPE: Shape = Shape { size_bytes: 1000 * KIB, block_bytes: 8 * KIB, window_blocks: 16 };

    /// All blocks that are asked for if there is room for every one.
    fn asked(streams: &mut Streams, now: Instant) -> Vec<u64> {
        let mut asked = Vec::new();
        while let Some(block) = wanted(streams, |block| asked.contains(&block).then_some(false), now) {
            asked.push(block);
        }
        asked
    }

    fn wanted(streams: &mut Streams, complete: impl Fn(u64) -> Option<bool>, now: Instant) -> Option<u64> {
        streams.wanted(&SHAPE, &mut Readahead::new(32), complete, now).map(|(block, _)| block)
    }

    #[test]
    fn a_sequence_earns_its_window() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        streams.read(&(0..KIB), KIB, &SHAPE, now);
        assert_eq!(asked(&mut streams, now), [0, 1, 2, 3, 4]);
        streams.read(&(KIB..2 * KIB), 2 * KIB, &SHAPE, now);
        assert_eq!(asked(&mut streams, now), [5, 6, 7, 8]);
        for chunk in 1..16 {
            streams.read(&(chunk * 4 * KIB..(chunk + 1) * 4 * KIB), 0, &SHAPE, now);
        }
        // At 64 KiB, in block 8, which was asked for already: no further than 16 blocks ahead.
        assert_eq!(asked(&mut streams, now), (9..24).collect::<Vec<_>>());
    }

    #[test]
    fn enough_that_is_ready_is_enough() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        streams.read(&(0..64 * KIB), 0, &SHAPE, now);
        // The reader is in block 8. What is on its way does not count, nor what lies behind.
        for (complete, next) in [(8, Some(22)), (11, Some(22)), (12, None)] {
            let there = |block| (block < 22).then_some(block < complete);
            assert_eq!(wanted(&mut streams, there, now), next, "complete below {complete}");
        }
    }

    #[test]
    fn a_random_read_wants_its_own_block_only() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        for place in [500, 100, 900, 300] {
            streams.read(&(place * KIB..(place + 4) * KIB), 0, &SHAPE, now);
        }
        assert!(asked(&mut streams, now).is_empty());
        // Reading the same place again proves nothing either.
        for _ in 0..100 {
            streams.read(&(500 * KIB..504 * KIB), 0, &SHAPE, now);
        }
        assert!(asked(&mut streams, now).is_empty());
    }

    #[test]
    fn a_reader_that_jumps_away_shrinks_what_it_left() {
        let (mut streams, start) = (Streams::default(), Instant::now());
        for chunk in 0..16 {
            streams.read(&(chunk * 4 * KIB..(chunk + 1) * 4 * KIB), 0, &SHAPE, start);
        }
        // Of the sequence alone: jumps go further.
        let ahead =
            |streams: &Streams| (0..60).filter(|&block| streams.distance(block, &SHAPE, start).is_some()).count();
        assert_eq!(ahead(&streams), 16);
        let mut widths = Vec::new();
        for jump in 0..4 {
            // Each jump comes right after a step of the sequence.
            let step = start + Duration::from_millis(2 * jump + 1);
            streams.read(&(64 * KIB..64 * KIB), 0, &SHAPE, step);
            let place = (900 - 100 * jump) * KIB;
            streams.read(&(place..place + KIB), 0, &SHAPE, step + Duration::from_millis(1));
            widths.push(ahead(&streams));
        }
        assert_eq!(widths, [8, 4, 2, 1]);
    }

    #[test]
    fn a_file_whose_readers_jump_about_earns_less_until_one_reads_on() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        let mut earned = |start: u64, end: u64| {
            streams.read(&(start * KIB..end * KIB), 0, &SHAPE, now);
            streams.streams.last().unwrap().earned / KIB
        };
        // The first read elsewhere proves nothing, the second earns.
        assert_eq!([earned(0, 1), earned(100, 101), earned(101, 102)], [32, 0, 16]);
        assert_eq!([earned(200, 201), earned(201, 202), earned(300, 301), earned(301, 302)], [0, 8, 0, 4]);
        assert_eq!([earned(400, 401), earned(401, 402)], [0, 2]);
        // Two blocks in sequence, and another one after each doubling.
        assert_eq!([earned(402, 416), earned(416, 418), earned(418, 419)], [30, 38, 42]);
    }

    #[test]
    fn a_look_ahead_costs_nothing_and_is_passed() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        let mut read = |start: u64, end: u64| {
            streams.read(&(start * KIB..end * KIB), 0, &SHAPE, now);
            streams.distance(12, &SHAPE, now)
        };
        // At the end of 32 KiB that are copied, then from their start on, and past the end.
        assert_eq!([read(0, 2), read(31, 33), read(2, 16), read(16, 31)], [None, None, Some(10), Some(9)]);
        assert_eq!([read(33, 40), read(63, 65), read(40, 63)], [Some(7), Some(7), Some(5)]);
    }

    #[test]
    fn out_of_order_reads_stay_one_stream() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        for (start, end) in [(400, 402), (404, 406), (402, 404), (408, 410), (406, 408)] {
            streams.read(&(start * KIB..end * KIB), 0, &SHAPE, now);
        }
        assert_eq!(streams.streams.len(), 1);
        assert!(asked(&mut streams, now).contains(&52));
    }

    #[test]
    fn a_promise_is_asked_for_at_once_and_the_nearest_stream_comes_first() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        streams.read(&(800 * KIB..801 * KIB), 824 * KIB, &SHAPE, now);
        streams.read(&(80 * KIB..81 * KIB), 96 * KIB, &SHAPE, now);
        assert_eq!(asked(&mut streams, now), [100, 10, 101, 11, 102]);
        assert_eq!(streams.distance(102, &SHAPE, now), Some(2));
        assert_eq!(streams.distance(103, &SHAPE, now), None);
    }

    #[test]
    fn the_end_of_the_file_and_idleness_end_a_window() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        streams.read(&(990 * KIB..1000 * KIB), 2000 * KIB, &SHAPE, now);
        assert!(asked(&mut streams, now).is_empty());
        streams.read(&(0..8 * KIB), 0, &SHAPE, now);
        assert!(streams.distance(3, &SHAPE, now).is_some());
        let later = now + IDLE + Duration::from_secs(1);
        assert!(streams.distance(3, &SHAPE, later).is_none());
        assert!(wanted(&mut streams, |_| None, later).is_none());
    }

    #[test]
    fn after_a_failure_a_reader_must_come_again() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        streams.read(&(0..8 * KIB), 0, &SHAPE, now);
        streams.stall();
        assert!(wanted(&mut streams, |_| None, now).is_none());
        streams.read(&(8 * KIB..9 * KIB), 0, &SHAPE, now);
        assert!(wanted(&mut streams, |_| None, now).is_some());
    }
}
