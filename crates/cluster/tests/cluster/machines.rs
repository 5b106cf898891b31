//! Two machines that share a model, here two engines that talk over loopback: what is computed does not depend on where ranks are.

use std::num::NonZeroUsize;
use std::time::Duration;

use flashjob_cluster::{Rendezvous, Worker};
use flashjob_config::{EngineConfig, NodesConfig};
use flashjob_engine::{Cpu, Engine, Error, Request};
use flashjob_event::Events;
use flashjob_test_engine::{config, open, request, serve, watched_logits};
use flashjob_test_models::altered::Altered;
use flashjob_test_models::golden::MODELS;
use flashjob_test_support::process::free_port;
use tokio_util::sync::CancellationToken;

fn load(name: &str, config: &EngineConfig) -> Engine {
    Engine::load(&open(name), config, &Events::default(), &CancellationToken::new()).unwrap()
}

/// Loads both and lets `lead` do with the leader's engine; the other one must end as it is told.
fn on_two_machines<T>(name: &str, config: &EngineConfig, lead: impl FnOnce(&mut Engine) -> T) -> T {
    let port = free_port();
    let rendezvous = |index| {
        let (leader, num_nodes, timeout) =
            ("127.0.0.1".to_owned(), NonZeroUsize::new(2).unwrap(), Duration::from_secs(60));
        Rendezvous::new(NodesConfig { leader, port, node_rank: index, num_nodes, timeout }, CancellationToken::new())
    };
    let (events, cancel) = (Events::default(), CancellationToken::new());
    std::thread::scope(|scope| {
        let follow = scope.spawn(|| {
            let rendezvous = rendezvous(1);
            Worker::load(&Cpu, &open(name), config, &rendezvous, &events, &cancel)?.follow(&cancel)
        });
        let rendezvous = rendezvous(0);
        let mut engine = Engine::load_distributed(&Cpu, &open(name), config, &rendezvous, &events, &cancel).unwrap();
        assert_eq!(engine.report().num_nodes, 2);
        let led = lead(&mut engine);
        drop(engine);
        rendezvous.end(3, "the test says so");
        let end = follow.join().unwrap().unwrap();
        assert_eq!((end.code, end.sentence.as_str()), (3, "the test says so"));
        led
    })
}

/// Requests of different lengths, so that steps prefill and decode at once.
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
            let mut alone = load(name, &config);
            let prompt: Vec<u32> = (0..40).collect();
            let expected =
                (watched_logits(&mut alone, requests()), alone.logits(&prompt, &CancellationToken::new()).unwrap());
            let found = on_two_machines(name, &config, |engine| {
                let served = watched_logits(engine, requests());
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
    let expected = watched_logits(&mut load("llama-gqa", &config), requests());
    let found = on_two_machines("llama-gqa", &config, |engine| watched_logits(engine, requests()));
    assert!(found == expected);
}

#[test]
fn ranks_that_machines_cannot_share_are_refused() {
    let (leader, num_nodes, timeout) = ("127.0.0.1".to_owned(), NonZeroUsize::new(2).unwrap(), Duration::from_secs(60));
    let rendezvous =
        Rendezvous::new(NodesConfig { leader, port: 1, node_rank: 0, num_nodes, timeout }, CancellationToken::new());
    let config = EngineConfig { tensor_parallel_size: NonZeroUsize::new(1), ..config() };
    let (events, cancel) = (Events::default(), CancellationToken::new());
    let loaded = Engine::load_distributed(&Cpu, &open("llama-gqa"), &config, &rendezvous, &events, &cancel);
    let Err(error @ Error::TensorParallel { .. }) = loaded else { panic!("it loaded") };
    assert!(error.to_string().contains("a multiple of 2"), "{error}");
}

/// A request whose logits are not finite ends by itself on two machines as on one.
#[test]
fn a_request_without_numbers_ends_alone() {
    const BAD: u32 = 200;
    let model = Altered::of("llama-gqa");
    model.spoil_embedding(BAD);
    let name = model.path().to_str().unwrap();
    let ranks = NonZeroUsize::new(2);
    let config = EngineConfig { tensor_parallel_size: ranks, validate_weights: false, ..config() };
    let requests = || {
        let mut requests = requests();
        requests[3].prompt.push(BAD);
        requests
    };
    let expected = serve(&mut load(name, &config), requests()).unwrap().0;
    let failed: Vec<bool> = expected.iter().map(|output| output.error.is_some()).collect();
    assert_eq!(failed, [false, false, false, true, false]);
    assert_eq!(on_two_machines(name, &config, |engine| serve(engine, requests()).unwrap().0), expected);
}
