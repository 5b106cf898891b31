//! Texts that are drawn under grammars, and grammars that are none.

mod bad_grammars;
mod texts;

use flashjob_guidance::{Compiler, Error, Grammar, Progress};
use flashjob_model::{TokenBytes, Tokenizer};
use flashjob_test_models::golden;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The tokens of a tiny model, its ends of texts, and a compiler for them.
struct Vocabulary {
    tokens: TokenBytes,
    eos_tokens: Vec<u32>,
    compiler: Compiler,
}

impl Vocabulary {
    fn of_tiny_model() -> Self {
        let tokens = Tokenizer::open(&golden::directory("llama-gqa")).unwrap().token_bytes().unwrap();
        let eos_tokens = vec![0, 2];
        let compiler = Compiler::new(&tokens, &eos_tokens, 2).unwrap();
        Self { tokens, eos_tokens, compiler }
    }

    /// One of the tokens that `mask` allows.
    fn any_of(&self, mask: &[u32], random: &mut ChaCha8Rng) -> u32 {
        let is_allowed = |token: &u32| mask[*token as usize / 32] >> (token % 32) & 1 == 1;
        let allowed: Vec<u32> = (0..self.tokens.len() as u32).filter(is_allowed).collect();
        allowed[random.random_range(0..allowed.len())]
    }

    /// A text of tokens that are drawn from those that the grammar allows, `None` where it has not come to its end after `most`.
    fn draw(&self, grammar: &Grammar, seed: u64, most: usize) -> Result<Option<String>, Error> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut text = self.compiler.compile(grammar)?.begin(seed as usize);
        let mut bytes = Vec::new();
        let mut mask = vec![0; self.tokens.len().div_ceil(32)];
        for _ in 0..most {
            text.allowed(&mut mask)?;
            let token = self.any_of(&mask, &mut random);
            bytes.extend_from_slice(self.tokens.of_text(token));
            let is_end = self.eos_tokens.contains(&token);
            let progress = text.accept(token)?;
            assert!(!is_end || progress == Progress::Complete);
            if progress == Progress::Complete {
                return Ok(Some(String::from_utf8(bytes).unwrap()));
            }
        }
        Ok(None)
    }
}

/// A schema as a grammar.
fn schema(schema: serde_json::Value) -> Grammar {
    Grammar::JsonSchema(schema.to_string())
}
