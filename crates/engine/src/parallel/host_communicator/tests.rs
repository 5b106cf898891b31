//! Sums and gathers of threads, and a rank that gives up.

use super::*;
use candle_core::{DType, Device as CandleDevice};

/// Results of `work` by rank.
fn on_ranks<T: Send>(world_size: usize, work: impl Fn(&HostCommunicator) -> T + Sync) -> Vec<T> {
    let group = HostGroup::new(&World { size: world_size, here: 0..world_size, nodes: None });
    std::thread::scope(|scope| {
        let start = |rank| {
            let member = HostCommunicator::new(&group, rank, &Arc::from([]));
            let work = &work;
            scope.spawn(move || work(&member))
        };
        let threads: Vec<_> = (0..world_size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn every_rank_gets_the_sum_again_and_again() {
    for (world_size, width) in [(1, 5), (2, 1), (3, 7), (4, 3), (4, 64)] {
        let sums = on_ranks(world_size, |member| {
            (0..20)
                .map(|round| {
                    let number = (member.index + 1) as f32 * 0.1 + round as f32;
                    let tensor = Tensor::full(number, (2, width), &CandleDevice::Cpu).unwrap();
                    member.all_reduce(&tensor).unwrap();
                    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                })
                .collect::<Vec<_>>()
        });
        let expected = |round| (0..world_size).fold(0.0, |sum, rank| sum + ((rank + 1) as f32 * 0.1 + round as f32));
        for rank in &sums {
            for (round, sum) in rank.iter().enumerate() {
                assert_eq!(*sum, vec![expected(round); 2 * width], "{world_size} ranks, round {round}");
            }
        }
    }
}

#[test]
fn rank_0_gets_the_parts_side_by_side_whatever_their_widths() {
    let gathered = on_ranks(3, |member| {
        let width = [3, 3, 1][member.index];
        let part = Tensor::arange(0f32, 2.0 * width as f32, &CandleDevice::Cpu).unwrap();
        let part = (part.reshape((2, width)).unwrap() + (10 * member.index) as f64).unwrap();
        let whole = (member.index == 0).then(|| Tensor::zeros((2, 7), DType::F32, &CandleDevice::Cpu).unwrap());
        member.gather(&part, whole.as_ref()).unwrap();
        whole.map(|whole| whole.to_vec2::<f32>().unwrap())
    });
    let first = vec![0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 20.0];
    let second = vec![3.0, 4.0, 5.0, 13.0, 14.0, 15.0, 21.0];
    assert_eq!(gathered, [Some(vec![first, second]), None, None]);
}

#[test]
fn nobody_waits_for_a_rank_that_gave_up() {
    let errors = on_ranks(3, |member| {
        if member.index == 1 {
            member.group.mark_failed(1);
            return "gave up".to_owned();
        }
        let tensor = Tensor::zeros(4, DType::F32, &CandleDevice::Cpu).unwrap();
        member.all_reduce(&tensor).unwrap_err().to_string()
    });
    assert!(errors[0].contains("rank 1 gave up") && errors[2].contains("rank 1 gave up"), "{errors:?}");
}
