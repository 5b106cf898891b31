//! Two machines that share a model, here two engines that talk over loopback: what is computed does not depend on where ranks are.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flashjob_config::{EngineConfig, Nodes};
use flashjob_engine::{Engine, Error, Platform, Rendezvous, Request, Worker};
use flashjob_event::{Events, RequestId};
use tokio_util::sync::CancellationToken;

use super::{config, open, request, serve};
use crate::model::golden::MODELS;
use crate::support::process::free_port;

/// Loads both and lets `lead` do with the leader's engine; the other one must end as it is told.
pub(crate) fn on_two_machines<T>(
    platform: Platform,
    name: &str,
    config: &EngineConfig,
    lead: impl FnOnce(&mut Engine) -> T,
) -> T {
    let port = free_port();
    let rendezvous = |index| {
        let (leader, num_nodes, timeout) =
            ("127.0.0.1".to_owned(), NonZeroUsize::new(2).unwrap(), Duration::from_secs(60));
        Rendezvous::new(Nodes { leader, port, node_rank: index, num_nodes, timeout }, CancellationToken::new())
    };
    let (events, cancel) = (Events::default(), CancellationToken::new());
    std::thread::scope(|scope| {
        let follow = scope.spawn(|| {
            let rendezvous = rendezvous(1);
            Worker::load(platform, &open(name), config, &rendezvous, &events, &cancel)?.follow(&cancel)
        });
        let rendezvous = rendezvous(0);
        let mut engine =
            Engine::load_leading(platform, &open(name), config, Some(&rendezvous), &events, &cancel).unwrap();
        assert_eq!(engine.facts().num_nodes, 2);
        let led = lead(&mut engine);
        drop(engine);
        rendezvous.end(3, "the test says so");
        let end = follow.join().unwrap().unwrap();
        assert_eq!((end.code, end.sentence.as_str()), (3, "the test says so"));
        led
    })
}

/// The bits of all logits from which tokens were chosen, by request and position.
pub(crate) fn watched(engine: &mut Engine, requests: Vec<Request>) -> BTreeMap<(u32, usize), Vec<u32>> {
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let watcher = seen.clone();
    engine.watch_logits(Some(Box::new(move |RequestId(request), position, row| {
        let bits = row.iter().map(|number| number.to_bits()).collect();
        watcher.lock().unwrap().insert((request, position), bits);
    })));
    serve(engine, requests).unwrap();
    engine.watch_logits(None);
    std::mem::take(&mut *seen.lock().unwrap())
}

/// Of different lengths, so that steps prefill and decode at once.
fn requests() -> Vec<Request> {
    (0..5).map(|id| request(id, &vec![3 + id; 1 + 17 * id as usize], 8 + 5 * id as usize)).collect()
}

#[test]
fn two_machines_compute_the_very_logits_of_one() {
    for name in MODELS {
        for ranks in [2, 4] {
            let max_num_batched_tokens = NonZeroUsize::new(48);
            let config =
                EngineConfig { tensor_parallel_size: NonZeroUsize::new(ranks), max_num_batched_tokens, ..config() };
            let mut alone = super::load(name, &config);
            let prompt: Vec<u32> = (0..40).collect();
            let expected = (watched(&mut alone, requests()), alone.logits(&prompt, &CancellationToken::new()).unwrap());
            let found = on_two_machines(Platform::Cpu, name, &config, |engine| {
                let served = watched(engine, requests());
                (served, engine.logits(&prompt, &CancellationToken::new()).unwrap())
            });
            assert!(found == expected, "{name} on {ranks} ranks");
        }
    }
}

#[test]
fn prefixes_are_cached_by_the_leader() {
    let ranks = NonZeroUsize::new(2);
    let config = EngineConfig { tensor_parallel_size: ranks, prefix_caching: true, ..config() };
    let requests = || (0..3).map(|id| request(id, &[&[7; 70][..], &[id]].concat(), 20)).collect();
    let expected = watched(&mut super::load("llama-gqa", &config), requests());
    let found = on_two_machines(Platform::Cpu, "llama-gqa", &config, |engine| watched(engine, requests()));
    assert!(found == expected);
}

#[test]
fn ranks_that_machines_cannot_share_are_refused() {
    let (leader, num_nodes, timeout) = ("127.0.0.1".to_owned(), NonZeroUsize::new(2).unwrap(), Duration::from_secs(60));
    let rendezvous =
        Rendezvous::new(Nodes { leader, port: 1, node_rank: 0, num_nodes, timeout }, CancellationToken::new());
    let config = EngineConfig { tensor_parallel_size: NonZeroUsize::new(1), ..config() };
    let (events, cancel) = (Events::default(), CancellationToken::new());
    let loaded = Engine::load_leading(Platform::Cpu, &open("llama-gqa"), &config, Some(&rendezvous), &events, &cancel);
    let Err(error @ Error::TensorParallel { .. }) = loaded else { panic!("it loaded") };
    assert!(error.to_string().contains("a multiple of 2"), "{error}");
}
