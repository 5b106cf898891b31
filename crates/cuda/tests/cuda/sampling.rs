//! The kernels that adjust logits and choose tokens on a GPU make the same bits and choose the same tokens as the CPU's.

use std::fs::File;
use std::num::NonZeroUsize;

use flashjob_cpu::{
    LogitAdjustments, LogprobsRow, NO_TOKEN, Penalties, Pool, RowDistribution, RowSummary, TokenChoice, TokenEntry,
    TokenLogprobs, adjust_logits, choose_tokens, row_distributions,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::on_host;

/// Rows that share a width, and how tokens are chosen from them.
struct Batch {
    width: usize,
    /// Of a block; whole warps.
    threads: u32,
    choices: Vec<TokenChoice>,
    logits: Vec<f32>,
    adjustments: LogitAdjustments,
    /// About every fourth row.
    wanted: Vec<LogprobsRow>,
}

impl Batch {
    fn random(random: &mut ChaCha8Rng, rows: usize, width: usize, threads: u32) -> Self {
        let choices = (0..rows).map(|_| choice(random, width)).collect();
        let logits = (0..rows).flat_map(|_| row(random, width)).collect();
        let adjustments = adjustments(random, rows, width);
        let mut wanted = |row| {
            let count = random.random_range(0..=20);
            (random.random_range(0..4) == 0).then_some(LogprobsRow { row, count })
        };
        let wanted = (0..rows as u32).filter_map(&mut wanted).collect();
        Self { width, threads, choices, logits, adjustments, wanted }
    }

    /// Tokens, logits once they are adjusted, and log-probabilities of the rows that want them and have a token.
    fn on_the_cpu(&self) -> (Vec<u32>, Vec<f32>, Vec<Option<TokenLogprobs>>) {
        let (pool, mut tokens, mut logits) = (Pool::new(2), vec![0; self.choices.len()], self.logits.clone());
        let distributions = row_distributions(&pool, &logits, self.width, &self.wanted, &self.adjustments);
        adjust_logits(&pool, &mut logits, self.width, &self.adjustments);
        choose_tokens(&pool, &logits, self.width, &self.choices, &mut tokens);
        let of_row = |distribution: &RowDistribution| {
            let token = Some(tokens[distribution.row()]).filter(|&token| token != NO_TOKEN);
            token.map(|token| distribution.of_token(token, &logits, self.width))
        };
        let logprobs = distributions.iter().map(of_row).collect();
        (tokens, logits, logprobs)
    }

    /// As the program on the host reads it.
    fn bytes(&self) -> Vec<u8> {
        let (rows, entries) = (self.adjustments.rows(), self.adjustments.entries());
        let sizes =
            [self.choices.len(), self.width, self.threads as usize, rows.len(), entries.len(), self.wanted.len()]
                .map(|n| n as u32);
        let lists =
            [bytemuck::cast_slice(&sizes), bytemuck::cast_slice(&self.choices), bytemuck::cast_slice(&self.logits)];
        [&lists[..], &[bytemuck::cast_slice(rows), bytemuck::cast_slice(entries), bytemuck::cast_slice(&self.wanted)]]
            .concat()
            .concat()
    }
}

fn choice(random: &mut ChaCha8Rng, width: usize) -> TokenChoice {
    let temperature = [0.0, 0.3, 0.7, 1.0, 1.0, 1.5, 4.0, 1e-20][random.random_range(0..8)];
    let top_k = [0, 0, 2, 40, random.random_range(1..=2 * width)][random.random_range(0..5)];
    let top_p = [1.0, 1.0, 0.95, 0.5, random.random_range(0.001..1.0)][random.random_range(0..5)];
    let min_p = [0.0, 0.0, 0.05, 1.0, random.random_range(0.0..1.0)][random.random_range(0..5)];
    TokenChoice::new(temperature, NonZeroUsize::new(top_k), top_p, random.random()).with_min_p(min_p)
}

/// About every third row has some.
fn adjustments(random: &mut ChaCha8Rng, rows: usize, width: usize) -> LogitAdjustments {
    let mut adjustments = LogitAdjustments::default();
    for row in 0..rows {
        if random.random_range(0..3) > 0 {
            continue;
        }
        // One token is beyond the row.
        let mut tokens = |most: usize| -> Vec<u32> {
            let count = random.random_range(0..=most.min(width));
            rand::seq::index::sample(random, width + 1, count).iter().map(|token| token as u32).collect()
        };
        let (biased, counted) = (tokens(20), tokens(2000));
        let mut bias = |token| match random.random_range(0..4) {
            0 => TokenEntry::biased(token, f32::NEG_INFINITY),
            _ => TokenEntry::biased(token, random.random_range(-100.0..100.0)),
        };
        let biased: Vec<TokenEntry> = biased.into_iter().map(&mut bias).collect();
        let count = |token| TokenEntry::counted(token, random.random_range(0..5));
        let counted: Vec<TokenEntry> = counted.into_iter().map(count).collect();
        let repetition = [1.0, random.random_range(0.01..3.0)][random.random_range(0..2)];
        let [frequency, presence] = [(); 2].map(|()| random.random_range(-2.0..2.0));
        adjustments.push(row, &biased, &counted, Penalties { repetition, frequency, presence });
    }
    adjustments
}

/// Mostly as a model's; some are coarse, so that many are equal, and some are not finite.
fn row(random: &mut ChaCha8Rng, width: usize) -> Vec<f32> {
    let spread = [0.0, 1.0, 3.0, 10.0][random.random_range(0..4)];
    let mut bell = || (0..12).map(|_| random.random_range(-0.5..0.5f32)).sum::<f32>() * spread;
    let mut row: Vec<f32> = (0..width).map(|_| bell()).collect();
    let place = random.random_range(0..width);
    match random.random_range(0..10) {
        0 => row.iter_mut().for_each(|logit| *logit = logit.round()),
        1 => row.iter_mut().for_each(|logit| *logit = (*logit * 64.0).round() / 64.0),
        2 => row[place] = f32::NAN,
        3 => row[place] = f32::INFINITY,
        4 => row[place..].fill(f32::NEG_INFINITY),
        5 => row.fill([f32::NAN, f32::NEG_INFINITY, 2.5][random.random_range(0..3)]),
        _ => {}
    }
    row
}

#[test]
fn the_kernels_on_the_host_make_the_logits_and_choose_the_tokens_of_the_cpu() {
    let Some((folder, mut program)) = on_host("tests/cuda/sampling_on_host.cpp") else { return };
    let mut random = ChaCha8Rng::seed_from_u64(20_261_129);
    // Widths of whole packs and others, of fewer tokens than threads, and a model's.
    let mut batches = Vec::new();
    for (width, rows) in [(1, 40), (2, 40), (8, 80), (31, 80), (304, 120), (1000, 120), (5001, 60), (20_008, 30)] {
        for threads in [64, 256, 1024] {
            batches.push(Batch::random(&mut random, rows, width, threads));
        }
    }
    batches.push(Batch::random(&mut random, 12, 128_256, 1024));
    let input = folder.path().join("batches");
    std::fs::write(&input, batches.iter().flat_map(Batch::bytes).collect::<Vec<u8>>()).unwrap();
    let ran = program.stdin(File::open(&input).unwrap()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let found: Vec<u32> = bytemuck::pod_collect_to_vec(&ran.stdout);
    let mut found = found.into_iter();
    let (mut chosen, mut refused, mut spelled) = (0, 0, 0);
    for batch in &batches {
        let (tokens, logits, logprobs) = batch.on_the_cpu();
        for (index, expected) in tokens.into_iter().enumerate() {
            let found = found.next().expect("a token for each row");
            let (width, threads, choice) = (batch.width, batch.threads, batch.choices[index]);
            assert_eq!(found, expected, "row {index} of {width} by {threads} threads: {choice:?}");
            *(if found == NO_TOKEN { &mut refused } else { &mut chosen }) += 1;
        }
        for expected in logits {
            let found = found.next().expect("a logit for each that there was");
            // Bits of a NaN are not defined.
            assert!(found == expected.to_bits() || expected.is_nan(), "{} is not {expected}", f32::from_bits(found));
        }
        for (wanted, expected) in batch.wanted.iter().zip(logprobs) {
            let words: Vec<u32> = found.by_ref().take(size_of::<RowSummary>() / 4).collect();
            let summary = bytemuck::pod_collect_to_vec::<u32, RowSummary>(&words)[0];
            let Some(expected) = expected else { continue };
            assert_eq!(summary.logprobs(wanted.count, batch.width), expected, "row {} of {}", wanted.row, batch.width);
            spelled += 1;
        }
    }
    assert!(spelled > 200, "{spelled} rows with log-probabilities");
    assert!(chosen > 1000 && refused > 100, "{chosen} chosen, {refused} refused");
}
