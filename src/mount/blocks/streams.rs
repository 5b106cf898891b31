//! Which blocks the readers of one file will want next, guessed from what they have read.
//!
//! Readers are not told apart by their handles: under mmap the kernel reads for all of them, from many threads
//! and out of order. A stream is a place in the file that reads keep moving forward. It is trusted with a few
//! times as many bytes as it has proven, so that a random read costs one block and a sequential reader has
//! the whole window in flight after a few mebibytes, well before the first block is complete. A read that jumps
//! elsewhere halves the trust in the stream that moved last: it is likely the same reader, and it has left.

use std::ops::Range;
use std::time::{Duration, Instant};

/// Bytes read ahead for each byte read in sequence.
const TRUST: u64 = 4;

/// Complete blocks, without a gap, that may wait for a reader. More would only say that the network is faster than the
/// reader, and take memory whose first touch costs more than the copy into it. Behind a block that is late any number may
/// wait: then the network is what is slow.
pub(super) const READY_ENOUGH: usize = 4;

/// Streams remembered for one file: more than a loader's threads, few enough to search.
const MOST_STREAMS: usize = 32;

/// A stream that nobody has moved for so long claims no memory.
const IDLE: Duration = Duration::from_secs(30);

/// Whether enough of the blocks `ahead` of a reader, the nearest first, is there.
pub(super) fn enough_is_ready(ahead: impl Iterator<Item = Option<bool>>) -> bool {
    ahead.take_while(|&complete| complete == Some(true)).nth(READY_ENOUGH - 1).is_some()
}

/// The shape of the file that the streams run through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u64,
    /// Blocks that a stream may be ahead at most.
    pub(crate) window_blocks: u64,
}

impl Shape {
    /// How many blocks the file has.
    pub(crate) fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(self.block_bytes)
    }

    /// The bytes of block `index`.
    pub(crate) fn bytes_of(&self, index: u64) -> Range<u64> {
        let start = index * self.block_bytes;
        start..self.size_bytes.min(start + self.block_bytes)
    }
}

/// All streams of one file.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    /// Where the next read in sequence starts.
    next: u64,
    /// Bytes read in sequence so far.
    proven: u64,
    /// Bytes up to here will be read for certain.
    promised: u64,
    /// Blocks below have been asked for.
    asked: u64,
    /// Something failed: wait for a reader to try again.
    stalled: bool,
    last_read: Instant,
}

impl Stream {
    /// Blocks from the reader's position to the end of the window.
    fn window(&self, shape: &Shape) -> Range<u64> {
        let position = self.next / shape.block_bytes;
        let ahead = self.next.saturating_add(self.proven.saturating_mul(TRUST)).max(self.promised);
        let end = ahead.div_ceil(shape.block_bytes);
        position..end.min(position + shape.window_blocks).min(shape.blocks())
    }
}

