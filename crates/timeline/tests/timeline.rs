//! Slices of a region add up to its counts, however long it is.

use std::time::{Duration, Instant};

use flashjob_event::{Event, Fact, FinishReason, Needs, Observer, Phase, RequestId, StepNeeds};
use flashjob_results::{Limits, RecordedTimeline, Slice, StepKind};
use flashjob_timeline::{Timeline, figures};
use proptest::prelude::*;

const REQUEST: RequestId = RequestId(0);

/// A region whose first request is queued at second 0, with `facts` at their seconds.
fn region(facts: impl IntoIterator<Item = (f64, Fact)>) -> Timeline {
    let (timeline, start) = (Timeline::default(), Instant::now());
    let observe = |seconds: f64, fact| timeline.observe(&Event { at: start + Duration::from_secs_f64(seconds), fact });
    observe(0.0, Fact::PhaseStarted(Phase::Measure));
    observe(0.0, Fact::RequestQueued { request: REQUEST, prompt_tokens: 8 });
    facts.into_iter().for_each(|(seconds, fact)| observe(seconds, fact));
    timeline
}

fn token() -> Fact {
    Fact::TokenGenerated { request: REQUEST, token: 1 }
}

fn step(prefill_tokens: usize, decode_tokens: usize) -> Fact {
    step_of(0, prefill_tokens, decode_tokens)
}

fn step_of(engine: usize, prefill_tokens: usize, decode_tokens: usize) -> Fact {
    let duration = Duration::from_millis(100);
    Fact::StepFinished { engine, duration, prefill_tokens, decode_tokens, running: 4, waiting: 2, kv_blocks_used: 8 }
}

fn recorded(timeline: &Timeline) -> RecordedTimeline {
    timeline.recorded().unwrap()
}

#[test]
fn what_is_not_measured_is_not_recorded() {
    let timeline = Timeline::default();
    let observe = |fact| timeline.observe(&Event { at: Instant::now(), fact });
    observe(Fact::PhaseStarted(Phase::WarmUp));
    observe(Fact::RequestQueued { request: REQUEST, prompt_tokens: 8 });
    observe(token());
    timeline.power(Instant::now(), 100.0);
    assert_eq!(timeline.recorded(), None);
    observe(Fact::PhaseStarted(Phase::Measure));
    assert_eq!(timeline.recorded(), None);
}

/// A step whose products have so many operations and bytes.
fn needed_by(engine: usize, flops: f64, bytes: f64) -> Fact {
    Fact::StepNeeded { engine, needs: StepNeeds { layers: Needs { flops, bytes }, ..StepNeeds::default() } }
}

fn needed(flops: f64, bytes: f64) -> Fact {
    needed_by(0, flops, bytes)
}

#[test]
fn levels_are_means_and_work_is_summed_up() {
    let reason = FinishReason::Length;
    let timeline = region([
        (0.1, Fact::EngineReady { engines: 1, kv_blocks: 16, block_tokens: 16 }),
        (0.1, Fact::LimitsMeasured { flops_per_second: 10.0, bytes_per_second: 1.0 }),
        (0.1, Fact::LimitsMeasured { flops_per_second: 5.0, bytes_per_second: 2.0 }),
        (0.2, needed(64.0, 2.0)),
        (0.2, step(8, 0)),
        (0.2, token()),
        (0.3, needed(4.0, 4.0)),
        (0.3, step(0, 1)),
        (0.3, token()),
        (0.3, Fact::RequestFinished { request: REQUEST, output_tokens: 2, reason }),
        (0.4, Fact::PhaseStarted(Phase::Publish)),
        (0.5, token()),
    ]);
    let recorded = recorded(&timeline);
    let sum = |of: fn(&Slice) -> u64| recorded.slices.iter().map(of).sum::<u64>();
    assert_eq!((sum(|s| s.output_tokens), sum(|s| s.prefill_tokens), sum(|s| s.decode_tokens)), (2, 8, 1));
    assert_eq!((sum(|s| s.finished_requests), sum(|s| s.steps), recorded.kv_blocks), (1, 2, Some(16)));
    let levels = recorded.slices.iter().find(|slice| slice.steps > 0).unwrap();
    assert_eq!((levels.running, levels.waiting, levels.kv_blocks_used), (Some(4.0), Some(2.0), Some(8.0)));
    assert_eq!(recorded.limits, Some(Limits { flops_per_second: 10.0, bytes_per_second: 2.0 }));
    let kinds: Vec<(StepKind, f64)> = recorded.steps.iter().map(|steps| (steps.kind, steps.flops)).collect();
    assert_eq!(kinds, [(StepKind::Prefill, 64.0), (StepKind::Decode, 4.0)]);
    let text = serde_json::to_string(&recorded).unwrap();
    assert_eq!(serde_json::from_str::<RecordedTimeline>(&text).unwrap(), recorded);
}

