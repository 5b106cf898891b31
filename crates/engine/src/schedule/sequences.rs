//! The sequences of a run that are not finished, by their numbers.

use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use super::scheduler_output::SequenceIndex;
use super::sequence::Sequence;

/// Unfinished sequences. Numbers are never given twice, so that their order is that of arrival; memory is that of the sequences from
/// the oldest unfinished one on, of which finished ones leave a pointer's room.
#[derive(Debug, Default)]
pub struct Sequences {
    /// Number of the first slot.
    first: SequenceIndex,
    // Boxed, as the gap that a finished one leaves would be as large as a sequence.
    slots: VecDeque<Option<Box<Sequence>>>,
}

impl Sequences {
    /// Adds a sequence; returns its number.
    pub fn push(&mut self, sequence: Sequence) -> SequenceIndex {
        self.slots.push_back(Some(Box::new(sequence)));
        self.first + self.slots.len() - 1
    }

    /// The sequence with this number, unless it is finished or has not come.
    pub fn get(&self, index: SequenceIndex) -> Option<&Sequence> {
        self.slots.get(index.checked_sub(self.first)?)?.as_deref()
    }

    /// Takes out a sequence that is finished.
    ///
    /// # Panics
    /// Where it is not there.
    pub fn remove(&mut self, index: SequenceIndex) -> Sequence {
        let slot = self.slots.get_mut(index - self.first).and_then(Option::take);
        while self.slots.pop_front_if(|slot| slot.is_none()).is_some() {
            self.first += 1;
        }
        *slot.expect("a sequence is finished once")
    }
}

impl Index<SequenceIndex> for Sequences {
    type Output = Sequence;

    fn index(&self, index: SequenceIndex) -> &Sequence {
        self.get(index).expect("the sequence is not finished")
    }
}

impl IndexMut<SequenceIndex> for Sequences {
    fn index_mut(&mut self, index: SequenceIndex) -> &mut Sequence {
        self.slots[index - self.first].as_deref_mut().expect("the sequence is not finished")
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::BlockTable;
    use super::super::request::Request;
    use super::*;

    fn sequence(id: u32) -> Sequence {
        let request = Request::greedy(id, vec![id], 1);
        Sequence::new(request, BlockTable::default())
    }

    #[test]
    fn finished_sequences_leave_no_memory_behind_once_older_ones_are_finished_too() {
        let mut sequences = Sequences::default();
        for id in 0..1000 {
            assert_eq!(sequences.push(sequence(id as u32)), id);
            // Of each pair the younger one is finished first.
            let finished = if id % 2 == 1 { vec![id, id - 1] } else { vec![] };
            for finished in finished {
                assert_eq!(sequences.remove(finished).tokens(), [finished as u32]);
                assert!(sequences.get(finished).is_none());
            }
            assert!(sequences.slots.len() <= 2);
        }
        assert_eq!((sequences.slots.len(), sequences.first), (0, 1000));
        assert!(sequences.get(1000).is_none());
    }
}
