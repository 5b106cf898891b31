#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flashjob_bucket::fuzzing::listing(data);
});
