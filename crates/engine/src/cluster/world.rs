//! All ranks of a model, those of this process among them, and the other machines where there are any.

use std::ops::Range;
use std::time::Instant;

use super::link::Kind;
use super::links::Links;
use crate::cost::Loaded;
use crate::error::Error;
use crate::forward::batch::Step;
use crate::start::capacity::Capacity;
use flashjob_model::Shard;

/// Who computes a model together.
pub struct World {
    /// Ranks in all.
    pub size: usize,
    /// Those of this process, one behind the other.
    pub here: Range<usize>,
    /// To other machines; `None` where all ranks are here.
    pub links: Option<Links>,
}

impl World {
    /// The parts of this process's ranks.
    pub fn shards(&self) -> impl Iterator<Item = Shard> + use<> {
        let world_size = self.size;
        self.here.clone().map(move |rank| Shard { rank, world_size })
    }

    /// The least of what all machines have room for, where `capacity` is this one's.
    ///
    /// # Errors
    /// Where one of them is gone.
    pub fn agree(&self, capacity: Capacity) -> Result<Capacity, Error> {
        match &self.links {
            None => Ok(capacity),
            Some(Links::Leads(links)) => {
                let mut least = capacity;
                for link in links.iter() {
                    let other: Capacity = link.receive_json(Kind::Capacity, link.deadline())?;
                    least.kv_blocks = least.kv_blocks.min(other.kv_blocks);
                    least.max_model_len = least.max_model_len.min(other.max_model_len);
                }
                links.iter().try_for_each(|link| link.send_json(Kind::Capacity, &least))?;
                Ok(least)
            }
            Some(Links::Follows(link)) => {
                link.send_json(Kind::Capacity, &capacity)?;
                let least: Capacity = link.receive_json(Kind::Capacity, link.deadline())?;
                match least.kv_blocks <= capacity.kv_blocks && least.max_model_len <= capacity.max_model_len {
                    true => Ok(least),
                    false => {
                        Err(Error::Machines(format!("{} wants more cache than there is room for here", link.peer())))
                    }
                }
            }
        }
    }

    /// Tells the leader that this machine is ready, or waits until all others are; gives what those have loaded.
    ///
    /// # Errors
    /// Where one of them is gone.
    pub fn all_loaded(&self, here: &Loaded) -> Result<Vec<Loaded>, Error> {
        match &self.links {
            None => Ok(Vec::new()),
            Some(Links::Leads(links)) => {
                let deadline = links.first().map_or_else(Instant::now, |link| link.deadline());
                let loaded = links.iter().map(|link| link.receive_json(Kind::Loaded, deadline));
                Ok(loaded.collect::<Result<_, _>>()?)
            }
            Some(Links::Follows(link)) => {
                link.send_json(Kind::Loaded, here)?;
                Ok(Vec::new())
            }
        }
    }

    /// Has all other machines compute `step`, where this one leads.
    ///
    /// # Errors
    /// Where one of them is gone.
    pub fn begin(&self, step: &Step) -> Result<(), Error> {
        let Some(Links::Leads(links)) = &self.links else { return Ok(()) };
        let mut words = Vec::new();
        step.write(&mut words);
        let bytes = bytemuck::cast_slice(&words);
        Ok(links.iter().try_for_each(|link| link.send(Kind::Step, &[bytes]))?)
    }

    /// What `outcome` is, or the reason behind it where another machine has fallen silent.
    pub fn explain<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        let silence = || self.links.as_ref().and_then(Links::silence);
        outcome.map_err(|error| silence().map_or(error, Error::from))
    }
}
