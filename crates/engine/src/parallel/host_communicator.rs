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
use super::nodes::Nodes;
use super::world::World;
use crate::cpu::access::{Operand, change, floats_mut};
use crate::error::Error;
use flashjob_model::Shard;

/// Memory that the ranks of one node share.
pub struct HostGroup {
    world_size: usize,
    here: Range<usize>,
    nodes: Option<Arc<dyn Nodes>>,
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
        let World { size: world_size, here, nodes } = world;
        let (parts, sums) = match world.follows() {
            // All parts there are, those of other nodes included.
            false => (*world_size, here.len()),
            true => (here.len(), 1),
        };
        Arc::new(Self {
            world_size: *world_size,
            here: here.clone(),
            nodes: nodes.clone(),
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

    /// The node that leads, where this is another one.
    fn leader(&self) -> Option<&dyn Nodes> {
        self.nodes.as_deref().filter(|nodes| nodes.follows())
    }

    /// The other nodes, where this one leads.
    fn workers(&self) -> Option<&dyn Nodes> {
        self.nodes.as_deref().filter(|nodes| !nodes.follows())
    }

    /// At the leader: takes in what the ranks of other nodes bring, `count` numbers of each rank.
    fn receive_parts(&self, nodes: &dyn Nodes, count: impl Fn(usize) -> usize) -> std::result::Result<(), Error> {
        let each = self.here.len();
        for node_rank in 1..self.world_size / each {
            let first = node_rank * each;
            let mut parts: Vec<_> = self.parts[first..first + each].iter().map(write).collect();
            parts.iter_mut().zip(first..).for_each(|(parts, rank)| parts.resize(count(rank), 0.0));
            let mut parts: Vec<&mut [f32]> = parts.iter_mut().map(|parts| &mut parts[..]).collect();
            nodes.receive_parts(node_rank, &mut parts)?;
        }
        Ok(())
    }

    /// Elsewhere: sends what the ranks here brought to the leader.
    fn send_parts(&self, leader: &dyn Nodes) -> std::result::Result<(), Error> {
        let parts: Vec<_> = self.parts.iter().map(read).collect();
        let parts: Vec<&[f32]> = parts.iter().map(|parts| &parts[..]).collect();
        leader.send_parts(&parts)
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
        let group = &self.group;
        // The first rank here is the one that speaks to other nodes.
        let speaks = self.index == 0;
        if let Some(workers) = group.workers().filter(|_| speaks) {
            group.receive_parts(workers, count).map_err(candle_core::Error::wrap)?;
        }
        group.wait()?;
        if let Some(leader) = group.leader().filter(|_| speaks) {
            group.send_parts(leader).map_err(candle_core::Error::wrap)?;
        }
        Ok(())
    }

    /// This rank's stretch of the sum, or at other nodes than the leader all of it.
    fn sum(&self, count: usize) -> Result<()> {
        let group = &self.group;
        let Some(sum) = group.sums.get(self.index) else { return Ok(()) };
        let (mut sum, slice_of_sum) = (write(sum), group.slice_of_sum(self.index, count));
        sum.clear();
        sum.resize(slice_of_sum.len(), 0.0);
        if let Some(leader) = group.leader() {
            return leader.receive_sum(&mut sum).map_err(candle_core::Error::wrap);
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
            match group.workers().filter(|_| self.index == 0) {
                Some(workers) => workers.send_sum(numbers).map_err(candle_core::Error::wrap),
                None => Ok(()),
            }
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
mod tests;
