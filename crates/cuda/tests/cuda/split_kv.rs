//! The division of keys over splits: pure arithmetic, on steps of many shapes.

use flashjob_cuda::SplitKv;
use flashjob_engine::{EngineLimits, ForwardBatch, LogitsRows};

#[test]
fn only_few_and_long_sequences_are_split() {
    for (sequences, max_blocks, expected) in [
        (1, 8, None),
        (1, 16, Some([2, 8])),
        (1, 128, Some([16, 8])),
        (1, 4096, Some([49, 84])),
        (4, 128, Some([12, 11])),
        (16, 64, Some([3, 22])),
        (24, 4096, Some([2, 2048])),
        (25, 4096, None),
        (64, 64, None),
    ] {
        let split = SplitKv::new(sequences, 8, [max_blocks, 32], 132);
        let found = split.map(|SplitKv { num_splits, blocks }| [num_splits, blocks]);
        assert_eq!(found, expected, "{sequences} sequences of {max_blocks} blocks");
    }
}

#[test]
fn parts_are_never_more_than_there_is_room_for_and_hold_all_blocks() {
    for kv_heads in [1, 2, 8, 200, 1000] {
        for sequences in 1..600 {
            for max_blocks in [1, 7, 100, 1000, 4097] {
                let Some(split) = SplitKv::new(sequences, kv_heads, [max_blocks, 32], 132) else { continue };
                assert!(split.num_splits >= 2 && split.num_splits * split.blocks >= max_blocks, "{split:?}");
                assert!(sequences * split.num_splits <= SplitKv::most_rows(kv_heads, 132), "{sequences}: {split:?}");
            }
        }
    }
}

#[test]
fn each_key_is_in_one_part_and_parts_follow_each_other() {
    const BLOCK_SIZE: usize = 4;
    let mut step = ForwardBatch::with_capacity(&EngineLimits {
        max_num_seqs: 8,
        max_num_batched_tokens: 8,
        max_model_len: 160,
        block_size: BLOCK_SIZE,
        num_blocks: 200,
        num_spare_blocks: 0,
        vocab_size: 10,
    });
    let lengths: [usize; 6] = [1, 4, 5, 37, 160, 79];
    step.begin(160);
    let mut next = 0;
    for length in lengths {
        let blocks = next..next + length.div_ceil(BLOCK_SIZE) as u32;
        next = blocks.end;
        step.push(&[7], length - 1, blocks, LogitsRows::Last);
    }
    for split in [
        SplitKv { num_splits: 2, blocks: 20 },
        SplitKv { num_splits: 7, blocks: 6 },
        SplitKv { num_splits: 40, blocks: 1 },
    ] {
        let rows = lengths.len() * split.num_splits;
        let mut numbers = vec![u32::MAX; split.count(rows) + 1];
        split.write(&step, &mut numbers);
        assert_eq!(numbers.pop(), Some(u32::MAX), "written beyond the end");
        let [of, before, table] = SplitKv::starts(rows);
        for (sequence, length) in lengths.into_iter().enumerate() {
            let mut keys = Vec::new();
            for row in sequence * split.num_splits..(sequence + 1) * split.num_splits {
                assert_eq!(numbers[of + row], sequence as u32);
                let own = numbers[before + row + 1] - numbers[before + row];
                let blocks = &numbers[table + row * split.blocks..][..split.blocks];
                keys.extend(
                    (0..own as usize).map(|key| blocks[key / BLOCK_SIZE] as usize * BLOCK_SIZE + key % BLOCK_SIZE),
                );
            }
            let blocks = &step.block_table()[sequence * step.max_blocks()..][..step.max_blocks()];
            let expected: Vec<usize> =
                (0..length).map(|key| blocks[key / BLOCK_SIZE] as usize * BLOCK_SIZE + key % BLOCK_SIZE).collect();
            assert_eq!(keys, expected, "{split:?}, {length} keys");
        }
    }
}
