//! Masks that texts of one regular expression share: those in the same state of its automaton may go on alike.
//!
//! Walking the trie of all tokens for a mask takes a fraction of a millisecond, for each text and token. An expression has few states,
//! in which many texts are many times, so that most masks have been computed before. llguidance's own states have no names that
//! could be compared; those of an automaton from regex-automata do, which reads the same syntax.

use std::collections::HashMap;

use llguidance::toktrie::TokEnv;
use parking_lot::RwLock;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};

/// Memory for an automaton, and as much for what it is made with: a few milliseconds of work.
const MOST_AUTOMATON_BYTES: usize = 2 << 20;

/// Memory for the masks of one expression.
const MOST_MASK_BYTES: usize = 4 << 20;

/// Masks by the state of a text.
pub(super) struct SharedMasks {
    automaton: dense::DFA<Vec<u32>>,
    start: StateID,
    tokens: TokEnv,
    masks: RwLock<HashMap<StateID, Box<[u32]>>>,
}

impl SharedMasks {
    /// Makes room for the masks of `expression` over `tokens`; `None` where its states are too many, or more than a state decides.
    pub(super) fn of(expression: &str, tokens: TokEnv) -> Option<Self> {
        // Of anchors and word boundaries the two libraries have different ideas.
        let parsed = regex_syntax::parse(expression).ok()?;
        if !parsed.properties().look_set().is_empty() {
            return None;
        }
        let limits = dense::Config::new()
            .dfa_size_limit(Some(MOST_AUTOMATON_BYTES))
            .determinize_size_limit(Some(MOST_AUTOMATON_BYTES))
            .start_kind(StartKind::Anchored)
            .accelerate(false)
            // Any alternative may be the one that a text is of, not only the first.
            .match_kind(MatchKind::All);
        let automaton = dense::Builder::new().configure(limits).build(expression).ok()?;
        let start = automaton.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()?;
        Some(Self { automaton, start, tokens, masks: RwLock::default() })
    }

    /// The state of a text without a token.
    pub(super) fn start(&self) -> StateID {
        self.start
    }

    /// The state after `token` was taken in.
    pub(super) fn after(&self, state: StateID, token: u32) -> StateID {
        self.tokens.tok_trie().token(token).iter().fold(state, |state, &byte| self.automaton.next_state(state, byte))
    }

    /// Writes the mask of `state` where it is known, and says whether it was.
    pub(super) fn read(&self, state: StateID, mask: &mut [u32]) -> bool {
        match self.masks.read().get(&state) {
            Some(known) if known.len() == mask.len() => {
                mask.copy_from_slice(known);
                true
            }
            _ => false,
        }
    }

    /// Keeps the mask of `state` while there is room.
    pub(super) fn keep(&self, state: StateID, mask: &[u32]) {
        let mut masks = self.masks.write();
        if (masks.len() + 1) * size_of_val(mask) <= MOST_MASK_BYTES {
            masks.insert(state, mask.into());
        }
    }
}
