//! The thread pool.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flashjob_cpu::{Pool, cpu_quota_threads};

fn each_task_runs_once(pool: &Pool, tasks: usize) {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, |task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{tasks} tasks on {pool:?}");
}

#[test]
fn runs_each_task_once_and_waits_for_all() {
    for threads in [1, 2, 3, 5] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        for tasks in [0, 1, 2, 3, 64, 1000] {
            each_task_runs_once(&pool, tasks);
        }
    }
}

/// Many short jobs find workers spinning, parked, and on their way between the two.
#[test]
fn no_job_is_lost_whatever_the_workers_are_doing() {
    let pool = Pool::new(3);
    for round in 0..3000 {
        each_task_runs_once(&pool, 1 + round % 7);
        if round % 100 == 0 {
            std::thread::sleep(Duration::from_micros(round as u64 / 10));
        }
    }
}

#[test]
fn tasks_borrow_from_the_caller() {
    let pool = Pool::new(2);
    let words = ["a".to_string(), "bb".to_string(), "ccc".to_string()];
    let letters = AtomicUsize::new(0);
    pool.run(words.len(), |task| {
        letters.fetch_add(words[task].len(), Ordering::Relaxed);
    });
    assert_eq!(letters.into_inner(), 6);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    for threads in [1, 3] {
        let pool = Pool::new(threads);
        for round in 0..50 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, |task| assert_ne!(task, round % 20, "task {task} fails"));
            }));
            let payload = caught.expect_err("the panic was lost");
            let message = payload.downcast_ref::<String>().expect("the task's own message");
            assert!(message.contains(&format!("task {} fails", round % 20)), "{message}");
            each_task_runs_once(&pool, 20);
        }
    }
}

#[test]
fn a_task_may_call_the_pool() {
    for threads in [1, 2] {
        let pool = Pool::new(threads);
        let inner = AtomicUsize::new(0);
        pool.run(4, |_| {
            pool.run(5, |_| {
                inner.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(inner.into_inner(), 20);
    }
}

#[test]
fn several_threads_may_share_a_pool() {
    let pool = Pool::new(2);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..200).for_each(|round| each_task_runs_once(&pool, round % 9)));
        }
    });
}

#[test]
fn there_is_at_least_one_thread() {
    assert!(cpu_quota_threads() >= 1);
    assert!(catch_unwind(|| Pool::new(0)).is_err());
}
