//! Grammars compiled for one vocabulary, and kept for the requests that have the same.
//!
//! llguidance limits its own work by counts of nodes and states. What could go beyond these all the same has a time here, and a thread
//! with a stack of its own, so that a grammar that it recurses on ends its request and not the job.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher as Parser, ParserFactory};
use parking_lot::Mutex;

use flashjob_model::TokenBytes;

use super::shared_masks::SharedMasks;
use super::{Error, Grammar, Matcher};

/// Compiled grammars that are kept.
const MOST_KEPT: usize = 64;

/// States of a lexer at most, of one or two kilobytes each.
const MOST_LEXER_STATES: usize = 32 << 10;

/// Time that compiling may take: hundreds of times what the largest grammars in use do.
const COMPILE_TIME: Duration = Duration::from_secs(10);

/// Grammars that may have taken longer. Their threads cannot be ended, and take processors from the job.
const MOST_ENDLESS: usize = 2;

/// Stack of the thread that compiles.
const STACK_BYTES: usize = 128 << 20;

/// Longest token that the trie of all tokens has room for.
const LONGEST_TOKEN_BYTES: usize = 1000;

/// Compiles grammars for one vocabulary. Any thread may use it.
pub struct Compiler {
    factory: Arc<ParserFactory>,
    threads: usize,
    kept: Mutex<Kept>,
    endless: AtomicUsize,
}

impl Compiler {
    /// For a vocabulary of these `tokens`, of which any of `eos_tokens` ends a text. Texts of one grammar share a lexer on each of
    /// `threads`: with fewer of them threads would wait for each other, and with more each would find out anew what others know.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn new(tokens: &TokenBytes, eos_tokens: &[u32], threads: usize) -> Result<Self, Error> {
        let refuse = |error: &dyn std::fmt::Display| Error::Tokenizer(error.to_string());
        let size = tokens.len() as u32;
        let mut words: Vec<Vec<u8>> = (0..size).map(|token| tokens.of_text(token).to_vec()).collect();
        // Of a token that is longer than any in use: it is never allowed.
        words.iter_mut().filter(|word| word.len() > LONGEST_TOKEN_BYTES).for_each(Vec::clear);
        let eos_tokens: Vec<u32> = eos_tokens.iter().copied().filter(|&token| token < size).collect();
        eos_tokens.iter().for_each(|&token| words[token as usize].clear());
        // llguidance needs a token that ends texts, also of a model that has none: one behind all others, which no mask allows.
        words.push(Vec::new());
        let trie = TokTrie::from(&TokRxInfo::new(size + 1, size), &words);
        let trie = if eos_tokens.is_empty() { trie } else { trie.with_eos_tokens(&eos_tokens) };
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        // Approximate: a text is never tokenised again here, only tokens are walked, so that the order in which a tokenizer
        // merges does not matter.
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| refuse(&error))?;
        // Its messages would go to standard error, past the log and its redaction.
        factory.quiet();
        *factory.limits_mut() =
            ParserLimits { max_lexer_states: MOST_LEXER_STATES, verbose_errors: false, ..ParserLimits::default() };
        Ok(Self {
            factory: Arc::new(factory),
            threads: threads.max(1),
            kept: Mutex::default(),
            endless: AtomicUsize::new(0),
        })
    }

    /// `grammar` in the form of which texts are begun, made now or kept.
    ///
    /// # Errors
    /// [`Error::Limit`] and [`Error::Invalid`].
    pub fn compile(&self, grammar: &Grammar) -> Result<Arc<Compiled>, Error> {
        if let Some(compiled) = self.kept.lock().get(grammar) {
            return compiled;
        }
        let compiled = self.compile_apart(grammar).map(Arc::new);
        // A refusal is kept as well: a batch may have the same bad grammar on a million lines.
        self.kept.lock().insert(grammar.clone(), compiled.clone());
        compiled
    }

    fn compile_apart(&self, grammar: &Grammar) -> Result<Compiled, Error> {
        // Before a thread is started: what is too large costs nothing.
        grammar.check()?;
        if self.endless.load(Ordering::Relaxed) >= MOST_ENDLESS {
            let reason =
                format!("is not compiled, as {MOST_ENDLESS} others of this job took more than {COMPILE_TIME:?}");
            return Err(Error::Limit { what: grammar.kind(), reason });
        }
        let lowered = grammar.lowered()?;
        let (factory, (tell, told)) = (self.factory.clone(), sync_channel(1));
        let source = grammar.clone();
        let compile = move || {
            let parser = factory.create_parser(lowered);
            // Not received where it took too long.
            let _late = tell.send(parser.map(|parser| (parser, source.shared_masks(factory.tok_env()))));
        };
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK_BYTES).spawn(compile);
        if let Err(error) = thread {
            return Err(Error::invalid(grammar, &format!("a thread for it cannot be started: {error}")));
        }
        match told.recv_timeout(COMPILE_TIME) {
            Ok(Ok((parser, shared_masks))) => {
                let parser = Parser::new(Ok(parser));
                match parser.get_error() {
                    None => Ok(Compiled {
                        parsers: Mutex::new(vec![parser]),
                        threads: self.threads,
                        shared_masks: shared_masks.map(Arc::new),
                    }),
                    Some(reason) => Err(Error::invalid(grammar, &reason)),
                }
            }
            Ok(Err(error)) => Err(Error::invalid(grammar, &format!("{error:#}"))),
            Err(RecvTimeoutError::Timeout) => {
                // The thread goes on, and cannot be stopped. It is counted, so that few lines cannot take all processors.
                self.endless.fetch_add(1, Ordering::Relaxed);
                Err(Error::Limit {
                    what: grammar.kind(),
                    reason: format!("took more than {COMPILE_TIME:?} to compile"),
                })
            }
            Err(RecvTimeoutError::Disconnected) => Err(Error::invalid(grammar, "llguidance gave up on it")),
        }
    }
}

