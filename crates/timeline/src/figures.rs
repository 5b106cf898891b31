//! Plots of a recording, the same in the report and on the live page.

use flashjob_charts::{Axis, Figure, Line, LineChart, Roof, RooflineChart, StepGroup, StepPoint, Unit};
use flashjob_results::{RecordedTimeline, Slice, StepKind};

/// Plots of all that was recorded: throughput, requests, KV cache, power and the roofline, as far as the backend reports them.
pub fn figures(recorded: &RecordedTimeline) -> Vec<Figure> {
    let plots = Plots(recorded);
    let all = [plots.throughput(), plots.requests(), plots.kv_cache(), plots.power(), plots.roofline()];
    all.into_iter().flatten().collect()
}

/// Each method is one plot.
struct Plots<'a>(&'a RecordedTimeline);

impl Plots<'_> {
    fn throughput(&self) -> Option<Figure> {
        let rate = |tokens: fn(&Slice) -> u64| self.rates(tokens);
        let mut lines = vec![Line { name: "output tokens".to_owned(), points: rate(|slice| slice.output_tokens) }];
        // A backend that does not report its steps has none, and a line of zeros would say that it computed none.
        if self.0.slices.iter().any(|slice| slice.prefill_tokens > 0) {
            lines.push(Line { name: "prompt tokens".to_owned(), points: rate(|slice| slice.prefill_tokens) });
        }
        let tokens: u64 = self.0.slices.iter().map(|slice| slice.output_tokens).sum();
        let mean = if self.0.elapsed_seconds > 0.0 { tokens as f64 / self.0.elapsed_seconds } else { 0.0 };
        self.over_time(
            "throughput",
            "Throughput over time",
            format!(
                "Tokens per second in slices of {}; {} output tokens in all, {} on average.",
                Unit::Time.text(self.0.slice_seconds),
                Unit::Count("").text(tokens as f64),
                Unit::Count("tokens/s").text(mean)
            ),
            Axis::new("tokens", Unit::Count("tokens/s")),
            lines,
        )
    }

    fn requests(&self) -> Option<Figure> {
        let (running, waiting) = (self.levels(|slice| slice.running), self.levels(|slice| slice.waiting));
        let most = running.iter().map(|point| point.1).fold(0.0, f64::max);
        let lines = [("running", running), ("waiting", waiting)];
        self.over_time(
            "requests",
            "Requests running and waiting",
            format!("Means over the steps of each slice; at most {} run at once.", Unit::Count("").text(most)),
            Axis::new("requests", Unit::Count("")),
            lines.map(|(name, points)| Line { name: name.to_owned(), points }).to_vec(),
        )
    }

    fn kv_cache(&self) -> Option<Figure> {
        let blocks = self.0.kv_blocks.filter(|blocks| *blocks > 0)? as f64;
        let used: Vec<(f64, f64)> =
            self.levels(|slice| slice.kv_blocks_used).into_iter().map(|(at, used)| (at, used / blocks)).collect();
        let most = used.iter().map(|point| point.1).fold(0.0, f64::max);
        self.over_time(
            "kv-cache",
            "KV cache in use",
            format!("Share of {} blocks; {} at most.", Unit::Count("").text(blocks), Unit::Share.text(most)),
            Axis::new("share of blocks", Unit::Share),
            vec![Line { name: "in use".to_owned(), points: used }],
        )
    }

    fn power(&self) -> Option<Figure> {
        let power = self.levels(|slice| slice.power_watts);
        let most = power.iter().map(|point| point.1).fold(0.0, f64::max);
        self.over_time(
            "power",
            "Power of the GPUs",
            format!("All GPUs of the job together, sampled; {} at most.", Unit::Symbol("W").text(most)),
            Axis::new("power", Unit::Symbol("W")),
            vec![Line { name: "power".to_owned(), points: power }],
        )
    }

    fn roofline(&self) -> Option<Figure> {
        let roof = self.0.limits.map(|limits| Roof {
            flops_per_second: limits.flops_per_second,
            bytes_per_second: limits.bytes_per_second,
        });
        let kinds = [("prefill", StepKind::Prefill), ("mixed", StepKind::Mixed), ("decode", StepKind::Decode)];
        let groups = kinds.map(|(name, kind)| {
            let steps = self.0.steps.iter().filter(|steps| steps.kind == kind);
            let points = steps.map(|alike| StepPoint {
                steps: alike.steps,
                flops: alike.flops,
                bytes: alike.bytes,
                seconds: alike.seconds,
            });
            StepGroup { name, points: points.collect() }
        });
        let limit = match roof {
            Some(roof) => format!(
                "The line is the limit that was measured on this machine: {} and {}.",
                Unit::Symbol("FLOP/s").text(roof.flops_per_second),
                Unit::Symbol("B/s").text(roof.bytes_per_second)
            ),
            None => "The limits of this machine were not measured, so that there is no line.".to_owned(),
        };
        let description = format!(
            "Steps of the run by operations per byte and operations per second; a point stands for steps that are alike, and is \
             larger the more time they took. {limit}"
        );
        RooflineChart { id: "roofline", title: "Roofline", description, roof, groups: groups.to_vec() }.figure()
    }

    fn over_time(
        &self,
        id: &'static str,
        title: &'static str,
        description: String,
        y: Axis,
        lines: Vec<Line>,
    ) -> Option<Figure> {
        LineChart { id, title, description, x: Axis::new("time", Unit::Time), y, lines }.figure()
    }

    /// Amounts per second at the middle of each slice.
    fn rates(&self, amount: fn(&Slice) -> u64) -> Vec<(f64, f64)> {
        self.0
            .slices
            .iter()
            .enumerate()
            .filter_map(|(place, slice)| {
                let begin = place as f64 * self.0.slice_seconds;
                let seconds = (self.0.elapsed_seconds - begin).min(self.0.slice_seconds);
                // The last slice may have begun a moment ago: a rate over almost no time is noise.
                let is_whole = seconds >= self.0.slice_seconds / 2.0 || self.0.slices.len() == 1;
                (is_whole && seconds > 0.0).then(|| (begin + seconds / 2.0, amount(slice) as f64 / seconds))
            })
            .collect()
    }

    /// Levels at the middle of each slice that has one.
    fn levels(&self, level: fn(&Slice) -> Option<f64>) -> Vec<(f64, f64)> {
        let places = self.0.slices.iter().enumerate();
        places
            .filter_map(|(place, slice)| {
                let begin = place as f64 * self.0.slice_seconds;
                let middle = begin + (self.0.elapsed_seconds - begin).min(self.0.slice_seconds) / 2.0;
                Some((middle, level(slice)?))
            })
            .collect()
    }
}
