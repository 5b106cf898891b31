//! The division of keys over parts: pure arithmetic, on steps of many shapes.

use flashjob_cuda::{SplitKv, parts_at_a_time};
use flashjob_engine::{EngineLimits, ForwardBatch, LogitsRows};

/// Three on each of an H100's processors.
const RESIDENT_BLOCKS: usize = 3 * 132;

fn batch(block_size: usize) -> ForwardBatch {
    ForwardBatch::with_capacity(&EngineLimits {
        max_num_seqs: 8,
        max_num_batched_tokens: 8,
        max_model_len: 160,
        block_size,
        num_blocks: 200,
        num_spare_blocks: 0,
        vocab_size: 10,
    })
}

/// A step that decodes a token of sequences with so many keys, each in blocks of its own.
fn step(block_size: usize, keys: &[usize]) -> ForwardBatch {
    let mut step = batch(block_size);
    step.begin(keys.iter().copied().max().unwrap());
    let mut next = 0;
    for &keys in keys {
        let blocks = next..next + keys.div_ceil(block_size) as u32;
        next = blocks.end;
        step.push(&[7], keys - 1, blocks, LogitsRows::Last);
    }
    step
}

/// An H100 and the heads of Llama-3.1-8B.
fn llama() -> usize {
    parts_at_a_time(8, RESIDENT_BLOCKS)
}

/// Blocks of the longest part.
fn part_blocks(keys: &[usize]) -> Option<usize> {
    SplitKv::new(&step(32, keys), llama()).map(|split| split.part_blocks)
}

#[test]
fn sequences_of_one_length_are_divided_where_they_are_few_and_long() {
    for (sequences, blocks, expected) in [
        (1, 8, None),
        (1, 16, Some(8)),
        (1, 128, Some(8)),
        (1, 4096, Some(84)),
        (4, 128, Some(11)),
        (16, 64, Some(22)),
        (24, 4096, Some(2048)),
        (25, 4096, None),
        (64, 64, None),
        (256, 64, None),
    ] {
        assert_eq!(part_blocks(&vec![32 * blocks; sequences]), expected, "{sequences} sequences of {blocks} blocks");
    }
}

#[test]
fn one_long_sequence_among_short_ones_is_divided() {
    let mut keys = vec![256; 255];
    keys.push(30_000);
    // In 50 parts; whole, it would take 15 times as long as all the others.
    assert_eq!(part_blocks(&keys), Some(19));
    keys.resize(1024, 256);
    assert_eq!(part_blocks(&keys), Some(19));
    // A sequence that is hardly longer than the others is not worth it.
    keys[255] = 512;
    assert_eq!(part_blocks(&keys), None);
}

/// What is recorded knows the size of a step alone: it must be the same for all lengths.
#[test]
fn room_follows_from_the_size_of_a_step() {
    let room = |keys: &[usize]| {
        let mut step = batch(32);
        step.begin(64 * 32);
        keys.iter().for_each(|keys| step.push(&[7], keys - 1, 0..64, LogitsRows::Last));
        step.fill_up(flashjob_engine::ReplaySize { sequences: 16, max_blocks: 64 }, 0);
        SplitKv::new(&step, llama()).map(|split| (split.rows, split.row_blocks))
    };
    assert_eq!(room(&[2048; 16]), Some((16 + 49, 22)));
    for keys in [&[2048; 13][..], &[2048], &[1, 1500, 700], &[600, 600]] {
        assert_eq!(room(keys), room(&[2048; 16]), "{keys:?}");
    }
}

#[test]
fn parts_are_never_more_than_there_is_room_for() {
    for kv_heads in [1, 2, 8, 200, 1000] {
        let at_a_time = parts_at_a_time(kv_heads, RESIDENT_BLOCKS);
        for sequences in [1, 2, 3, 7, 24, 25, 49, 50, 100, 257, 600] {
            for max_blocks in [1, 7, 100, 1000, 4097] {
                for shape in 0..4 {
                    let keys = |sequence: usize| match shape {
                        0 => max_blocks * 32,
                        1 if sequence != 0 => 40,
                        2 => max_blocks * 32 / (sequence + 1) + 1,
                        _ => (max_blocks * 32).saturating_sub(sequence * 37).max(1),
                    };
                    let keys: Vec<usize> = (0..sequences).map(|sequence| keys(sequence).min(max_blocks * 32)).collect();
                    let step = step(32, &keys);
                    let Some(split) = SplitKv::new(&step, at_a_time) else { continue };
                    let blocks = || keys.iter().map(|keys| keys.div_ceil(32));
                    assert!(
                        split.part_blocks <= split.row_blocks && 2 * split.part_blocks <= blocks().max().unwrap() + 1
                    );
                    let parts: usize = blocks().map(|blocks| blocks.div_ceil(split.part_blocks)).sum();
                    assert!(parts <= split.rows, "{sequences} of {max_blocks}: {parts} parts in {split:?}");
                    let most = SplitKv::most_numbers(sequences, max_blocks, at_a_time);
                    assert!(split.count(sequences) <= most, "{sequences} of {max_blocks}: {split:?}");
                }
            }
        }
    }
}

#[test]
fn each_key_is_in_one_part_and_parts_follow_each_other() {
    const BLOCK_SIZE: usize = 4;
    let lengths: [usize; 6] = [1, 4, 5, 37, 160, 79];
    let mut step = step(BLOCK_SIZE, &lengths);
    // A prompt behind them is not their matter.
    step.push(&[1, 2], 0, [199], LogitsRows::None);
    for split in [
        SplitKv { rows: 12, row_blocks: 20, part_blocks: 20 },
        SplitKv { rows: 20, row_blocks: 20, part_blocks: 6 },
        SplitKv { rows: 90, row_blocks: 3, part_blocks: 1 },
    ] {
        let mut numbers = vec![u32::MAX; split.count(lengths.len()) + 1];
        split.write(&step, &mut numbers);
        assert_eq!(numbers.pop(), Some(u32::MAX), "written beyond the end");
        let [of, parts_before, keys_before, table] = split.starts(lengths.len());
        for (sequence, length) in lengths.into_iter().enumerate() {
            let mut keys = Vec::new();
            for row in numbers[parts_before + sequence] as usize..numbers[parts_before + sequence + 1] as usize {
                assert_eq!(numbers[of + row], sequence as u32);
                let own = numbers[keys_before + row + 1] - numbers[keys_before + row];
                let blocks = &numbers[table + row * split.row_blocks..][..split.row_blocks];
                keys.extend(
                    (0..own as usize).map(|key| blocks[key / BLOCK_SIZE] as usize * BLOCK_SIZE + key % BLOCK_SIZE),
                );
            }
            let blocks = &step.block_table()[sequence * step.max_blocks()..][..step.max_blocks()];
            let expected: Vec<usize> =
                (0..length).map(|key| blocks[key / BLOCK_SIZE] as usize * BLOCK_SIZE + key % BLOCK_SIZE).collect();
            assert_eq!(keys, expected, "{split:?}, {length} keys");
        }
        let parts = numbers[parts_before + lengths.len()] as usize;
        assert!((parts..split.rows).all(|row| numbers[keys_before + row] == numbers[keys_before + row + 1]));
    }
}