#[test]
fn a_week_takes_no_more_room_than_an_hour() {
    let hours = 7 * 24;
    let timeline = region((0..hours * 60).map(|minute| (f64::from(minute) * 60.0, token())));
    let recorded = recorded(&timeline);
    assert!((100..=240).contains(&recorded.slices.len()), "{}", recorded.slices.len());
    assert_eq!(recorded.slices.iter().map(|slice| slice.output_tokens).sum::<u64>(), hours as u64 * 60);
    let steps = (0..100_000).flat_map(|step_number| {
        let intensity = 1.5f64.powi(step_number % 200 - 100);
        let at = f64::from(step_number) * 0.01;
        [(at, needed(intensity * 8.0, 8.0)), (at, step(step_number as usize % 2, 1))]
    });
    let recorded = self::recorded(&region(steps));
    assert!(recorded.steps.len() < 400, "{}", recorded.steps.len());
    assert_eq!(recorded.steps.iter().map(|steps| steps.steps).sum::<u64>(), 100_000);
}

#[test]
fn needs_are_those_of_the_same_engine_s_step() {
    let timeline = region([
        (0.0, Fact::EngineReady { engines: 2, kv_blocks: 16, block_tokens: 16 }),
        (0.1, needed_by(0, 64.0, 2.0)),
        (0.1, needed_by(1, 4.0, 4.0)),
        (0.2, step_of(0, 8, 0)),
        (0.2, step_of(1, 0, 1)),
    ]);
    // Steps of 0.1 s, side by side on the halves of a machine.
    let steps: Vec<_> =
        recorded(&timeline).steps.iter().map(|steps| (steps.kind, steps.flops, steps.seconds)).collect();
    assert_eq!(steps, [(StepKind::Prefill, 64.0, 0.05), (StepKind::Decode, 4.0, 0.05)]);
}

#[test]
fn slices_are_as_long_as_steps_at_least_and_a_stall_stays_visible() {
    // Ten steps a second, of four tokens each, with a stall of a second.
    let steps = (0..300).filter(|place| !(100..110).contains(place));
    let facts = steps.flat_map(|place| {
        let at = f64::from(place) * 0.1;
        [(at, token()), (at, token()), (at, token()), (at, token()), (at, step(0, 4))]
    });
    let recorded = recorded(&region(facts));
    assert!(recorded.slice_seconds >= 0.1, "{}", recorded.slice_seconds);
    let empty = recorded.slices.iter().filter(|slice| slice.output_tokens == 0).count();
    assert!((1..=5).contains(&empty), "{empty} of {} slices are empty", recorded.slices.len());
}

#[test]
fn power_is_recorded_where_it_is_sampled() {
    let timeline = region([(0.0, token()), (0.001, token())]);
    let now = Instant::now();
    [100.0, 300.0, f64::NAN].into_iter().for_each(|watts| timeline.power(now, watts));
    let watts: Vec<f64> = recorded(&timeline).slices.iter().filter_map(|slice| slice.power_watts).collect();
    assert_eq!(watts, [200.0]);
}

#[test]
fn plots_are_of_what_the_backend_reports() {
    let names = |timeline: &Timeline| -> Vec<String> {
        let figures = figures(&recorded(timeline));
        figures.iter().filter_map(|figure| Some(figure.to_html().split('"').nth(3)?.to_owned())).collect()
    };
    assert_eq!(names(&region([(0.1, token()), (0.2, token())])), ["throughput"]);
    let timeline = region([
        (0.0, Fact::EngineReady { engines: 1, kv_blocks: 16, block_tokens: 16 }),
        (0.1, needed(64.0, 2.0)),
        (0.1, step(8, 0)),
        (0.1, token()),
    ]);
    assert_eq!(names(&timeline), ["throughput", "requests", "kv-cache", "roofline"]);
}

proptest! {
    #[test]
    fn tokens_are_never_lost(times in prop::collection::vec(0.0f64..1e6, 1..300)) {
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        let recorded = recorded(&region(sorted.into_iter().map(|at| (at, token()))));
        prop_assert_eq!(recorded.slices.iter().map(|slice| slice.output_tokens).sum::<u64>(), times.len() as u64);
        prop_assert!(recorded.slices.len() <= 240);
    }
}