/// A grammar of which texts can be begun.
pub struct Compiled {
    /// At the beginning of a text. Each has a lexer of its own, which texts that begin with it share.
    parsers: Mutex<Vec<Parser>>,
    threads: usize,
    shared_masks: Option<Arc<SharedMasks>>,
}

impl Compiled {
    /// The beginning of a text, whose masks are computed on this `thread`.
    pub fn begin(&self, thread: usize) -> Matcher {
        let place = thread % self.threads;
        let mut parsers = self.parsers.lock();
        while parsers.len() <= place {
            // A plain clone shares the lexer, whose lock threads would wait for.
            let another = parsers[0].deep_clone();
            parsers.push(another);
        }
        Matcher::new(parsers[place].clone(), self.shared_masks.clone())
    }
}

/// Grammars with what they were compiled to, or the reason why they could not be, and the turn of their last use.
#[derive(Default)]
struct Kept {
    grammars: HashMap<Grammar, (Result<Arc<Compiled>, Error>, u64)>,
    turn: u64,
}

impl Kept {
    fn get(&mut self, grammar: &Grammar) -> Option<Result<Arc<Compiled>, Error>> {
        self.turn += 1;
        let (compiled, used) = self.grammars.get_mut(grammar)?;
        *used = self.turn;
        Some(compiled.clone())
    }

    /// Keeps one more, in the place of the one that was used longest ago where there are too many.
    fn insert(&mut self, grammar: Grammar, compiled: Result<Arc<Compiled>, Error>) {
        if self.grammars.len() >= MOST_KEPT {
            // A walk through at most 64, and only for a grammar that is new.
            let oldest = self.grammars.iter().min_by_key(|(_, (_, used))| *used).map(|(grammar, _)| grammar.clone());
            oldest.map(|oldest| self.grammars.remove(&oldest));
        }
        self.grammars.insert(grammar, (compiled, self.turn));
    }
}
