//! Ranks that are threads of one process and meet in its memory.
//!
//! A sum is taken in two steps: each rank adds up its own stretch of all ranks' numbers, in order of rank, then copies
//! everyone's stretches. So all ranks hold the same bits, and each number is added once. A rank that gives up says so,
//! and nobody waits for it.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use candle_core::{Result, Tensor, bail};

use super::{Communicator, Group};
use crate::engine::ops::access::{Operand, change, floats_mut};
use crate::model::Shard;

/// Where the ranks of one model meet.
#[derive(Debug)]
pub struct SharedMemory {
    /// One a rank: what it brought.
    brought: Vec<RwLock<Vec<f32>>>,
    /// One a rank: its stretch of the sum.
    summed: Vec<RwLock<Vec<f32>>>,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Meeting {
    arrived: usize,
    /// How many meetings there have been.
    number: u64,
    /// The first rank that gave up.
    gave_up: Option<usize>,
}

impl SharedMemory {
    /// Of `world_size` ranks.
    pub fn new(world_size: usize) -> Arc<Self> {
        let buffers = || (0..world_size).map(|_| RwLock::default()).collect();
        Arc::new(Self { brought: buffers(), summed: buffers(), meeting: Mutex::default(), changed: Condvar::new() })
    }

    /// Returns when all ranks have come.
    fn meet(&self) -> Result<()> {
        let mut meeting = self.lock();
        meeting.arrived += 1;
        if meeting.arrived == self.brought.len() {
            meeting.arrived = 0;
            meeting.number += 1;
            self.changed.notify_all();
            return Ok(());
        }
        let number = meeting.number;
        while meeting.number == number {
            if let Some(rank) = meeting.gave_up {
                bail!("rank {rank} gave up");
            }
            meeting = self.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stretch of `count` numbers that `rank` adds up.
    fn stretch(&self, rank: usize, count: usize) -> Range<usize> {
        let world_size = self.brought.len();
        rank * count / world_size..(rank + 1) * count / world_size
    }
}

impl Group for SharedMemory {
    /// Forgets who gave up. Nobody may be waiting.
    fn begin(&self) {
        *self.lock() = Meeting::default();
    }

    fn give_up(&self, rank: usize) {
        self.lock().gave_up.get_or_insert(rank);
        self.changed.notify_all();
    }

    fn gave_up(&self) -> Option<usize> {
        self.lock().gave_up
    }
}

/// One rank's place in a [`SharedMemory`].
#[derive(Debug)]
pub struct Member {
    group: Arc<SharedMemory>,
    rank: usize,
}

impl Member {
    /// The place of `rank`.
    pub fn new(group: &Arc<SharedMemory>, rank: usize) -> Self {
        Self { group: Arc::clone(group), rank }
    }

    fn bring(&self, numbers: &[f32]) {
        let mut brought = write(&self.group.brought[self.rank]);
        brought.clear();
        brought.extend_from_slice(numbers);
    }
}

impl Communicator for Member {
    fn shard(&self) -> Shard {
        Shard { rank: self.rank, world_size: self.group.brought.len() }
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<()> {
        let group = &self.group;
        change(tensor, "all-reduce", |storage, layout| {
            let numbers = floats_mut(storage, layout)?;
            self.bring(numbers);
            group.meet()?;
            let stretch = group.stretch(self.rank, numbers.len());
            let mut sum = write(&group.summed[self.rank]);
            sum.clear();
            sum.resize(stretch.len(), 0.0);
            for brought in &group.brought {
                sum.iter_mut().zip(&read(brought)[stretch.clone()]).for_each(|(sum, number)| *sum += number);
            }
            drop(sum);
            group.meet()?;
            for (rank, summed) in group.summed.iter().enumerate() {
                let stretch = group.stretch(rank, numbers.len());
                numbers[stretch].copy_from_slice(&read(summed));
            }
            Ok(())
        })
    }

    fn gather(&self, part: &Tensor, whole: Option<&Tensor>) -> Result<()> {
        let rows = part.dim(0)?;
        self.bring(Operand::of(part).floats()?);
        self.group.meet()?;
        if let Some(whole) = whole {
            change(whole, "gather", |storage, layout| {
                let whole = floats_mut(storage, layout)?;
                let (mut first, width) = (0, whole.len() / rows);
                for part in self.group.brought.iter().map(read) {
                    let part_width = part.len() / rows;
                    for (row, part) in whole.chunks_exact_mut(width).zip(part.chunks_exact(part_width)) {
                        row[first..first + part_width].copy_from_slice(part);
                    }
                    first += part_width;
                }
                Ok(())
            })?;
        }
        // Nobody brings anything new before rank 0 has read.
        self.group.meet()
    }
}

fn read(buffer: &RwLock<Vec<f32>>) -> std::sync::RwLockReadGuard<'_, Vec<f32>> {
    buffer.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(buffer: &RwLock<Vec<f32>>) -> std::sync::RwLockWriteGuard<'_, Vec<f32>> {
    buffer.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// What each rank gets.
    fn on_ranks<T: Send>(world_size: usize, work: impl Fn(&Member) -> T + Sync) -> Vec<T> {
        let group = SharedMemory::new(world_size);
        std::thread::scope(|scope| {
            let start = |rank| {
                let member = Member::new(&group, rank);
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
                        let number = (member.rank + 1) as f32 * 0.1 + round as f32;
                        let tensor = Tensor::full(number, (2, width), &Device::Cpu).unwrap();
                        member.all_reduce(&tensor).unwrap();
                        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                    })
                    .collect::<Vec<_>>()
            });
            let expected =
                |round| (0..world_size).fold(0.0, |sum, rank| sum + ((rank + 1) as f32 * 0.1 + round as f32));
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
            let width = [3, 3, 1][member.rank];
            let part = Tensor::arange(0f32, 2.0 * width as f32, &Device::Cpu).unwrap();
            let part = (part.reshape((2, width)).unwrap() + (10 * member.rank) as f64).unwrap();
            let whole = (member.rank == 0).then(|| Tensor::zeros((2, 7), DType::F32, &Device::Cpu).unwrap());
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
            if member.rank == 1 {
                member.group.give_up(1);
                return "gave up".to_owned();
            }
            let tensor = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
            member.all_reduce(&tensor).unwrap_err().to_string()
        });
        assert!(errors[0].contains("rank 1 gave up") && errors[2].contains("rank 1 gave up"), "{errors:?}");
    }
}