impl Streams {
    /// Notes a read of `range`. `promised` is how far the reader is certain to go on, at least `range.end`.
    pub(crate) fn read(&mut self, range: &Range<u64>, promised: u64, shape: &Shape, now: Instant) {
        let near = shape.block_bytes / 2;
        let distance = |stream: &Stream| stream.next.abs_diff(range.start);
        let found = self.streams.iter_mut().filter(|stream| distance(stream) <= near).min_by_key(|s| distance(s));
        let first_block = range.start / shape.block_bytes;
        match found {
            Some(stream) => {
                // Only what is new counts: reading one place again and again proves nothing.
                stream.proven += range.end.saturating_sub(stream.next.max(range.start));
                stream.next = stream.next.max(range.end);
                stream.promised = stream.promised.max(promised);
                stream.stalled = false;
                stream.last_read = now;
                stream.asked = stream.asked.max(stream.next / shape.block_bytes);
            }
            None => {
                if let Some(left) = self.streams.iter_mut().max_by_key(|stream| stream.last_read) {
                    left.proven = left.proven.min(shape.window_blocks * shape.block_bytes / TRUST) / 2;
                }
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
                    promised,
                    asked: first_block,
                    stalled: false,
                    last_read: now,
                });
            }
        }
    }

    /// The block to ask for next and how many blocks ahead of its reader it is; the nearest of all streams.
    /// `complete` tells of blocks that need not be asked for whether all of their bytes are there.
    pub(crate) fn wanted(
        &mut self,
        shape: &Shape,
        complete: impl Fn(u64) -> Option<bool>,
        now: Instant,
    ) -> Option<(u64, u64)> {
        let mut nearest = None;
        for stream in self.streams.iter_mut().filter(|stream| !stream.stalled) {
            if now.duration_since(stream.last_read) > IDLE {
                continue;
            }
            let window = stream.window(shape);
            while stream.asked < window.end && (stream.asked < window.start || complete(stream.asked).is_some()) {
                stream.asked += 1;
            }
            if stream.asked < window.end && !enough_is_ready((window.start..stream.asked).map(&complete)) {
                let candidate = (stream.asked, stream.asked - window.start);
                if nearest.is_none_or(|(_, distance)| candidate.1 < distance) {
                    nearest = Some(candidate);
                }
            }
        }
        nearest
    }

    /// How many blocks ahead of a reader `block` is, for the nearest reader whose window holds it.
    pub(crate) fn distance(&self, block: u64, shape: &Shape, now: Instant) -> Option<u64> {
        let live = self.streams.iter().filter(|stream| now.duration_since(stream.last_read) <= IDLE);
        live.map(|stream| stream.window(shape)).filter(|w| w.contains(&block)).map(|w| block - w.start).min()
    }

    /// Reads ahead no further until a reader comes again.
    pub(crate) fn stall(&mut self) {
        self.streams.iter_mut().for_each(|stream| stream.stalled = true);
    }

    /// Nobody has the file open any more.
    pub(crate) fn clear(&mut self) {
        self.streams.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const SHAPE: Shape = Shape { size_bytes: 1000 * KIB, block_bytes: 8 * KIB, window_blocks: 16 };

    /// Everything that is asked for if it can all be had.
    fn asked(streams: &mut Streams, now: Instant) -> Vec<u64> {
        let mut asked = Vec::new();
        while let Some((block, _)) = streams.wanted(&SHAPE, |block| asked.contains(&block).then_some(false), now) {
            asked.push(block);
        }
        asked
    }

    #[test]
    fn a_sequence_earns_its_window() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        streams.read(&(0..KIB), KIB, &SHAPE, now);
        assert_eq!(asked(&mut streams, now), [0]);
        streams.read(&(KIB..4 * KIB), 4 * KIB, &SHAPE, now);
        assert_eq!(asked(&mut streams, now), [1, 2]);
        for chunk in 1..16 {
            streams.read(&(chunk * 4 * KIB..(chunk + 1) * 4 * KIB), 0, &SHAPE, now);
        }
        // At 64 KiB, in block 8: no further than 16 blocks ahead.
        assert_eq!(asked(&mut streams, now), (8..24).collect::<Vec<_>>());
    }

    #[test]
    fn enough_that_is_ready_is_enough() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        streams.read(&(0..64 * KIB), 0, &SHAPE, now);
        let wanted = |streams: &mut Streams, complete: u64, there: u64| {
            streams.wanted(&SHAPE, |block| (block < there).then_some(block < complete), now).map(|(block, _)| block)
        };
        // The reader is in block 8. What is on its way does not count, nor what lies behind.
        assert_eq!(wanted(&mut streams, 8, 22), Some(22));
        assert_eq!(wanted(&mut streams, 8 + READY_ENOUGH as u64 - 1, 22), Some(22));
        assert_eq!(wanted(&mut streams, 8 + READY_ENOUGH as u64, 22), None);
        // The first is late, the others are there: reading ahead goes on.
        let behind_a_late_one = |block| (block < 22).then_some(block != 8);
        assert_eq!(streams.wanted(&SHAPE, behind_a_late_one, now).map(|(block, _)| block), Some(22));
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
        assert!(streams.wanted(&SHAPE, |_| None, later).is_none());
    }

    #[test]
    fn after_a_failure_a_reader_must_come_again() {
        let (mut streams, now) = (Streams::default(), Instant::now());
        streams.read(&(0..8 * KIB), 0, &SHAPE, now);
        streams.stall();
        assert!(streams.wanted(&SHAPE, |_| None, now).is_none());
        streams.read(&(8 * KIB..9 * KIB), 0, &SHAPE, now);
        assert!(streams.wanted(&SHAPE, |_| None, now).is_some());
    }
}
