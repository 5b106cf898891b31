//! The counts, against a model that replays the same facts in the plainest way.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use flashjob_event::FinishReason;

/// The value of the one sample whose name and labels read `series`.
fn value(text: &str, series: &str) -> f64 {
    let found: Vec<f64> =
        text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok()).collect();
    assert_eq!(found.len(), 1, "{series} in\n{text}");
    found[0]
}

fn observe(registry: &Registry, at: Instant, fact: Fact) {
    registry.observe(&Event { at, fact });
}

/// A request that is queued at 1 s, scheduled at 2 s, and makes tokens at 5 s, 5.5 s and 7 s.
fn one_request(registry: &Registry, start: Instant, request: RequestId) {
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    observe(registry, at(1.0), Fact::RequestQueued { request, prompt_tokens: 100 });
    observe(registry, at(2.0), Fact::RequestScheduled { request });
    for moment in [5.0, 5.5, 7.0] {
        observe(registry, at(moment), Fact::TokenGenerated { request, token: 7 });
    }
    observe(registry, at(8.0), Fact::RequestFinished { request, output_tokens: 3, reason: FinishReason::Length });
}

#[test]
fn times_are_those_between_events() {
    let registry = Registry::new();
    let start = Instant::now();
    observe(&registry, start, Fact::PhaseStarted(Phase::Measure));
    one_request(&registry, start, RequestId(0));
    let text = registry.render();
    for (name, sum, count) in [
        ("queue_time_seconds", 1.0, 1.0),
        ("prefill_time_seconds", 3.0, 1.0),
        ("time_to_first_token_seconds", 4.0, 1.0),
        ("inter_token_latency_seconds", 2.0, 2.0),
        ("decode_time_seconds", 2.0, 1.0),
        ("end_to_end_latency_seconds", 7.0, 1.0),
        ("request_prompt_tokens", 100.0, 1.0),
        ("request_generated_tokens", 3.0, 1.0),
    ] {
        assert_eq!(value(&text, &format!("flashjob_{name}_sum{{phase=\"measure\"}}")), sum, "{name}");
        assert_eq!(value(&text, &format!("flashjob_{name}_count{{phase=\"measure\"}}")), count, "{name}");
    }
    assert_eq!(registry.requests.len(), 0);
}

#[test]
fn warm_up_and_measured_region_are_kept_apart() {
    let registry = Registry::new();
    let start = Instant::now();
    observe(&registry, start, Fact::PhaseStarted(Phase::WarmUp));
    one_request(&registry, start, RequestId(0));
    // Queued before the measured region and finished within it: not measured.
    observe(&registry, start, Fact::RequestQueued { request: RequestId(9), prompt_tokens: 5 });
    observe(&registry, start, Fact::PhaseStarted(Phase::Measure));
    observe(&registry, start, Fact::TokenGenerated { request: RequestId(9), token: 0 });
    one_request(&registry, start, RequestId(0));
    one_request(&registry, start, RequestId(1));
    let totals = registry.totals();
    let measured = Counts {
        requests_queued: 2,
        requests_finished: 2,
        prompt_tokens: 200,
        generated_tokens: 6,
        ..Counts::default()
    };
    assert_eq!(totals.measure, measured);
    assert_eq!((totals.warm_up.requests_queued, totals.warm_up.generated_tokens), (2, 4));
    let text = registry.render();
    assert_eq!(value(&text, "flashjob_generated_tokens_total{phase=\"measure\"}"), 6.0);
    assert_eq!(value(&text, "flashjob_requests_finished_total{phase=\"measure\",reason=\"length\"}"), 2.0);
}

#[test]
fn a_request_that_failed_is_over_and_has_no_latency_to_its_end() {
    let registry = Registry::new();
    let start = Instant::now();
    observe(&registry, start, Fact::PhaseStarted(Phase::Measure));
    one_request(&registry, start, RequestId(0));
    observe(&registry, start, Fact::RequestQueued { request: RequestId(1), prompt_tokens: 5 });
    observe(&registry, start, Fact::TokenGenerated { request: RequestId(1), token: 0 });
    let (request, reason) = (RequestId(1), FinishReason::Error);
    observe(&registry, start, Fact::RequestFinished { request, output_tokens: 1, reason });
    let counts = registry.totals().measure;
    assert_eq!((counts.requests_finished, counts.requests_failed), (2, 1));
    let text = registry.render();
    assert_eq!(value(&text, "flashjob_requests_finished_total{phase=\"measure\",reason=\"error\"}"), 1.0);
    assert_eq!(value(&text, "flashjob_end_to_end_latency_seconds_count{phase=\"measure\"}"), 1.0);
    assert_eq!(value(&text, "flashjob_request_generated_tokens_count{phase=\"measure\"}"), 2.0);
    assert_eq!(registry.requests.len(), 0);
}

