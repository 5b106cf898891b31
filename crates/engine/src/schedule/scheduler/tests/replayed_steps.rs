//! Share of steps that can be replayed, and of places that are taken, where lengths differ as in ShareGPT.
//!
//! Synthetic: lengths are drawn from log-normal distributions with about the means of the sample that vLLM's serving benchmark takes
//! of that dataset, 220 tokens of prompt and 190 of answer, and are cut as it cuts them.

#![allow(clippy::print_stdout)]
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{compute, limits, request};
use crate::schedule::admission::AdmissionPolicy;
use crate::schedule::blocks::BlockPool;
use crate::schedule::scheduler::Scheduler;

const BLOCK_SIZE: usize = 32;

/// Longest prompt, and longest prompt with its answer.
const LONGEST: [usize; 2] = [1024, 2048];

/// Prompts and answers of `count` requests. Those that are too long are drawn again.
fn lengths(count: usize) -> Vec<[usize; 2]> {
    let mut generator = ChaCha8Rng::seed_from_u64(7);
    // A log-normal distribution with sigma = 1 has the mean exp(mu + 1 / 2).
    let mut drawn = |mean: f64| {
        let [u, v]: [f64; 2] = [generator.random(), generator.random()];
        let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        (mean * (normal - 0.5).exp()) as usize
    };
    // Drawing again what is too long takes off what is more than 220 and 190.
    let pairs = std::iter::repeat_with(|| [drawn(264.0), drawn(192.0)]);
    let wanted = |&[prompt, answer]: &[usize; 2]| {
        prompt >= 4 && answer >= 4 && prompt <= LONGEST[0] && prompt + answer <= LONGEST[1]
    };
    pairs.filter(wanted).take(count).collect()
}

/// What was seen of a run.
#[derive(Default)]
struct Seen {
    steps: usize,
    /// Steps that only decode.
    replayed: usize,
    /// Steps with requests that wait, those of them that only decode, and sequences in all of them.
    full_steps: usize,
    full_replayed: usize,
    running: usize,
    preemptions: usize,
}

impl Seen {
    fn replayed_share(&self) -> f64 {
        self.replayed as f64 / self.steps as f64
    }

    fn full_replayed_share(&self) -> f64 {
        self.full_replayed as f64 / self.full_steps as f64
    }

    fn mean_running(&self) -> f64 {
        self.running as f64 / self.full_steps as f64
    }
}

fn run(admission: AdmissionPolicy, [places, tokens, blocks]: [usize; 3], requests: &[[usize; 2]]) -> Seen {
    let mut scheduler = Scheduler::new(limits(places, tokens), BlockPool::new(blocks as u32, BLOCK_SIZE), admission);
    let mut arrivals = requests.iter().map(|&[prompt, answer]| request(vec![0; prompt], answer));
    let mut seen = Seen::default();
    while arrivals.len() > 0 || !scheduler.is_done() {
        let step = scheduler.schedule(arrivals.len(), &mut || arrivals.next());
        let replayed = usize::from(step.scheduled.iter().all(|scheduled| scheduled.decodes));
        seen.steps += 1;
        seen.replayed += replayed;
        seen.preemptions += step.preempted.len();
        if scheduler.waiting() + arrivals.len() > 0 {
            seen.full_steps += 1;
            seen.full_replayed += replayed;
            seen.running += scheduler.running();
        }
        compute(&mut scheduler);
    }
    seen
}

/// Both ways on the same requests, printed.
fn compare([places, tokens, blocks]: [usize; 3], count: usize) -> [Seen; 2] {
    let requests = lengths(count);
    let mean = |place: usize| requests.iter().map(|lengths| lengths[place]).sum::<usize>() as f64 / count as f64;
    assert!((mean(0) - 220.0).abs() < 15.0 && (mean(1) - 190.0).abs() < 15.0, "{} and {}", mean(0), mean(1));
    [AdmissionPolicy::Immediate, AdmissionPolicy::InGroups].map(|admission| {
        let seen = run(admission, [places, tokens, blocks], &requests);
        println!(
            "{count} requests of {:.0} and {:.0} tokens, {places} places, {tokens} tokens a step, {blocks} blocks, {admission:?}: {:.3} of \
             {} steps replayed, {:.3} while others wait, with {:.1} running; {} preemptions",
            mean(0),
            mean(1),
            seen.replayed_share(),
            seen.steps,
            seen.full_replayed_share(),
            seen.mean_running(),
            seen.preemptions,
        );
        seen
    })
}

#[test]
fn nine_steps_in_ten_are_replayed_and_few_places_are_empty() {
    let enough = |places: usize| places * LONGEST[1] / BLOCK_SIZE;
    for (setting, count, of_full_steps) in [
        ([256, 8192, enough(256)], 2000, 0.9),
        ([256, 16_384, enough(256)], 2000, 0.9),
        ([1024, 16_384, enough(1024)], 8000, 0.85),
    ] {
        let [at_once, in_groups] = compare(setting, count);
        assert!(in_groups.replayed_share() >= 0.9, "{setting:?}: {}", in_groups.replayed_share());
        assert!(in_groups.full_replayed_share() >= of_full_steps, "{setting:?}: {}", in_groups.full_replayed_share());
        assert!(at_once.full_replayed_share() < 0.5, "{setting:?}: {}", at_once.full_replayed_share());
        assert!(in_groups.mean_running() >= 0.95 * at_once.mean_running(), "{setting:?}: places stay empty");
        assert!(in_groups.steps as f64 <= 1.05 * at_once.steps as f64, "{setting:?}: many more steps");
    }
}

/// The cache, not the places, is what there is too little of.
#[test]
fn groups_form_where_the_cache_is_full_and_places_are_free() {
    let [at_once, in_groups] = compare([1024, 8192, 5000], 2000);
    assert!(in_groups.mean_running() < 512.0, "the cache was large enough");
    assert!(in_groups.full_replayed_share() > at_once.full_replayed_share());
    assert!(in_groups.steps as f64 <= 1.1 * at_once.steps as f64, "many more steps");
}
