//! Ranks that are threads of one process and meet in its memory.
//!
//! A sum is taken in two steps: each rank adds up its own stretch of all ranks' numbers, in order of rank, then copies
//! everyone's stretches. So all ranks hold the same bits, and each number is added once. A rank that gives up says so,
//! and nobody waits for it.
//!
//! Where there are other machines, the first rank here speaks for all of them: at the leader it takes in what the others bring
//! before anything is added, so that a sum is the same one as in a single process, and sends it out; elsewhere it sends what
//! was brought here, and takes in the sum.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use candle_core::{Result, Tensor, bail};

use super::communicator::{Communicator, Group};
use super::link::{Kind, Link, LinkError};
use super::links::Links;
use super::world::World;
use crate::forward::ops::access::{Operand, change, floats_mut};
use flashjob_model::Shard;

/// Where the ranks of one model meet.
pub struct HostGroup {
    world_size: usize,
    here: Range<usize>,
    /// To other machines.
    links: Option<Links>,
    /// One a rank of those here: what it brought; at the leader one for every rank there is.
    brought: Vec<RwLock<Vec<f32>>>,
    /// One for each that adds: its stretch of the sum. That is every rank here, or the leader alone.
    summed: Vec<RwLock<Vec<f32>>>,
    meeting: Mutex<Barrier>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Barrier {
    arrived: usize,
    /// How many meetings there have been.
    number: u64,
    /// The first rank that gave up.
    gave_up: Option<usize>,
}

impl HostGroup {
    /// Of all ranks of `world`.
    pub fn new(world: &World) -> Arc<Self> {
        let buffers = |count| (0..count).map(|_| RwLock::default()).collect();
        let World { size: world_size, here, links } = world;
        let (brought, summed) = match links {
            None => (here.len(), here.len()),
            Some(Links::Leader(_)) => (*world_size, here.len()),
            Some(Links::Worker(_)) => (here.len(), 1),
        };
        Arc::new(Self {
            world_size: *world_size,
            here: here.clone(),
            links: links.clone(),
            brought: buffers(brought),
            summed: buffers(summed),
            meeting: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Returns when all ranks have come.
    fn meet(&self) -> Result<()> {
        let mut meeting = self.lock();
        meeting.arrived += 1;
        if meeting.arrived == self.here.len() {
            meeting.arrived = 0;
            meeting.number += 1;
            self.changed.notify_all();
            return Ok(());
        }
        let number = meeting.number;
        while meeting.number == number {
            if let Some(rank) = meeting.gave_up {
                bail!("rank {} gave up", self.here.start + rank);
            }
            meeting = self.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Barrier> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stretch of `count` numbers that the `adder`th of those adds up who do.
    fn stretch(&self, adder: usize, count: usize) -> Range<usize> {
        let adders = self.summed.len();
        adder * count / adders..(adder + 1) * count / adders
    }

    /// Links to machines from which parts come here, each with that machine's ranks.
    fn followers(&self) -> impl Iterator<Item = (&Link, Range<usize>)> {
        let each = self.here.len();
        let links = match &self.links {
            Some(Links::Leader(links)) => &links[..],
            _ => &[],
        };
        links.iter().zip(1..).map(move |(link, machine)| (link.as_ref(), machine * each..(machine + 1) * each))
    }

    /// At the leader: takes in what the ranks of other machines bring, `count` numbers of each rank.
    fn take_in(&self, count: impl Fn(usize) -> usize) -> std::result::Result<(), LinkError> {
        for (link, ranks) in self.followers() {
            let first = ranks.start;
            let mut brought: Vec<_> = self.brought[ranks].iter().map(write).collect();
            brought.iter_mut().zip(first..).for_each(|(brought, rank)| brought.resize(count(rank), 0.0));
            link.receive(Kind::Parts, brought.iter_mut().map(|brought| &mut brought[..]))?;
        }
        Ok(())
    }

    /// Elsewhere: sends what the ranks here brought to the leader.
    fn hand_in(&self, leader: &Link) -> std::result::Result<(), LinkError> {
        let brought: Vec<_> = self.brought.iter().map(read).collect();
        let pieces: Vec<&[u8]> = brought.iter().map(|brought| bytemuck::cast_slice(brought)).collect();
        leader.send(Kind::Parts, &pieces)
    }
}

impl Group for HostGroup {
    /// Forgets who gave up. Nobody may be waiting.
    fn begin(&self) {
        *self.lock() = Barrier::default();
    }

    fn give_up(&self, rank: usize) {
        self.lock().gave_up.get_or_insert(rank);
        self.changed.notify_all();
    }

    fn gave_up(&self) -> Option<usize> {
        self.lock().gave_up
    }
}

/// One rank's place in a [`HostGroup`].
pub struct HostCommunicator {
    group: Arc<HostGroup>,
    /// Among the ranks here.
    index: usize,
    /// Rows of the vocabulary by rank.
    vocabulary: Arc<[usize]>,
}

impl HostCommunicator {
    /// The place of the rank at `index` of those here; `vocabulary` is how much of it each rank of all has.
    pub fn new(group: &Arc<HostGroup>, index: usize, vocabulary: &Arc<[usize]>) -> Self {
        Self { group: Arc::clone(group), index, vocabulary: Arc::clone(vocabulary) }
    }

    fn bring(&self, numbers: &[f32]) {
        let mut brought = write(&self.group.brought[self.index]);
        brought.clear();
        brought.extend_from_slice(numbers);
    }

    /// Returns when every rank there is has brought its part, as far as this machine needs to know; `count` says how long each is.
    fn meet(&self, count: impl Fn(usize) -> usize) -> Result<()> {
        // It is the one who speaks to other machines.
        if self.index == 0 {
            self.group.take_in(count).map_err(candle_core::Error::wrap)?;
        }
        self.group.meet()?;
        match &self.group.links {
            Some(Links::Worker(leader)) if self.index == 0 => {
                self.group.hand_in(leader).map_err(candle_core::Error::wrap)
            }
            _ => Ok(()),
        }
    }

    /// This rank's stretch of the sum, or at other machines than the leader all of it.
    fn sum(&self, count: usize) -> Result<()> {
        let group = &self.group;
        let Some(sum) = group.summed.get(self.index) else { return Ok(()) };
        let (mut sum, stretch) = (write(sum), group.stretch(self.index, count));
        sum.clear();
        sum.resize(stretch.len(), 0.0);
        if let Some(Links::Worker(leader)) = &group.links {
            return leader.receive(Kind::Sum, std::iter::once(&mut sum[..])).map_err(candle_core::Error::wrap);
        }
        for brought in &group.brought {
            sum.iter_mut().zip(&read(brought)[stretch.clone()]).for_each(|(sum, number)| *sum += number);
        }
        Ok(())
    }
}

impl Communicator for HostCommunicator {
    fn shard(&self) -> Shard {
        Shard { rank: self.group.here.start + self.index, world_size: self.group.world_size }
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<()> {
        let group = &self.group;
        change(tensor, "all-reduce", |storage, layout| {
            let numbers = floats_mut(storage, layout)?;
            self.bring(numbers);
            self.meet(|_| numbers.len())?;
            self.sum(numbers.len())?;
            group.meet()?;
            for (adder, summed) in group.summed.iter().enumerate() {
                let stretch = group.stretch(adder, numbers.len());
                numbers[stretch].copy_from_slice(&read(summed));
            }
            if self.index == 0 {
                let sum = bytemuck::cast_slice(numbers);
                let send = |(link, _): (&Link, _)| link.send(Kind::Sum, &[sum]);
                group.followers().try_for_each(send).map_err(candle_core::Error::wrap)?;
            }
            Ok(())
        })
    }

    fn gather(&self, part: &Tensor, whole: Option<&Tensor>) -> Result<()> {
        let rows = part.dim(0)?;
        self.bring(Operand::of(part).floats()?);
        self.meet(|rank| rows * self.vocabulary[rank])?;
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
    use candle_core::{DType, Device as CandleDevice};

    /// What each rank gets.
    fn on_ranks<T: Send>(world_size: usize, work: impl Fn(&HostCommunicator) -> T + Sync) -> Vec<T> {
        let group = HostGroup::new(&World { size: world_size, here: 0..world_size, links: None });
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
                member.group.give_up(1);
                return "gave up".to_owned();
            }
            let tensor = Tensor::zeros(4, DType::F32, &CandleDevice::Cpu).unwrap();
            member.all_reduce(&tensor).unwrap_err().to_string()
        });
        assert!(errors[0].contains("rank 1 gave up") && errors[2].contains("rank 1 gave up"), "{errors:?}");
    }
}