#[test]
fn phases_take_the_time_between_their_starts() {
    let registry = Registry::new();
    let start = Instant::now();
    assert_eq!(registry.totals().phase, None);
    let two = Duration::from_secs(2);
    observe(&registry, start, Fact::PhaseStarted(Phase::Load));
    observe(&registry, start + two, Fact::PhaseStarted(Phase::Measure));
    observe(&registry, start + two * 2, Fact::PhaseStarted(Phase::Load));
    // A clock read on another thread: not an error, no time.
    observe(&registry, start, Fact::PhaseStarted(Phase::Publish));
    let text = registry.render();
    assert_eq!(value(&text, "flashjob_phase_seconds{phase=\"load\"}"), 2.0);
    assert_eq!(value(&text, "flashjob_phase_seconds{phase=\"measure\"}"), 2.0);
    assert_eq!(value(&text, "flashjob_phase{phase=\"publish\"}"), 1.0);
    assert_eq!(value(&text, "flashjob_phase{phase=\"load\"}"), 0.0);
    assert_eq!(registry.totals().phase, Some(Phase::Publish));
}

#[test]
fn what_was_abandoned_is_forgotten_when_serving_ends() {
    let registry = Registry::new();
    let now = Instant::now();
    observe(&registry, now, Fact::PhaseStarted(Phase::Measure));
    observe(&registry, now, Fact::RequestQueued { request: RequestId(0), prompt_tokens: 1 });
    let step = Fact::StepFinished {
        engine: 0,
        duration: Duration::from_millis(1),
        prefill_tokens: 8,
        decode_tokens: 1,
        running: 3,
        waiting: 2,
        kv_blocks_used: 4,
    };
    observe(&registry, now, step);
    let totals = registry.totals();
    assert_eq!((totals.running, totals.waiting, totals.kv_blocks_used, totals.measure.steps), (3, 2, 4, 1));
    observe(&registry, now, Fact::PhaseStarted(Phase::Publish));
    let totals = registry.totals();
    assert_eq!((totals.running, totals.waiting, totals.kv_blocks_used), (0, 0, 0));
    assert_eq!(registry.requests.len(), 0);
}

#[test]
fn histogram_bounds_read_as_written() {
    let text = Registry::new().render();
    for bound in ["0.0025", "0.001", "1000", "+Inf"] {
        value(&text, &format!("flashjob_queue_time_seconds_bucket{{phase=\"measure\",le=\"{bound}\"}}"));
    }
    value(&text, "flashjob_step_tokens_bucket{phase=\"measure\",le=\"65536\"}");
    value(&text, "flashjob_step_duration_seconds_bucket{phase=\"measure\",le=\"0.00025\"}");
}

#[test]
fn threads_lose_no_count() {
    let registry = Registry::new();
    let now = Instant::now();
    observe(&registry, now, Fact::PhaseStarted(Phase::Measure));
    let (threads, requests, tokens) = (4u32, 50u32, 20u32);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let registry = &registry;
            scope.spawn(move || {
                for request in (0..requests).map(|request| RequestId(thread * requests + request)) {
                    observe(registry, now, Fact::RequestQueued { request, prompt_tokens: 2 });
                    (0..tokens).for_each(|token| observe(registry, now, Fact::TokenGenerated { request, token }));
                    let reason = FinishReason::Stop;
                    observe(registry, now, Fact::RequestFinished { request, output_tokens: tokens, reason });
                }
            });
        }
        // Scrapes while it happens, which swap the halves of each histogram.
        (0..20).for_each(|_| drop(registry.render()));
    });
    let all = u64::from(threads * requests);
    let expected = Counts {
        requests_queued: all,
        requests_finished: all,
        prompt_tokens: 2 * all,
        generated_tokens: u64::from(tokens) * all,
        ..Counts::default()
    };
    assert_eq!(registry.totals().measure, expected);
    let text = registry.render();
    let gaps = value(&text, "flashjob_inter_token_latency_seconds_count{phase=\"measure\"}");
    assert_eq!(gaps, f64::from((tokens - 1) * threads * requests));
    assert_eq!(registry.requests.len(), 0);
}

/// Expected counters by region: 0 before the measured region, 1 within.
#[derive(Default)]
struct Model {
    measuring: bool,
    known: HashMap<RequestId, (usize, u32, bool)>,
    counts: [Counts; 2],
    step_tokens: [u64; 2],
    prefix_hits: [u64; 2],
    bucket_read: u64,
    weights_read: u64,
}

