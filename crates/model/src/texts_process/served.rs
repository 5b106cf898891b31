//! The process itself: opens a model's texts, then answers orders with several workers until the job closes its end.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::Builder;

use parking_lot::Mutex;

use super::MARKER;
use super::confinement::{confine, refuse_descriptors};
use super::frames::{Answer, Order, read_order, write_answer};
use crate::text_service::TextFacts;
use crate::{Ask, Conversation, Texts};

/// Most worker threads: texts come from one reader, so more gain little.
pub(super) const MOST_WORKERS: usize = 8;

/// Stack of a worker: a template's recursion is limited by depth, not by bytes.
pub(crate) const STACK_BYTES: usize = 16 << 20;

/// Serves texts if `arguments` are those of such a process, and returns its exit code.
pub fn serve_texts(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.next()? != MARKER {
        return None;
    }
    let paths = [arguments.next()?, arguments.next()?].map(PathBuf::from);
    Some(match serve(&paths) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    })
}

fn serve([model, tokenizer]: &[PathBuf; 2]) -> io::Result<()> {
    // Before the first byte of the model is parsed.
    confine(&[model, tokenizer])?;
    let opened = catch_unwind(|| Texts::open(model, tokenizer));
    let texts = match opened {
        Ok(Ok(texts)) => texts,
        Ok(Err(error)) => return write_answer(&mut io::stdout(), &Answer::Refused(error.to_string())),
        Err(_) => {
            let sentence = format!("tokenizer {}: a library gave up on it", tokenizer.display());
            return write_answer(&mut io::stdout(), &Answer::Refused(sentence));
        }
    };
    let texts = Arc::new(texts);
    let (orders, inbox) = channel();
    let (inbox, output) = (Arc::new(Mutex::new(inbox)), Arc::new(Mutex::new(io::stdout())));
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
    for _ in 0..workers {
        let (texts, inbox, output) = (texts.clone(), inbox.clone(), output.clone());
        // Explicit: templates recurse, and the default of a thread is 2 MiB.
        Builder::new().stack_size(STACK_BYTES).spawn(move || work(&texts, &inbox, &output))?;
    }
    // After opening: from here on the process needs no file but its pipes.
    refuse_descriptors()?;
    let mut opened = output.lock();
    write_answer(&mut *opened, &Answer::Opened(Box::new(TextFacts::of(&texts))))?;
    drop(opened);
    // Orders are read without waiting for a worker: the job sends all orders before it reads answers, and both sides
    // would block otherwise.
    let mut input = io::BufReader::new(io::stdin());
    while let Some(order) = read_order(&mut input)? {
        let _ = orders.send(order);
    }
    Ok(())
}

/// Answers orders until the output is closed.
fn work(texts: &Texts, inbox: &Mutex<Receiver<Order>>, output: &Mutex<io::Stdout>) {
    loop {
        // One worker waits while it holds the lock, the others wait for the lock: an order wakes exactly one.
        let order = inbox.lock().recv();
        let Ok(order) = order else { return };
        let answer = match order {
            Order::Encode { number, asks } => {
                Answer::Encoded { number, results: asks.iter().map(|ask| guarded(|| ask.answer(texts))).collect() }
            }
            Order::Render { number, asks } => {
                let results = asks.iter().map(|ask| guarded(|| rendered(texts, ask))).collect();
                Answer::Encoded { number, results }
            }
            Order::Decode(all) => {
                let decoded = |ids: &[u32]| texts.tokenizer.decode(ids).map_err(|error| error.to_string());
                Answer::Decoded(all.iter().map(|ids| guarded(|| decoded(ids))).collect())
            }
            Order::TokenBytes => {
                Answer::TokenBytes(guarded(|| texts.tokenizer.token_bytes().map_err(|error| error.to_string())))
            }
            Order::Spell(tokens) => {
                let spelled = |token: u32| texts.tokenizer.spell(token).map_err(|error| error.to_string());
                Answer::Decoded(tokens.iter().map(|&token| guarded(|| spelled(token))).collect())
            }
        };
        let mut output = output.lock();
        if write_answer(&mut *output, &answer).is_err() {
            return;
        }
    }
}

/// Renders the conversation; returns no IDs.
fn rendered(texts: &Texts, ask: &Ask) -> Result<Vec<u32>, String> {
    match (ask, &texts.chat_template) {
        (Ask::Messages(Conversation { messages, tools }), Some(template)) => {
            template.render_with_tools(messages, tools).map(|_| Vec::new()).map_err(|error| error.to_string())
        }
        _ => Ok(Vec::new()),
    }
}

/// Result of `work`; a panic becomes a sentence, too.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // A panic in a library is an error of one question; the others of its order are still answered.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("a library gave up on it".to_owned()))
}
