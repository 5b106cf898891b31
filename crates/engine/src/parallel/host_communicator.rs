//! Ranks that are threads of one process and meet in its memory.
//!
//! A sum is taken in two steps: each rank adds up its own stretch of all ranks' numbers, in order of rank, then copies
//! everyone's stretches. So all ranks hold the same bits, and each number is added once. A rank that gives up says so,
//! and nobody waits for it.
//!
//! Where there are other nodes, the first rank here speaks for all of them: at the leader it takes in what the others bring
//! before anything is added, so that a sum is the same one as in a single process, and sends it out; elsewhere it sends what
//! was brought here, and takes in the sum.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use candle_core::{Result, Tensor, bail};

use super::communicator::{Communicator, Group};
use super::frame::{Kind, LinkError};
use super::link::Link;
use super::links::Links;
use super::world::World;
use crate::forward::ops::access::{Operand, change, floats_mut};
use flashjob_model::Shard;

/// Memory that the ranks of one node share, and links to other nodes.
pub struct HostGroup {
    world_size: usize,
    here: Range<usize>,
    /// To other nodes.
    links: Option<Links>,
    /// One a rank of those here: what it brought; at the leader one for every rank there is.
    parts: Vec<RwLock<Vec<f32>>>,
    /// One for each that adds: its stretch of the sum. That is every rank here, or the leader alone.
    sums: Vec<RwLock<Vec<f32>>>,
    barrier: Mutex<Barrier>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Barrier {
    arrived: usize,
    /// Number of the barrier: one more each time that all ranks have arrived.
    number: u64,
    /// The first rank that gave up.
    failed_rank: Option<usize>,
}

impl HostGroup {
    /// A group for the ranks of `world` that are here.
    pub fn new(world: &World) -> Arc<Self> {
        let buffers = |count| (0..count).map(|_| RwLock::default()).collect();
        let World { size: world_size, here, links } = world;
        let (parts, sums) = match links {
            None => (here.len(), here.len()),
            Some(Links::Leader(_)) => (*world_size, here.len()),
            Some(Links::Worker(_)) => (here.len(), 1),
        };
        Arc::new(Self {
            world_size: *world_size,
            here: here.clone(),
            links: links.clone(),
            parts: buffers(parts),
            sums: buffers(sums),
            barrier: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Returns when all ranks have come.
    fn wait(&self) -> Result<()> {
        let mut barrier = self.lock();
        // The last to arrive opens the barrier for all; its number tells the others' wake-ups from spurious ones.
        barrier.arrived += 1;
        if barrier.arrived == self.here.len() {
            barrier.arrived = 0;
            barrier.number += 1;
            self.changed.notify_all();
            return Ok(());
        }
        let number = barrier.number;
        while barrier.number == number {
            if let Some(rank) = barrier.failed_rank {
                bail!("rank {} gave up", self.here.start + rank);
            }
            barrier = self.changed.wait(barrier).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Barrier> {
        self.barrier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stretch of `count` numbers that the `adder`th of those adds up who do.
    fn slice_of_sum(&self, adder: usize, count: usize) -> Range<usize> {
        let adders = self.sums.len();
        adder * count / adders..(adder + 1) * count / adders
    }

    /// Links to nodes from which parts come here, each with that node's ranks.
    fn workers(&self) -> impl Iterator<Item = (&Link, Range<usize>)> {
        let each = self.here.len();
        let links = match &self.links {
            Some(Links::Leader(links)) => &links[..],
            _ => &[],
        };
        links.iter().zip(1..).map(move |(link, machine)| (link.as_ref(), machine * each..(machine + 1) * each))
    }

    /// At the leader: takes in what the ranks of other nodes bring, `count` numbers of each rank.
    fn receive_parts(&self, count: impl Fn(usize) -> usize) -> std::result::Result<(), LinkError> {
        for (link, ranks) in self.workers() {
            let first = ranks.start;
            let mut parts: Vec<_> = self.parts[ranks].iter().map(write).collect();
            parts.iter_mut().zip(first..).for_each(|(parts, rank)| parts.resize(count(rank), 0.0));
            link.receive(Kind::Parts, parts.iter_mut().map(|parts| &mut parts[..]))?;
        }
        Ok(())
    }

    /// Elsewhere: sends what the ranks here brought to the leader.
    fn send_parts(&self, leader: &Link) -> std::result::Result<(), LinkError> {
        let parts: Vec<_> = self.parts.iter().map(read).collect();
        let pieces: Vec<&[u8]> = parts.iter().map(|parts| bytemuck::cast_slice(parts)).collect();
        leader.send(Kind::Parts, &pieces)
    }
}

impl Group for HostGroup {
    /// Forgets which rank failed. No rank may be waiting.
    fn begin(&self) {
        *self.lock() = Barrier::default();
    }

    fn mark_failed(&self, rank: usize) {
        self.lock().failed_rank.get_or_insert(rank);
        self.changed.notify_all();
    }

    fn failed_rank(&self) -> Option<usize> {
        self.lock().failed_rank
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

    fn contribute(&self, numbers: &[f32]) {
        let mut parts = write(&self.group.parts[self.index]);
        parts.clear();
        parts.extend_from_slice(numbers);
    }

    /// Returns when every rank there is has brought its part, as far as this node needs to know; `count` says how long each is.
    fn wait(&self, count: impl Fn(usize) -> usize) -> Result<()> {
        // It is the one who speaks to other nodes.
        if self.index == 0 {
            self.group.receive_parts(count).map_err(candle_core::Error::wrap)?;
        }
        self.group.wait()?;
        match &self.group.links {
            Some(Links::Worker(leader)) if self.index == 0 => {
                self.group.send_parts(leader).map_err(candle_core::Error::wrap)
            }
            _ => Ok(()),
        }
    }

    /// This rank's stretch of the sum, or at other nodes than the leader all of it.
    fn sum(&self, count: usize) -> Result<()> {
        let group = &self.group;
        let Some(sum) = group.sums.get(self.index) else { return Ok(()) };
        let (mut sum, slice_of_sum) = (write(sum), group.slice_of_sum(self.index, count));
        sum.clear();
        sum.resize(slice_of_sum.len(), 0.0);
        if let Some(Links::Worker(leader)) = &group.links {
            return leader.receive(Kind::Sum, std::iter::once(&mut sum[..])).map_err(candle_core::Error::wrap);
        }
        // In order of rank, on one thread for each number: floating-point sums depend on their order, and all ranks must
        // hold the same bits.
        for parts in &group.parts {
            sum.iter_mut().zip(&read(parts)[slice_of_sum.clone()]).for_each(|(sum, number)| *sum += number);
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
            // Copied, as ranks then overwrite their tensors with the sum while slower ones still add.
            self.contribute(numbers);
            self.wait(|_| numbers.len())?;
            self.sum(numbers.len())?;
            // The second barrier: no slice is copied before it is complete.
            group.wait()?;
            for (adder, sums) in group.sums.iter().enumerate() {
                let slice_of_sum = group.slice_of_sum(adder, numbers.len());
                numbers[slice_of_sum].copy_from_slice(&read(sums));
            }
            if self.index == 0 {
                let sum = bytemuck::cast_slice(numbers);
                let send = |(link, _): (&Link, _)| link.send(Kind::Sum, &[sum]);
                group.workers().try_for_each(send).map_err(candle_core::Error::wrap)?;
            }
            Ok(())
        })
    }

    fn gather(&self, part: &Tensor, whole: Option<&Tensor>) -> Result<()> {
        let rows = part.dim(0)?;
        self.contribute(Operand::of(part).floats()?);
        self.wait(|rank| rows * self.vocabulary[rank])?;
        if let Some(whole) = whole {
            change(whole, "gather", |storage, layout| {
                let whole = floats_mut(storage, layout)?;
                let (mut first, width) = (0, whole.len() / rows);
                for part in self.group.parts.iter().map(read) {
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
        self.group.wait()
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

    /// Results of `work` by rank.
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
                member.group.mark_failed(1);
                return "gave up".to_owned();
            }
            let tensor = Tensor::zeros(4, DType::F32, &CandleDevice::Cpu).unwrap();
            member.all_reduce(&tensor).unwrap_err().to_string()
        });
        assert!(errors[0].contains("rank 1 gave up") && errors[2].contains("rank 1 gave up"), "{errors:?}");
    }
}
