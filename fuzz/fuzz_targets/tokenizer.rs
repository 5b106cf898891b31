#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flashjob_fuzz::leave_panics_in(&["/tokenizers-", "/spm_precompiled-"]),
    |data: &[u8]| {
        flashjob_model::fuzzing::tokenizer(data);
    }
);

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    flashjob_fuzz::json::mutated(data, size, max_size, seed)
});
