//! Log-probabilities that an engine tells step by step, in the form of our own engine's.

use flashjob_engine::TokenLogprobs;

use super::protocol::StepLogprobs;

/// Engines give the least number of some type in the place of minus infinity, or below it: such a token is ruled out.
const RULED_OUT: f32 = -1e30;

/// Log-probabilities of a request that wants some, as far as it has come.
#[derive(Debug)]
pub struct WantedLogprobs {
    /// Likeliest tokens that are wanted beside the chosen one.
    likeliest: usize,
    of_tokens: Vec<TokenLogprobs>,
}

impl WantedLogprobs {
    /// Log-probabilities of no token yet, each to come with its `likeliest` others.
    pub fn new(likeliest: usize) -> Self {
        Self { likeliest, of_tokens: Vec::new() }
    }

    /// Takes those of the last of the request's `tokens`.
    ///
    /// # Errors
    /// A clause that follows the engine's name, where they are not of these tokens or not as many as are wanted.
    pub fn take(&mut self, tokens: &[u32], step: StepLogprobs) -> Result<(), String> {
        let StepLogprobs { id, tokens: rows, logprobs } = step;
        let new = tokens.get(self.of_tokens.len()..).unwrap_or_default();
        let is_of_tokens = rows.len() == logprobs.len() && rows.iter().map(|row| row.first()).eq(new.iter().map(Some));
        if !is_of_tokens {
            return Err(format!("gives log-probabilities of request {id} for other tokens than it generated"));
        }
        for (row, logprobs) in rows.into_iter().zip(logprobs) {
            // The chosen one is the first of both.
            if row.len() != logprobs.len() || row.len() > self.likeliest + 1 {
                let (tokens, numbers, wanted) = (row.len(), logprobs.len(), self.likeliest + 1);
                return Err(format!(
                    "gives {numbers} log-probabilities of {tokens} tokens in one place of request {id}, and {wanted} are wanted"
                ));
            }
            let logprobs = logprobs.into_iter().map(|logprob| match logprob {
                RULED_OUT.. => logprob,
                _ => f32::NEG_INFINITY,
            });
            let mut row = row.into_iter().zip(logprobs);
            let Some((_, logprob)) = row.next() else { continue };
            self.of_tokens.push(TokenLogprobs { logprob, top: row.collect() });
        }
        Ok(())
    }

    /// All of them, of a request that has ended with `tokens`.
    ///
    /// # Errors
    /// A clause that follows the engine's name, where some are missing.
    pub fn complete(self, id: u32, tokens: &[u32]) -> Result<Vec<TokenLogprobs>, String> {
        let (given, wanted) = (self.of_tokens.len(), tokens.len());
        match given == wanted {
            true => Ok(self.of_tokens),
            false => Err(format!("gives log-probabilities of {given} of the {wanted} tokens of request {id}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(tokens: &[&[u32]], logprobs: &[&[f32]]) -> StepLogprobs {
        let tokens = tokens.iter().map(|row| row.to_vec()).collect();
        StepLogprobs { id: 3, tokens, logprobs: logprobs.iter().map(|row| row.to_vec()).collect() }
    }

    #[test]
    fn steps_add_up_to_the_log_probabilities_of_all_tokens() {
        let mut wanted = WantedLogprobs::new(2);
        wanted.take(&[5], step(&[&[5, 6, 5]], &[&[-2.0, -0.5, -2.0]])).unwrap();
        wanted.take(&[5, 7, 8], step(&[&[7, 7, 9], &[8]], &[&[-0.1, -0.1, f32::MIN], &[-3.0]])).unwrap();
        let expected =
            [(-2.0, vec![(6, -0.5), (5, -2.0)]), (-0.1, vec![(7, -0.1), (9, f32::NEG_INFINITY)]), (-3.0, vec![])];
        let expected = expected.map(|(logprob, top)| TokenLogprobs { logprob, top });
        assert_eq!(wanted.complete(3, &[5, 7, 8]).unwrap(), expected);
    }

    #[test]
    fn log_probabilities_of_other_tokens_or_more_than_are_wanted_are_refused() {
        let other = "gives log-probabilities of request 3 for other tokens than it generated";
        for (tokens, logprobs, sentence) in [
            (&[&[6_u32][..]][..], &[&[-1.0_f32][..]][..], other),
            (&[], &[], other),
            (&[&[5], &[6]], &[&[-1.0], &[-1.0]], other),
            (&[&[]], &[&[]], other),
            (&[&[5]], &[], other),
            (
                &[&[5, 6]],
                &[&[-1.0]],
                "gives 1 log-probabilities of 2 tokens in one place of request 3, and 2 are wanted",
            ),
            (
                &[&[5, 6, 7]],
                &[&[-1.0, -1.0, -1.0]],
                "gives 3 log-probabilities of 3 tokens in one place of request 3, and 2 are wanted",
            ),
        ] {
            assert_eq!(WantedLogprobs::new(1).take(&[5], step(tokens, logprobs)).unwrap_err(), sentence);
        }
        let none = WantedLogprobs::new(1).complete(3, &[5]).unwrap_err();
        assert_eq!(none, "gives log-probabilities of 0 of the 1 tokens of request 3");
    }
}
