//! Slices of time whose number is bounded: where they are too many, each two become one of twice the length.

use flashjob_results::Slice;

/// Slices at most; between half of it and all of it once a region is long enough.
const MOST: usize = 512;

/// Length of a slice at first: shorter than most steps, for regions of a few steps.
const FIRST_SECONDS: f64 = 0.001;

/// Slices of a recording at most, as many as a plot can show.
const MOST_RECORDED: usize = 240;

/// Recorded slices that are worth having even where some of them are empty.
const FEWEST_RECORDED: usize = 24;

/// Share of the recorded slices that may be empty. Where slices are shorter than steps, a rate would jump between zero and
/// a multiple of what it was.
const MOST_EMPTY: f64 = 0.1;

/// Steps of a recorded slice on average: with fewer a rate would jump with the one step more or less that fell into the slice.
const FEWEST_STEPS: u64 = 4;

/// Sums over one slice of time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) output_tokens: u64,
    pub(crate) prefill_tokens: u64,
    pub(crate) decode_tokens: u64,
    pub(crate) finished_requests: u64,
    pub(crate) steps: u64,
    pub(crate) step_seconds: f64,
    /// Levels after each step, summed up.
    pub(crate) running: f64,
    pub(crate) waiting: f64,
    pub(crate) kv_blocks_used: f64,
    pub(crate) power_samples: u64,
    pub(crate) power_watts: f64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.output_tokens += other.output_tokens;
        self.prefill_tokens += other.prefill_tokens;
        self.decode_tokens += other.decode_tokens;
        self.finished_requests += other.finished_requests;
        self.steps += other.steps;
        self.step_seconds += other.step_seconds;
        self.running += other.running;
        self.waiting += other.waiting;
        self.kv_blocks_used += other.kv_blocks_used;
        self.power_samples += other.power_samples;
        self.power_watts += other.power_watts;
    }

    fn is_empty(&self) -> bool {
        self.output_tokens == 0 && self.prefill_tokens == 0
    }

    fn recorded(&self) -> Slice {
        let mean = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
        Slice {
            output_tokens: self.output_tokens,
            prefill_tokens: self.prefill_tokens,
            decode_tokens: self.decode_tokens,
            finished_requests: self.finished_requests,
            steps: self.steps,
            step_seconds: self.step_seconds,
            running: mean(self.running, self.steps),
            waiting: mean(self.waiting, self.steps),
            kv_blocks_used: mean(self.kv_blocks_used, self.steps),
            power_watts: mean(self.power_watts, self.power_samples),
        }
    }
}

/// All slices of a region.
#[derive(Clone, Debug)]
pub(crate) struct Slices {
    seconds: f64,
    sums: Vec<Sums>,
}

impl Default for Slices {
    fn default() -> Self {
        Self { seconds: FIRST_SECONDS, sums: Vec::with_capacity(MOST) }
    }
}

impl Slices {
    /// The slice of a moment, `at_seconds` after the beginning.
    pub(crate) fn at(&mut self, at_seconds: f64) -> &mut Sums {
        // Doubling keeps the cost of a fact constant on average: a region twice as long merges once more.
        while at_seconds / self.seconds >= MOST as f64 {
            self.halve();
        }
        let place = (at_seconds / self.seconds) as usize;
        if place >= self.sums.len() {
            self.sums.resize(place + 1, Sums::default());
        }
        &mut self.sums[place]
    }

    fn halve(&mut self) {
        self.seconds *= 2.0;
        self.sums = self
            .sums
            .chunks(2)
            .map(|pair| {
                // Sums and not means are merged, as means of unequal slices would lose their weights.
                let mut sum = pair[0];
                pair[1..].iter().for_each(|other| sum.add(other));
                sum
            })
            .collect();
    }

    /// Length of a slice, and slices, few enough for a plot and long enough for a rate.
    pub(crate) fn recorded(mut self) -> (f64, Vec<Slice>) {
        let too_short = |sums: &[Sums]| {
            let empty = sums.iter().filter(|sums| sums.is_empty()).count();
            let steps: u64 = sums.iter().map(|sums| sums.steps).sum();
            let few_steps = steps > 0 && steps < FEWEST_STEPS * sums.len() as u64;
            sums.len() > FEWEST_RECORDED && (few_steps || empty as f64 > MOST_EMPTY * sums.len() as f64)
        };
        while self.sums.len() > MOST_RECORDED || too_short(&self.sums) {
            self.halve();
        }
        (self.seconds, self.sums.iter().map(Sums::recorded).collect())
    }
}
