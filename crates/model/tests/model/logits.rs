//! A loaded model means what transformers says it means.

use flashjob_model::Model;

use super::{golden, plain_decoder};

#[test]
fn logits_are_those_of_transformers() {
    for name in golden::MODELS {
        let model = Model::open(&golden::directory(name)).unwrap();
        for prompt in golden::prompts(name) {
            assert_eq!(prompt.greedy.len(), 64);
            let computed = plain_decoder::logits(&model, &prompt.tokens);
            for (position, reference) in &prompt.logits {
                let error = golden::relative_error(reference, &computed[*position]);
                assert!(error < 1e-5, "{name}, {} tokens, position {position}: {error}", prompt.tokens.len());
            }
            let (_, last) = prompt.logits.last().unwrap();
            let likeliest = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
            assert_eq!(prompt.greedy[0] as usize, likeliest, "{name}");
        }
    }
}
