//! Each order against a model that looks at all waiting requests anew.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const BLOCK: usize = 2;
const SCHEDULES: [Schedule; 3] = [Schedule::Input, Schedule::Prefix, Schedule::Longest];

/// Number, prompt and tokens to generate.
struct Numbered(usize, Vec<u32>, usize);

impl Orderable for Numbered {
    fn prompt(&self) -> &[u32] {
        &self.1
    }

    fn max_tokens(&self) -> usize {
        self.2
    }
}

/// All of `prompts` as one engine takes them.
fn taken(schedule: Schedule, prompts: &[(Vec<u32>, usize)]) -> Vec<usize> {
    let mut waiting = WaitingRequests::new(schedule, BLOCK);
    for (id, (prompt, max_tokens)) in prompts.iter().enumerate() {
        waiting.push(Numbered(id, prompt.clone(), *max_tokens));
    }
    std::iter::from_fn(|| waiting.pop(0)).map(|request| request.0).collect()
}

/// Full blocks that two prompts begin with.
fn in_common(one: &[u32], other: &[u32]) -> usize {
    one.chunks_exact(BLOCK).zip(other.chunks_exact(BLOCK)).take_while(|(one, other)| one == other).count()
}

/// Few tokens, so that many prompts begin alike.
fn prompts(most: usize) -> impl Strategy<Value = Vec<(Vec<u32>, usize)>> {
    prop::collection::vec((prop::collection::vec(0..3u32, 1..9), 1..6usize), 0..most)
}

proptest! {
    #[test]
    fn each_order_is_a_permutation_and_the_same_each_time(prompts in prompts(60)) {
        for schedule in SCHEDULES {
            let order = taken(schedule, &prompts);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..prompts.len()).collect::<Vec<_>>());
            prop_assert_eq!(taken(schedule, &prompts), order);
        }
    }

    #[test]
    fn input_is_the_order_of_arrival_and_longest_a_stable_sort(prompts in prompts(60)) {
        let arrival: Vec<usize> = (0..prompts.len()).collect();
        prop_assert_eq!(taken(Schedule::Input, &prompts), arrival.clone());
        let mut longest = arrival;
        longest.sort_by_key(|&id| Reverse(prompts[id].0.len() + prompts[id].1));
        prop_assert_eq!(taken(Schedule::Longest, &prompts), longest);
    }

    /// At every depth: once a group with a common prefix is left, none of it comes any more. Groups of the first block come in the
    /// order of their first members.
    #[test]
    fn prompts_with_a_common_prefix_are_taken_one_after_the_other(prompts in prompts(60)) {
        let order = taken(Schedule::Prefix, &prompts);
        let mut left: HashMap<&[u32], usize> = HashMap::new();
        let mut before: Option<&[u32]> = None;
        for &id in &order {
            let prompt = &prompts[id].0[..];
            for blocks in 1..=prompt.len() / BLOCK {
                let prefix = &prompt[..blocks * BLOCK];
                prop_assert!(!left.contains_key(prefix), "{:?} comes again", prefix);
            }
            if let Some(before) = before {
                let shared = in_common(before, prompt);
                for blocks in shared + 1..=before.len() / BLOCK {
                    left.insert(&before[..blocks * BLOCK], id);
                }
            }
            before = Some(prompt);
        }
        let groups: Vec<&[u32]> = order.iter().filter_map(|&id| prompts[id].0.chunks_exact(BLOCK).next()).collect();
        let mut firsts: Vec<&[u32]> = Vec::new();
        groups.into_iter().for_each(|group| if !firsts.contains(&group) { firsts.push(group) });
        let mut arrived: Vec<&[u32]> = Vec::new();
        for group in prompts.iter().filter_map(|(prompt, _)| prompt.chunks_exact(BLOCK).next()) {
            if !arrived.contains(&group) { arrived.push(group) }
        }
        prop_assert_eq!(firsts, arrived);
    }

    /// Requests that come while others are taken, by several engines: each engine gets the request that has most in common with its last
    /// one, or else the oldest.
    #[test]
    fn an_engine_stays_with_a_prefix_as_long_as_there_are_requests_with_it(
        prompts in prompts(40), actions in prop::collection::vec((any::<bool>(), 0..3usize), 1..120),
    ) {
        let mut waiting = WaitingRequests::new(Schedule::Prefix, BLOCK);
        let mut arrivals = prompts.iter().enumerate();
        let (mut model, mut last): (Vec<usize>, [Option<usize>; 3]) = (Vec::new(), [None; 3]);
        for (arrives, engine) in actions {
            if arrives {
                let Some((id, (prompt, max_tokens))) = arrivals.next() else { continue };
                waiting.push(Numbered(id, prompt.clone(), *max_tokens));
                model.push(id);
                continue;
            }
            let got = waiting.pop(engine).map(|request| request.0);
            prop_assert_eq!(got.is_some(), !model.is_empty());
            let Some(got) = got else { continue };
            let alike = |id: usize| last[engine].map_or(0, |last| in_common(&prompts[last].0, &prompts[id].0));
            let most = model.iter().map(|&id| alike(id)).max().unwrap_or(0);
            prop_assert_eq!(alike(got), most);
            prop_assert!(most > 0 || got == model[0], "{} was taken before {}", got, model[0]);
            model.retain(|&id| id != got);
            last[engine] = Some(got);
            prop_assert_eq!(waiting.len(), model.len());
        }
    }
}