impl Model {
    fn replay(&mut self, fact: &Fact) {
        let here = usize::from(self.measuring);
        let region = |known: &HashMap<RequestId, (usize, u32, bool)>, request| known.get(request).map_or(here, |k| k.0);
        match fact {
            Fact::PhaseStarted(phase) => {
                self.measuring = *phase == Phase::Measure;
                if matches!(phase, Phase::Publish | Phase::Linger) {
                    self.known.clear();
                }
            }
            Fact::RequestQueued { request, prompt_tokens } => {
                self.counts[here].requests_queued += 1;
                self.known.insert(*request, (here, *prompt_tokens, false));
            }
            Fact::TokenGenerated { request, .. } => {
                self.counts[region(&self.known, request)].generated_tokens += 1;
                if let Some((region, prompt_tokens, seen @ false)) = self.known.get_mut(request) {
                    self.counts[*region].prompt_tokens += u64::from(*prompt_tokens);
                    *seen = true;
                }
            }
            Fact::PrefixSearched { request, hit_tokens, .. } => {
                self.prefix_hits[region(&self.known, request)] += u64::from(*hit_tokens);
            }
            Fact::RequestPreempted { request } => self.counts[region(&self.known, request)].preemptions += 1,
            Fact::RequestFinished { request, .. } => {
                self.counts[region(&self.known, request)].requests_finished += 1;
                self.known.remove(request);
            }
            Fact::StepFinished { prefill_tokens, decode_tokens, .. } => {
                self.counts[here].steps += 1;
                self.step_tokens[here] += (prefill_tokens + decode_tokens) as u64;
            }
            Fact::BucketRead { bytes } => self.bucket_read += bytes,
            Fact::WeightsRead { bytes, .. } => self.weights_read += bytes,
            _ => {}
        }
    }
}

fn any_fact() -> impl Strategy<Value = Fact> {
    let request = || (0u32..5).prop_map(RequestId);
    prop_oneof![
        1 => prop::sample::select(Phase::ALL.to_vec()).prop_map(Fact::PhaseStarted),
        1 => (0u64..1 << 40).prop_map(|bytes| Fact::BucketRead { bytes }),
        1 => (0u64..1 << 40).prop_map(|bytes| Fact::BucketWritten { bytes }),
        1 => Just(Fact::UploadOpened { parts: 3, parts_there: 1, not_resumable: None }),
        1 => Just(Fact::BucketRetried { reason: "a \"new\"\nreason\\" }),
        1 => (0u64..1 << 40, any::<u64>())
            .prop_map(|(bytes, total_bytes)| Fact::WeightsRead { bytes, total_bytes }),
        1 => (any::<usize>(), any::<usize>())
            .prop_map(|(kv_blocks, block_tokens)| Fact::EngineReady { engines: 1, kv_blocks, block_tokens }),
        4 => (request(), 0u32..1000)
            .prop_map(|(request, prompt_tokens)| Fact::RequestQueued { request, prompt_tokens }),
        3 => request().prop_map(|request| Fact::RequestScheduled { request }),
        2 => (request(), 0u32..1000, 0u32..1000).prop_map(|(request, prompt_tokens, hit_tokens)| {
            Fact::PrefixSearched { request, prompt_tokens, hit_tokens }
        }),
        1 => request().prop_map(|request| Fact::RequestPreempted { request }),
        9 => (request(), any::<u32>()).prop_map(|(request, token)| Fact::TokenGenerated { request, token }),
        3 => (request(), any::<u32>(), any::<bool>()).prop_map(|(request, output_tokens, stop)| {
            let reason = if stop { FinishReason::Stop } else { FinishReason::Length };
            Fact::RequestFinished { request, output_tokens, reason }
        }),
        3 => (any::<u64>(), 0usize..1 << 20, 0usize..1 << 10, any::<usize>()).prop_map(
            |(nanoseconds, prefill_tokens, decode_tokens, level)| Fact::StepFinished {
                engine: 0,
                duration: Duration::from_nanos(nanoseconds),
                prefill_tokens,
                decode_tokens,
                running: level,
                waiting: level,
                kv_blocks_used: level,
            }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any facts in any order, with clocks that jump: nothing panics, and every count is the model's.
    #[test]
    fn counts_equal_a_plain_replay(facts in prop::collection::vec((any_fact(), 0u64..10_000), 0..120)) {
        let registry = Registry::new();
        let start = Instant::now();
        let mut model = Model::default();
        for (fact, milliseconds) in &facts {
            observe(&registry, start + Duration::from_millis(*milliseconds), fact.clone());
            model.replay(fact);
        }
        let totals = registry.totals();
        prop_assert_eq!([totals.warm_up, totals.measure], model.counts);
        prop_assert_eq!(totals.bucket_read_bytes, model.bucket_read);
        prop_assert_eq!(totals.weights_read_bytes, model.weights_read);
        prop_assert_eq!(registry.requests.len(), model.known.len());
        let text = registry.render();
        for (place, phase) in ["warm_up", "measure"].into_iter().enumerate() {
            for (name, expected) in [
                ("step_tokens_sum", model.step_tokens[place]),
                ("prefix_cache_hit_tokens_total", model.prefix_hits[place]),
            ] {
                prop_assert_eq!(value(&text, &format!("flashjob_{name}{{phase=\"{phase}\"}}")), expected as f64);
            }
        }
    }
}
